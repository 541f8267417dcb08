"""What watches over a run: steps that are not finite, the teacher, and what the features are good for."""
