"""Synthetic data on Ray Data."""
