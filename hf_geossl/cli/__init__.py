"""The command `geossl`."""

from hf_geossl.cli.main import main

__all__ = ["main"]
