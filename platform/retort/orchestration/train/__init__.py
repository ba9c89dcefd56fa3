"""Training jobs on Ray Train and DeepSpeed."""
