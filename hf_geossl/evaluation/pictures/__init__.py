"""Pictures of an evaluation: truths beside predictions, curves with their bands, confusions, and features as colours."""

try:
    import matplotlib  # noqa: F401
except ImportError as error:
    raise ImportError("pictures need matplotlib: pip install 'hf_geossl[eval]'") from error
