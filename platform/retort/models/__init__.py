"""The model families, their presets and their weight files."""
