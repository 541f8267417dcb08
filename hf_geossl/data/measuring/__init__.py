"""Statistics of images, and the choice of what a model reads of them."""
