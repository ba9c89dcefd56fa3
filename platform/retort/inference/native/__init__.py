"""The forward pass of a codec language model in C, for CPUs: compiled on first use, kept in the user's cache."""
