"""Measures a model with a head on labelled images: the same numbers while training, at its end, and in any process later."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from tqdm.auto import tqdm
from transformers import PreTrainedModel

from hf_geossl.evaluation.bootstrap import metric_intervals
from hf_geossl.evaluation.metrics.metric import Metric
from hf_geossl.evaluation.protocol import TaskResult
from hf_geossl.evaluation.reading.sample_reader import Sample
from hf_geossl.evaluation.results import result_entry
from hf_geossl.tasks.finetuning.examples import Collator
from hf_geossl.tasks.finetuning.kinds import FineTuningTask
from hf_geossl.tasks.finetuning.kinds.base import Floors
from hf_geossl.tasks.finetuning.splits import Split

SHOWN = 4  # images in a picture, as many as are seen on a phone; spread over all that are measured
REPEATS, FEW_REPEATS = 1000, 100  # resamples for intervals; of average precision, which is slow


@dataclass(frozen=True)
class Measured:
    """What a model reaches on a split: the metric, what each image contributes to it, and some predictions."""

    metric: Metric[Any]
    rows: Any
    samples: Sequence[Sample]
    predictions: Sequence[Any]
    loss: float
    seconds: float

    @property
    def numbers(self) -> dict[str, float]:
        """Those of the metric."""
        return self.metric.numbers_of(self.rows)


@torch.no_grad()
def measure(
    model: PreTrainedModel,
    task: FineTuningTask,
    split: Split,
    collate: Collator,
    batch_size: int,
    *,
    with_loss: bool = False,
    progress: bool = False,
) -> Measured:
    """Measures a model on all images of a split, in float32, one after the other in batches.

    Args:
        model (`PreTrainedModel`): It is left in the mode that it is in.
        with_loss (`bool`): Whether the loss is measured too, NaN otherwise.
        progress (`bool`): Whether a progress bar is shown.
    """
    metric, started, was_training = task.make_metric(model.config), time.monotonic(), model.training
    parts, shown, predicted, losses = [], list[Sample](), list[Any](), list[float]()
    model.eval()
    at = set(np.linspace(0, len(split) - 1, min(SHOWN, len(split))).round().astype(int).tolist())
    for start in tqdm(
        range(0, len(split), batch_size), desc=f"measuring {split.name}", leave=False, disable=not progress
    ):
        samples = [split[place] for place in range(start, min(start + batch_size, len(split)))]
        pixel_values = collate.pixel_values(samples).to(model.device)
        labels = {"labels": to_device(task.labels(samples), model.device)} if with_loss else {}
        outputs = model(pixel_values=pixel_values, **labels)
        if with_loss and outputs.loss is not None:
            losses += [float(outputs.loss)] * len(samples)
        predictions = task.predictions(outputs)
        parts.append(task.rows_of(metric, predictions, samples))
        for place in sorted(at.intersection(range(start, start + len(samples)))):
            shown.append(samples[place - start])
            predicted.append(predictions[place - start])
    model.train(was_training)
    loss = sum(losses) / len(losses) if losses else float("nan")
    return Measured(metric, metric.join(parts), shown, predicted, loss, time.monotonic() - started)


def to_device(labels: Any, device: torch.device) -> Any:
    """Labels of any task on a device."""
    if isinstance(labels, torch.Tensor):
        return labels.to(device)
    return [{name: value.to(device) for name, value in one.items()} for one in labels]


def as_result(
    task: FineTuningTask, measured: Measured, split: Split, names: Sequence[str], floors: Floors, device: torch.device
) -> dict[str, Any]:
    """The result as files and cards have it: numbers, 95 % intervals over images, and what trivial predictions reach."""
    repeats = REPEATS if hasattr(measured.rows, "shape") else FEW_REPEATS
    result = TaskResult(
        measured.numbers,
        metric_intervals(measured.metric, measured.rows, repeats=repeats, seed=0),
        {"test_images": len(split), **task.details(measured.metric, measured.rows, names), "floors": floors},
        {},
    )
    return result_entry(result, {}, measured.seconds, device)


def picture_of(
    task: FineTuningTask, measured: Measured, split: Split, names: Sequence[str], name: str
) -> Callable[[], Image.Image]:
    """Draws some of the measured images with truth and prediction."""
    return lambda: task.draw(measured.samples, measured.predictions, names, f"{name}: {task.name} of {split.name}")
