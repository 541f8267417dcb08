"""Pretraining that starts from a trunk that exists: how it starts, what of it is trained, and what keeps it near."""
