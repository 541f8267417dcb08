"""The version of the library, the one place that it stands in; setup.py reads it too."""

__version__ = "0.1.0"
