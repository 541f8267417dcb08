"""Predictions of models with a head: masks, depths, boxes and classes of files, large images in tiles."""
