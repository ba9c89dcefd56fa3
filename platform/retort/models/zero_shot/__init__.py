"""The zero-shot family: text and a short recording of a voice to a log-mel, without autoregression."""
