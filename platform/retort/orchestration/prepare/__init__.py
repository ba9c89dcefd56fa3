"""Corpus to tokens on Ray Data."""
