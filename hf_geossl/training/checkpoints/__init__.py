"""Checkpoints: whole or absent, the same files whether processes divide the weights or not."""
