"""What a run leaves behind: exports, their record, and pushes to the Hub."""
