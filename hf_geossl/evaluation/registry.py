"""The tasks by name, with a description of each that needs no import: only the standard library is needed here."""

import difflib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec

from hf_geossl.methods import METHODS

ALL = "all"
DEFAULT_TASKS = ("knn", "linear")
RESULTS = "results.json"  # in a model's folder
ABOUT, FAILED = "about", "failed"  # entries of results beside the tasks
SCENES = "scenes"  # the name of the embedded dataset
TIMM = "timm:"  # what names of timm's models begin with

# packages of the extra `eval` that tasks need, and the modules that some of them are imported as
_BASE = ("evaluate",)
_LINEAR, _VIDEO, _COCO = (*_BASE, "scikit-learn"), (*_BASE, "scipy"), (*_BASE, "faster-coco-eval")
_MODULES = {"scikit-learn": "sklearn", "faster-coco-eval": "faster_coco_eval"}


@dataclass(frozen=True)
class Task:
    """A task of evaluation, which a protocol measures.

    Args:
        name (`str`): Its name.
        file (`str`): Its module in `hf_geossl.evaluation.protocols`, see `load_protocol`.
        summary (`str`): The protocol in a line, for `--help` and reports.
        packages (`tuple[str, ...]`): Those of the extra `eval` that it needs.
    """

    name: str
    file: str
    summary: str
    packages: tuple[str, ...] = ()

    @property
    def missing_requirement(self) -> str | None:
        """One sentence on a package that is not installed; None where nothing is missing."""
        for package in self.packages:
            if find_spec(_MODULES.get(package, package)) is None:
                return missing_package(self.name, package)
        return None


def _table(*rows: tuple[str, str, tuple[str, ...], str]) -> dict[str, Task]:
    return {name: Task(name, file, summary, packages) for name, file, packages, summary in rows}


# in the order of reports
TASKS: dict[str, Task] = _table(
    ("knn", "knn", _LINEAR, "class of an image by its nearest neighbours (k = 10, 20, 100, 200)"),
    ("linear", "linear", _LINEAR, "class of an image by logistic regression"),
    ("linear_sgd", "linear_sgd", _LINEAR, "class of an image by a linear layer, trained as DINO and iBOT do"),
    ("multilabel", "linear", _LINEAR, "objects in an image by one logistic regression each"),
    ("rotation", "linear", _LINEAR, "by which quarter turn an image is turned, linear probe"),
    *((own.name, own.file, own.packages, own.summary) for method in METHODS.values() for own in method.tasks),
    (
        "equivariance",
        "equivariance",
        _LINEAR,
        "rotation, translation, colour change and blur by features of both images",
    ),
    ("orientation", "orientation", _LINEAR, "angle of kites from the tokens in their boxes: mean error in degrees"),
    ("segmentation", "segmentation", _BASE, "semantic segmentation, linear map of frozen patch tokens (mean IoU)"),
    (
        "segmentation_few_shot",
        "segmentation",
        _BASE,
        "semantic segmentation, fine-tuned on 1/32, 1/8 and all images (mean IoU)",
    ),
    (
        "segmentation_finetune",
        "segmentation",
        _BASE,
        "semantic segmentation, linear decoder fine-tuned end to end (mean IoU)",
    ),
    ("semantic_fpn", "segmentation", _BASE, "semantic segmentation, Semantic FPN trained end to end (mean IoU)"),
    ("upernet", "segmentation", _BASE, "semantic segmentation, UPerNet with a rescale neck, end to end (mean IoU)"),
    ("depth", "depth", _BASE, "depth, linear map of frozen patch tokens to log metres (AbsRel, RMSE, delta1)"),
    ("depth_dpt", "depth", _BASE, "depth, DPT trained end to end (AbsRel, RMSE, delta1)"),
    ("detection", "detection", _COCO, "boxes and masks of objects, Mask R-CNN end to end: COCO average precision"),
    ("homography", "homography", _BASE, "displacement of four corners between two patches: mean corner error"),
    ("propagation", "propagation", _VIDEO, "label propagation in clips without training: J, F and their mean"),
    ("keypoints", "keypoints", _COCO, "keypoints by heatmaps in true boxes, end to end: OKS AP and PCK"),
)


def missing_package(task: str, module: str | None) -> str:
    """The message where a library is missing that a task needs."""
    return f"{task} needs {(module or 'a package').split('.')[0]}, which is missing: pip install 'hf_geossl[eval]'"


def nearest(word: str, valid: Sequence[str], what: str) -> str:
    """The end of an error message: the valid word that is closest to a wrong one, or all of them."""
    close = difflib.get_close_matches(word, valid, n=1, cutoff=0.4)
    return f"; did you mean {close[0]!r}?" if close else f"; {what} are {', '.join(valid)}"


def named_tasks(tasks: str | Iterable[str]) -> list[str]:
    """The names as they were given, in one text with commas or one by one."""
    return [name.strip() for name in (tasks.split(",") if isinstance(tasks, str) else tasks)]


def check_tasks(tasks: str | Iterable[str]) -> list[str]:
    """Checks names of tasks.

    Args:
        tasks (`str` or `Iterable[str]`): Names, in one text with commas or one by one; `"all"` for all of them.

    Returns:
        `list[str]`: Each once, in the order of `TASKS`.

    Raises:
        ValueError: If there is no such task.
    """
    names = named_tasks(tasks)
    for name in names:
        if name not in TASKS and name != ALL:
            raise ValueError(f"there is no task {name!r}{nearest(name, list(TASKS), 'tasks')}")
    if not names:
        raise ValueError(f"name at least one task of {', '.join(TASKS)}")
    return [name for name in TASKS if name in names or ALL in names]


def describe_tasks() -> dict[str, str]:
    """The summary of every task, and which package it needs where that is missing; nothing is imported."""
    lines = {}
    for name, task in TASKS.items():
        missing = task.missing_requirement
        lines[name] = task.summary if missing is None else f"{task.summary} ({missing})"
    return lines
