"""Utterances, corpus readers, token sets, batches and the resumable stream."""
