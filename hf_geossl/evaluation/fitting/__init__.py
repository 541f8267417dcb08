"""Training heads on features, alone or together with the trunk, and scoring what they predict."""
