"""The tasks that a model is fine-tuned for, a file each."""

from hf_geossl.tasks.finetuning.kinds.base import FineTuningTask
from hf_geossl.tasks.finetuning.kinds.classification import ImageClassification
from hf_geossl.tasks.finetuning.kinds.depth import DepthEstimation
from hf_geossl.tasks.finetuning.kinds.detection import ObjectDetection
from hf_geossl.tasks.finetuning.kinds.segmentation import SemanticSegmentation

KINDS: dict[str, type[FineTuningTask]] = {
    kind.name: kind for kind in (ImageClassification, SemanticSegmentation, DepthEstimation, ObjectDetection)
}


def find_task(name: str) -> FineTuningTask:
    """A task by its name; `ValueError` names those that there are."""
    if name not in KINDS:
        raise ValueError(f"task must be one of {', '.join(KINDS)}, got {name!r}")
    return KINDS[name]()


def task_of(architecture: str) -> FineTuningTask:
    """The task that the models of a class do, such as `"GTSAForSemanticSegmentation"`.

    Raises:
        ValueError: If they do none of those here.
    """
    kind = next((kind for kind in KINDS.values() if architecture.endswith(kind.suffix)), None)
    if kind is None:
        raise ValueError(
            f"the model must be one of {', '.join(f'...{kind.suffix}' for kind in KINDS.values())}, got {architecture}"
        )
    return kind()
