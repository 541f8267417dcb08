"""Features of images as a table: computed in parts that survive a kill, searched by blocks."""
