"""Orientation of objects: ridge regression of an object's angle from the patch tokens in its box."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from sklearn.linear_model import RidgeCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torchvision.ops import roi_align

from hf_geossl.data import MODES, THING_CLASSES
from hf_geossl.evaluation.encoders import Encoder, mixed_precision
from hf_geossl.evaluation.options import EvaluationData, EvaluationOptions
from hf_geossl.evaluation.protocol import EvaluationProtocol, TaskResult
from hf_geossl.evaluation.samples import Samples
from hf_geossl.evaluation.settings import ProtocolSettings, Scale, Work

ALPHAS = tuple(10.0**exponent for exponent in range(-2, 6))


@dataclass(frozen=True)
class OrientationSettings(ProtocolSettings):
    """Whose angle is regressed. Kites are the objects of the scenes that are seen at any angle; from above every object is.

    Args:
        categories (`Sequence[str]`): Names of objects.
        mode (`str`, *optional*): Of the scenes: "scene", "topdown" or "object"; the data's by default.
        smallest_side (`float`): Of a box, as a share of the image's: smaller boxes are left out.
        pooled_side (`int`): The tokens of a box are averaged in so many rows and columns; with 1 there is no layout, so that
            the angle must be in the tokens themselves.
    """

    categories: Sequence[str] = ("kite",)
    mode: str | None = None
    smallest_side: float = 1 / 12
    pooled_side: int = 1

    def work(self, scale: Scale) -> Work:
        """See `ProtocolSettings`."""
        kind = "images" if self.mode is None else f"images, {self.mode}"
        return Work({kind: scale.images}, 2 * scale.images)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.mode is not None and self.mode not in MODES:
            raise ValueError(f"mode must be one of {', '.join(MODES)}, or None for the data's, got {self.mode!r}")
        unknown = sorted(set(self.categories) - set(THING_CLASSES))
        if unknown or not self.categories:
            raise ValueError(f"categories must be of {', '.join(THING_CLASSES)}, got {unknown or 'none'}")


def angular_errors(predictions: np.ndarray, angles: np.ndarray) -> np.ndarray:
    """Degrees, 0 to 180, between predicted directions `(objects, 2)`, cosine and sine of any length, and angles in radians."""
    differences = np.arctan2(predictions[:, 1], predictions[:, 0]) - angles
    return np.degrees(np.abs((differences + math.pi) % (2 * math.pi) - math.pi))


def measure_orientation(
    encoder: Encoder, data: EvaluationData, options: EvaluationOptions, settings: OrientationSettings
) -> TaskResult:
    """Mean angular error of ridge regression from the patch tokens in true boxes of scenes, pooled by RoIAlign.

    Cosine and sine are regressed, with a penalty that is chosen by leave-one-out on the training objects. Metrics are
    `angular_error` in degrees (90 by chance) and `within_30_degrees`, a share; beside them the same from random weights, and
    predicting the mean direction.

    Raises:
        ValueError: If the data have no angles, or hardly any such object.
    """
    if not data.is_scenes:
        raise ValueError(f"orientation needs the angles of objects, which the scenes have and {data.dataset} has not")
    mode = settings.mode or data.mode
    contenders = {"": encoder, "random_weights": encoder.random_twin(options.seed)}
    splits = [
        _collect(list(contenders.values()), data.samples(split, mode=mode), options, settings)
        for split in (data.train_split, data.test_split)
    ]
    (train_features, train_angles), (test_features, test_angles) = splits
    if len(train_angles) < 8 or len(test_angles) < 2:
        raise ValueError(
            f"orientation needs at least 8 objects to train on and 2 to test, got {len(train_angles)} and "
            f"{len(test_angles)} of {', '.join(settings.categories)} (mode {mode}): take more images, or further categories"
        )
    targets = np.stack([np.cos(train_angles), np.sin(train_angles)], axis=1)
    mean = np.broadcast_to(targets.mean(axis=0), (len(test_angles), 2))
    errors = {"mean_direction": angular_errors(mean, test_angles)}
    penalties = {}
    for name, train, test in zip(contenders, train_features, test_features, strict=True):
        model = make_pipeline(StandardScaler(), RidgeCV(ALPHAS))
        errors[name] = angular_errors(model.fit(train, targets).predict(test), test_angles)
        penalties[name or "model"] = float(model[-1].alpha_)
    rows = {name: np.stack([e, e <= 30, np.ones_like(e)], axis=1) for name, e in errors.items()}
    numbers = {name: _summarize(one.sum(axis=0)) for name, one in rows.items()}
    metrics, intervals = numbers.pop(""), options.intervals(_summarize, rows[""])

    def draw() -> Image.Image:
        from hf_geossl.evaluation.pictures.charts import bars

        values = {encoder.name: metrics, **{name.replace("_", " "): value for name, value in numbers.items()}}
        return bars(
            {name: value["angular_error"] for name, value in values.items()},
            intervals={encoder.name: intervals["angular_error"]} if intervals else None,
            ylabel="mean angular error in degrees",
            title=f"Angle of {', '.join(settings.categories)}, mode {mode}",
        )

    details = {
        "settings": asdict(settings),
        "mode": mode,
        "train_objects": len(train_angles),
        "test_objects": len(test_angles),
        "ridge": penalties,
        "floors": numbers,
    }
    return TaskResult(metrics, intervals, details, {"errors": draw})


@torch.no_grad()
def _collect(
    encoders: list[Encoder], samples: Samples, options: EvaluationOptions, settings: OrientationSettings
) -> tuple[list[np.ndarray], np.ndarray]:
    """Pooled tokens `(objects, features)` of each encoder, and the angles `(objects,)`."""
    wanted = torch.tensor([THING_CLASSES.index(name) for name in settings.categories])
    features: list[list[np.ndarray]] = [[] for _ in encoders]
    angles = []
    for batch in options.batches(samples, f"objects of {samples.name}"):
        boxes, images = [], []
        for image, *truth in zip(batch["image"], batch["boxes"], batch["categories"], batch["angles"], strict=True):
            sides = (truth[0][:, 2:] - truth[0][:, :2]).amin(dim=1)
            chosen = torch.isin(truth[1], wanted) & (sides >= settings.smallest_side * samples.size)
            if chosen.any():
                images.append(image)
                boxes.append(truth[0][chosen])
                angles.append(truth[2][chosen])
        for one, parts in zip(encoders, features, strict=True) if images else ():
            parts.append(_pool(one, torch.stack(images), boxes, settings.pooled_side))
    if not angles:
        return [np.zeros((0, 1)) for _ in encoders], np.zeros(0)
    return [np.concatenate(parts) for parts in features], torch.cat(angles).double().numpy()


def _pool(encoder: Encoder, images: torch.Tensor, boxes: list[torch.Tensor], side: int) -> np.ndarray:
    with mixed_precision(encoder.device):
        patches = encoder.tokens(encoder.normalize(images)).patches
    pooled: Any = roi_align(
        patches.permute(0, 3, 1, 2).float(),
        [box.to(patches.device) for box in boxes],
        output_size=side,
        spatial_scale=1 / encoder.patch_size,
        aligned=True,
    )
    return pooled.flatten(1).cpu().numpy()


def _summarize(sums: np.ndarray) -> dict[str, float]:
    return {"angular_error": float(sums[0] / sums[2]), "within_30_degrees": float(sums[1] / sums[2])}


PROTOCOLS = {"orientation": EvaluationProtocol(measure_orientation, OrientationSettings)}
