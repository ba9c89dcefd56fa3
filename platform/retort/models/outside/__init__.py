"""Outside checkpoints: Llama and Qwen2 folders in Hugging Face layout, read and written without running their code."""
