"""Audio files, mel features and codecs."""
