"""Decoding, sampling and synthesis."""
