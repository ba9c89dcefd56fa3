"""Evaluation on Ray actors."""
