"""Checkpoint conversion and exports."""
