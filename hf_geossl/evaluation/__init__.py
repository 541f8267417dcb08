"""Evaluation: protocols (one file each), metrics as `evaluate.Metric` classes, reports, and `evaluate_model`."""
