"""Evaluation: protocols (one file each), metrics as `evaluate.Metric` classes, reports, and `evaluate_model`.

Names are imported when first used, since the protocols' libraries are an extra (`pip install 'hf_geossl[eval]'`).
"""

from importlib import import_module
from typing import Any

_HOME_OF = {
    "Columns": "samples",
    "Encoder": "encoders",
    "TASK_FILES": "registry",
    "evaluate_model": "evaluate",
    "load_encoder": "encoders",
    "markdown_table": "report",
    "read_measured": "report",
    "write_report": "report",
}

__all__ = sorted(_HOME_OF)


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_HOME_OF[name]}", __name__), name)
