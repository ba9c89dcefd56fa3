"""Retort: distil large text-to-speech teachers into small, fast students, and prove that they are as good."""

__version__ = "0.1.0"
