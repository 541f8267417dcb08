"""The command `geossl`: `main`, and one module a command."""

from hf_geossl.cli.main import main

__all__ = ["main"]
