"""Metrics as `evaluate.Metric` classes, one a file, that work offline.

`load("mean_iou", num_classes=17)` and `evaluate.load("<this folder>/mean_iou.py", num_classes=17)` give the same. A metric
states once what each image contributes (`rows_of`) and how contributions become numbers (`summarize`): its `compute`, and the
confidence intervals of `hf_geossl.evaluation.bootstrap`, are made of that. Average precision is that of faster-coco-eval and
scikit-learn.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from hf_geossl.evaluation.metrics.accuracy import Accuracy as Accuracy
    from hf_geossl.evaluation.metrics.coco_average_precision import COCOAveragePrecision as COCOAveragePrecision
    from hf_geossl.evaluation.metrics.corner_error import CornerError as CornerError
    from hf_geossl.evaluation.metrics.depth_errors import DepthErrors as DepthErrors
    from hf_geossl.evaluation.metrics.j_and_f import JAndF as JAndF
    from hf_geossl.evaluation.metrics.keypoint_average_precision import (
        KeypointAveragePrecision as KeypointAveragePrecision,
    )
    from hf_geossl.evaluation.metrics.mean_iou import MeanIoU as MeanIoU
    from hf_geossl.evaluation.metrics.metric import Metric
    from hf_geossl.evaluation.metrics.multilabel_average_precision import (
        MultilabelAveragePrecision as MultilabelAveragePrecision,
    )
    from hf_geossl.evaluation.metrics.pckh import PCKh as PCKh
    from hf_geossl.evaluation.metrics.r2 import R2 as R2

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


def load(name: str, **kwargs: object) -> "Metric":
    """Makes a metric.

    Args:
        name (`str`): One of `NAMES`.
        kwargs: Of the metric's class, such as `num_classes`.

    Raises:
        ValueError: If there is no such metric.
        ImportError: If its libraries are not installed.
    """
    if name not in _CLASSES:
        raise ValueError(f"name must be one of {', '.join(NAMES)}, got {name!r}")
    return _class_of(_CLASSES[name])(**kwargs)


def _class_of(name: str) -> "type[Metric]":
    try:
        module = import_module(f".{_FILE_OF[name]}", __name__)
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("hf_geossl"):
            raise
        raise ImportError(f"{name} needs {error.name}; install it with pip install 'hf_geossl[eval]'") from error
    return getattr(module, name)


def __getattr__(name: str) -> object:
    if name not in _FILE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return _class_of(name)


def __dir__() -> list[str]:
    return [*globals(), *__all__]
