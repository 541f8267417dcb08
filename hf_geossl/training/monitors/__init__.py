"""What watches over a run."""
