"""Scenes: the embedded dataset."""
