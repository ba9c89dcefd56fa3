"""Layers and pure functions shared by the models: blocks, caches, guidance, codebook delays."""
