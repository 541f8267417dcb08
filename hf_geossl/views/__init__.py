"""Views of an image with their geometry."""
