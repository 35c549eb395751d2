"""Checkpoints on disk, optimizer state, and weights from other programs."""
