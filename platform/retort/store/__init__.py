"""Artifacts: commit protocol, checksums, locks, local folders and S3."""
