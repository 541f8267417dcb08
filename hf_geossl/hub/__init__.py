"""Model folders, their cards, and their way to the Hub."""
