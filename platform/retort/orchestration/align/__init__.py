"""Corpus to durations of its phones, on Ray Data."""
