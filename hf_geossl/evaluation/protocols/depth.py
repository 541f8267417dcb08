"""Depth of every pixel by a linear map of frozen patch tokens."""

import math
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch

from hf_geossl.evaluation.encoders import Encoder
from hf_geossl.evaluation.features import compute_features
from hf_geossl.evaluation.fitting.dense_training import require, shuffled_rows
from hf_geossl.evaluation.fitting.depth_scores import (
    EvalCrop,
    ScoredDepth,
    check_depth_settings,
    mean_log_depth,
    score_depth,
)
from hf_geossl.evaluation.fitting.fit import fit, seeded
from hf_geossl.evaluation.fitting.segmenters import Batch
from hf_geossl.evaluation.heads.depth import LinearDepthHead, silog_loss
from hf_geossl.evaluation.options import EvaluationData, EvaluationOptions
from hf_geossl.evaluation.protocol import EvaluationProtocol, TaskResult
from hf_geossl.evaluation.settings import check_settings


@dataclass(frozen=True)
class LinearDepthSettings:
    """A linear map of frozen patch tokens to log depth; the defaults are of desk scale.

    Args:
        steps (`int`): Optimizer steps.
        batch_size (`int`): Images a step.
        learning_rate, weight_decay (`float`): Of AdamW.
        warmup_steps (`int`): Steps in which the learning rate rises; then it falls linearly.
        cap (`float`): Metres from which on depths do not count: 80 on scenes (where the sky is) and KITTI, 10 on NYU.
        eval_crop (`str`, *optional*): Test pixels that count, see `crop_mask`: "eigen" on NYU, "garg" on KITTI; all by
            default. It is taken in parts of the map that is measured, which `Samples` cuts as a square out of the image.
        random_floor (`bool`): Whether the same architecture with random weights is measured too.
    """

    steps: int = 1000
    batch_size: int = 16
    learning_rate: float = 3e-3
    weight_decay: float = 1e-4
    warmup_steps: int = 50
    cap: float = 80.0
    eval_crop: EvalCrop = None
    random_floor: bool = True

    def __post_init__(self) -> None:
        check_settings(self)
        check_depth_settings(self.cap, self.eval_crop)


def measure_linear_depth(
    encoder: Encoder, data: EvaluationData, options: EvaluationOptions, settings: LinearDepthSettings
) -> TaskResult:
    """Errors of depths that are read linearly, in their logarithm, from frozen patch tokens.

    Args:
        encoder (`Encoder`): The model.
        data (`EvaluationData`): With `depth` in both splits.
        options (`EvaluationOptions`): How to evaluate.
        settings (`LinearDepthSettings`): The protocol's own numbers.

    Returns:
        `TaskResult`: `abs_rel`, `rmse` (metres), `delta1`; in the details AbsRel of the floors: random weights, and the
        training pixels' geometric mean everywhere.

    Raises:
        ValueError: If the data have no depth, or none between 1 mm and the cap.
    """
    require(data.train, "depth")
    require(data.test, "depth")
    scored, constant = _score_frozen(encoder, data, options, settings)
    floors = {"constant": constant}
    if settings.random_floor:
        random, _ = _score_frozen(encoder.random_twin(options.seed), data, options, settings)
        floors["random_weights"] = random.numbers["abs_rel"]
    title = f"{encoder.name}: linear depth of frozen tokens"
    return scored.result(options, title, {"settings": asdict(settings), "floors": floors})


def _score_frozen(
    encoder: Encoder, data: EvaluationData, options: EvaluationOptions, settings: LinearDepthSettings
) -> tuple[ScoredDepth, float]:
    """The score of the head's predictions, and the AbsRel of one depth everywhere."""
    train = compute_features(encoder, data.train, ["patches", "depth"], options)
    test = compute_features(encoder, data.test, ["patches", "depth", "image"], options)
    device = encoder.device
    mean = mean_log_depth(train["depth"], settings.cap)

    def on_device(array: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(np.array(array)).to(device)

    def batches() -> Iterator[dict[str, Any]]:
        for rows in shuffled_rows(len(train["patches"]), settings.batch_size, options.seed):
            yield {name: on_device(column[rows]) for name, column in train.items()}

    def compute_loss(batch: dict[str, Any]) -> torch.Tensor:
        return silog_loss(head(batch["patches"], batch["depth"].shape[-2:]), batch["depth"], settings.cap)

    with seeded(options.seed, device):
        head = LinearDepthHead(encoder.width, mean).to(device)
        fit(
            torch.optim.AdamW(head.parameters(), settings.learning_rate, weight_decay=settings.weight_decay),
            compute_loss,
            batches(),
            options,
            steps=settings.steps,
            description=f"{encoder.name}: linear depth",
            warmup_steps=settings.warmup_steps,
        )
    head.eval()

    def predictions(predict: Callable[[slice, torch.Tensor], torch.Tensor]) -> Iterator[Batch]:
        for start in range(0, len(test["patches"]), options.batch_size):
            rows = slice(start, start + options.batch_size)
            truth = torch.from_numpy(np.array(test["depth"][rows]))
            with torch.no_grad():
                yield torch.from_numpy(np.array(test["image"][rows])), truth, predict(rows, truth)

    scored = score_depth(
        predictions(lambda rows, truth: head(on_device(test["patches"][rows]), truth.shape[-2:]).exp()),
        settings.cap,
        settings.eval_crop,
    )
    constant = predictions(lambda rows, truth: torch.full_like(truth, math.exp(mean)))
    return scored, score_depth(constant, settings.cap, settings.eval_crop).numbers["abs_rel"]


PROTOCOLS = {"depth": EvaluationProtocol(measure_linear_depth, LinearDepthSettings)}
