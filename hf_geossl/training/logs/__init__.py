"""What a run logs and prints."""
