"""Views with geometry, exact streams, and teacher-student training."""
