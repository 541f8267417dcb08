"""Readers of image files, one file a family of formats: each gives a `Raster`, or a `BrokenImageError`."""
