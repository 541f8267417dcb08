"""Self-supervised vision transformers that keep geometry, for the Hugging Face stack."""

__version__ = "0.1.0"
