"""Heads that protocols train on top of a trunk."""
