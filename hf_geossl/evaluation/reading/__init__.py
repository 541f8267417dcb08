"""How rows of a labelled dataset become samples: their truth, the square that is cut, and where they are kept."""
