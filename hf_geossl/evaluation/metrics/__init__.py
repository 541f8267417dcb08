"""Metrics as `evaluate.Metric` classes, one a file, that work offline.

`load("mean_iou", num_classes=17)` and `evaluate.load("<this folder>/mean_iou.py", num_classes=17)` give the same. Numbers are
those of torchmetrics, faster-coco-eval and scikit-learn; J and F, corner error and PCKh, which they lack, are computed here.
Beside the class, a metric that adds up over images has `sums_of` and `summarize` for `hf_geossl.evaluation.bootstrap`.
"""

from importlib import import_module
from typing import Any

_CLASSES = {
    "accuracy": "Accuracy",
    "coco_average_precision": "COCOAveragePrecision",
    "corner_error": "CornerError",
    "depth_errors": "DepthErrors",
    "j_and_f": "JAndF",
    "keypoint_average_precision": "KeypointAveragePrecision",
    "mean_iou": "MeanIoU",
    "multilabel_average_precision": "MultilabelAveragePrecision",
    "pckh": "PCKh",
    "r2": "R2",
}
_FILE_OF = {class_name: name for name, class_name in _CLASSES.items()}

NAMES = tuple(_CLASSES)

__all__ = ["NAMES", "load", *_FILE_OF]


def load(name: str, **kwargs: Any) -> Any:
    """Args:
        name (`str`): One of `NAMES`.
        kwargs: Of the metric's class, such as `num_classes`.

    Returns:
        `evaluate.Metric`.

    Raises:
        ValueError: If there is no such metric.
        ImportError: If its libraries are not installed.
    """
    if name not in _CLASSES:
        raise ValueError(f"name must be one of {', '.join(NAMES)}, got {name!r}")
    return __getattr__(_CLASSES[name])(**kwargs)


def __getattr__(name: str) -> Any:
    if name not in _FILE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        module = import_module(f".{_FILE_OF[name]}", __name__)
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("hf_geossl"):
            raise
        raise ImportError(f"{name} needs {error.name}; install it with pip install 'hf_geossl[eval]'") from error
    return getattr(module, name)


def __dir__() -> list[str]:
    return [*globals(), *__all__]
