"""Evaluation: protocols (one file each), metrics as `evaluate.Metric` classes, reports, and `evaluate_model`.

Names are imported when first used, since the protocols' libraries are an extra (`pip install 'hf_geossl[eval]'`).
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from hf_geossl.evaluation.encoders import Encoder as Encoder
    from hf_geossl.evaluation.evaluate import evaluate_model as evaluate_model
    from hf_geossl.evaluation.loading import load_encoder as load_encoder
    from hf_geossl.evaluation.registry import TASKS as TASKS
    from hf_geossl.evaluation.report import markdown_table as markdown_table
    from hf_geossl.evaluation.report import read_measured as read_measured
    from hf_geossl.evaluation.report import write_report as write_report
    from hf_geossl.evaluation.samples import Columns as Columns

_HOME_OF = {
    "Columns": "samples",
    "Encoder": "encoders",
    "TASKS": "registry",
    "evaluate_model": "evaluate",
    "load_encoder": "loading",
    "markdown_table": "report",
    "read_measured": "report",
    "write_report": "report",
}

__all__ = sorted(_HOME_OF)


def __getattr__(name: str) -> object:
    if name not in _HOME_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_HOME_OF[name]}", __name__), name)
