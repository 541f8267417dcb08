"""Semantic segmentation by a linear map of each frozen patch token.

Images are squares of one size (see `Samples`), so that numbers on ADE20k are not those of papers, which keep the aspect ratio.
"""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch

from hf_geossl.evaluation.encoders import Encoder
from hf_geossl.evaluation.features import compute_features
from hf_geossl.evaluation.fitting.dense_training import require, shuffled_rows
from hf_geossl.evaluation.fitting.fit import fit, seeded
from hf_geossl.evaluation.fitting.segmenters import Batch, Scored, class_names, score
from hf_geossl.evaluation.heads.segmentation import LinearHead, pixel_cross_entropy, upsample
from hf_geossl.evaluation.options import EvaluationData, EvaluationOptions
from hf_geossl.evaluation.protocol import EvaluationProtocol, TaskResult
from hf_geossl.evaluation.settings import check_settings


@dataclass(frozen=True)
class LinearSegmentationSettings:
    """A linear map of frozen patch tokens.

    The defaults are of desk scale; DINOv2 (arXiv 2304.07193) trains 40,000 steps of 16 images of 512 pixels, warm-up 1500, with
    the same optimizer.

    Args:
        steps (`int`): Optimizer steps.
        batch_size (`int`): Images a step.
        learning_rate, weight_decay (`float`): Of AdamW.
        warmup_steps (`int`): Steps in which the learning rate rises; then it falls linearly.
        num_classes (`int`, *optional*): Where the dataset does not name its classes; by default the largest label of the training images is
            the last class.
        random_floor (`bool`): Whether the same architecture with random weights is measured too.
    """

    steps: int = 1000
    batch_size: int = 16
    learning_rate: float = 1e-3
    weight_decay: float = 1e-4
    warmup_steps: int = 50
    num_classes: int | None = None
    random_floor: bool = True

    def __post_init__(self) -> None:
        check_settings(self)


def measure_linear_segmentation(
    encoder: Encoder, data: EvaluationData, options: EvaluationOptions, settings: LinearSegmentationSettings
) -> TaskResult:
    """Mean IoU of a linear map of frozen patch tokens after a BatchNorm, brought to the size of the images.

    Args:
        encoder (`Encoder`): The model.
        data (`EvaluationData`): With `semantic` maps in both splits.
        options (`EvaluationOptions`): How to evaluate.
        settings (`LinearSegmentationSettings`): The protocol's own numbers.

    Returns:
        `TaskResult`: `mean_iou`, `pixel_accuracy`, `mean_class_accuracy`; IoU by class and floors in the details.

    Raises:
        ValueError: If the data have no semantic maps.
    """
    names = class_names(data.train, settings.num_classes, options, encoder)
    require(data.test, "semantic")
    scored = _score_frozen(encoder, data, options, settings, names)
    floors = {}
    if settings.random_floor:
        twin = encoder.random_twin(options.seed)
        floors["random_weights"] = _score_frozen(twin, data, options, settings, names).numbers["mean_iou"]
    title = f"{encoder.name}: linear segmentation of frozen tokens"
    return scored.result(options, title, {"settings": asdict(settings), "floors": floors})


def _score_frozen(
    encoder: Encoder,
    data: EvaluationData,
    options: EvaluationOptions,
    settings: LinearSegmentationSettings,
    names: tuple[str, ...],
) -> Scored:
    train = compute_features(encoder, data.train, ["patches", "semantic"], options)
    test = compute_features(encoder, data.test, ["patches", "semantic", "image"], options)
    device = encoder.device

    def on_device(array: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(np.array(array)).to(device)

    def batches() -> Iterator[dict[str, Any]]:
        for rows in shuffled_rows(len(train["patches"]), settings.batch_size, options.seed):
            yield {name: on_device(column[rows]) for name, column in train.items()}

    with seeded(options.seed, device):
        head = LinearHead(encoder.width, len(names), standardize=True).to(device)
        fit(
            torch.optim.AdamW(head.parameters(), settings.learning_rate, weight_decay=settings.weight_decay),
            lambda batch: pixel_cross_entropy(head.classify(batch["patches"]), batch["semantic"]),
            batches(),
            options,
            steps=settings.steps,
            description=f"{encoder.name}: linear segmentation",
            warmup_steps=settings.warmup_steps,
        )
    head.eval()

    def predictions() -> Iterator[Batch]:
        for start in range(0, len(test["patches"]), options.batch_size):
            rows = slice(start, start + options.batch_size)
            truth = torch.from_numpy(np.array(test["semantic"][rows]))
            with torch.no_grad():
                logits = upsample(head.classify(on_device(test["patches"][rows])), truth.shape[-2:])
            yield torch.from_numpy(np.array(test["image"][rows])), truth, logits.argmax(dim=1)

    return score(predictions(), names)


PROTOCOLS = {"segmentation": EvaluationProtocol(measure_linear_segmentation, LinearSegmentationSettings)}
