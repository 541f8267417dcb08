"""Keypoints of objects: a plain head on the trunk predicts a heatmap of each point from a crop of the object (ViTPose)."""

import itertools
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn
from transformers.models.vitpose.image_processing_vitpose import (
    get_keypoint_predictions,
    post_dark_unbiased_data_processing,
)

from hf_geossl.evaluation.bootstrap import metric_intervals
from hf_geossl.evaluation.encoders import Encoder, mixed_precision
from hf_geossl.evaluation.fitting.fit import EndToEndTraining, fit_with_trunk, seeded
from hf_geossl.evaluation.fitting.object_crops import SCENE_POINTS, Crops, object_crops
from hf_geossl.evaluation.heads.operations import count_operations
from hf_geossl.evaluation.metrics.coco_average_precision import Row
from hf_geossl.evaluation.metrics.keypoint_average_precision import COCO_SIGMAS, KeypointAveragePrecision
from hf_geossl.evaluation.metrics.pckh import PCKh
from hf_geossl.evaluation.options import EvaluationData, EvaluationOptions
from hf_geossl.evaluation.protocol import RANDOM_WEIGHTS, EvaluationProtocol, TaskResult
from hf_geossl.evaluation.protocols.detection import PRECISION_REPEATS
from hf_geossl.evaluation.settings import Scale
from hf_geossl.modeling.dense_heads import full_precision

COCO_POINTS = (
    *("nose", "left eye", "right eye", "left ear", "right ear", "left shoulder", "right shoulder", "left elbow"),
    *("right elbow", "left wrist", "right wrist", "left hip", "right hip", "left knee", "right knee", "left ankle"),
    "right ankle",
)
HEAD_SHARE = 0.2  # of the longer side of the box: the stand-in for the size of a head in PCK
SHOWN = 8
MEAN_PLACES = "mean_places"
MEAN_BATCHES = 32  # of training images, for the floor of mean places


@dataclass(frozen=True)
class KeypointsSettings(EndToEndTraining):
    """How the head and the trunk under it are trained.

    As published (ViTPose, arXiv 2204.12484): crops of 256 x 192 (here: squares), 256 channels, AdamW 5e-4, weight decay .1,
    layer decay .75 (ViT-B), batch 512, 210 epochs, no gradient above 1. The defaults are of desk scale in channels, batch and
    steps.

    Args:
        images_per_step (`int`): Images whose objects make a batch.
        channels (`int`): Of the two transposed convolutions.
        crop_size (`int`, *optional*): Side of the crops in pixels; by default that of the images.
        margin (`float`): The crop's side over the box's longer side.
        sigma (`float`): Of the Gaussians in the heatmaps, in their pixels.
        smallest_side (`float`): Of a box, its longer side, as a share of the image's: smaller ones are left out.
        score_sigma (`float`): OKS's tolerance at each point of data other than COCO's 17 points, as a share of the square root
            of the object's area.
        others: As in `EndToEndTraining`.
    """

    warmup_steps: int = 20
    images_per_step: int = 4
    layer_decay: float = 0.75
    channels: int = 64
    crop_size: int | None = None
    margin: float = 1.25
    sigma: float = 2.0
    smallest_side: float = 1 / 8
    score_sigma: float = 0.1

    PER_IMAGE = 5  # objects, of the scenes

    def head_operations(self, scale: Scale) -> tuple[float, float]:
        """See `ProtocolSettings`."""
        side = math.isqrt(scale.tokens)
        shape, points = (1, side, side, scale.width), len(COCO_POINTS)
        count = count_operations(lambda: KeypointHead(scale.width, self.channels, points).eval()(torch.empty(shape)))
        return count, count

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.margin < 1:
            raise ValueError(f"margin must be at least 1, got {self.margin}")
        if min(self.sigma, self.score_sigma) <= 0:
            raise ValueError(f"sigma and score_sigma must be above 0, got {self.sigma} and {self.score_sigma}")


class KeypointHead(nn.Module):
    """ViTPose's classic head: two transposed convolutions with BatchNorm and ReLU, each doubling the map, and a 1 x 1 one."""

    def __init__(self, width: int, channels: int, points: int) -> None:
        super().__init__()
        last = nn.Conv2d(channels, points, 1)
        nn.init.normal_(last.weight, std=0.001)
        self.layers = nn.Sequential(
            nn.ConvTranspose2d(width, channels, 4, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(channels),
            nn.ReLU(),
            nn.ConvTranspose2d(channels, channels, 4, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(channels),
            nn.ReLU(),
            last,
        )

    def forward(self, patches: torch.Tensor) -> torch.Tensor:
        """Patch tokens `(batch, rows, columns, width)` -> heatmaps `(batch, points, 4 * rows, 4 * columns)`."""
        return self.layers(patches.permute(0, 3, 1, 2))


def draw_heatmaps(
    points: torch.Tensor, frames: torch.Tensor, side: int, sigma: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Target heatmaps `(objects, points, side, side)`, 1 at the point, and weights `(objects, points)`.

    A weight is 1 where the point is labelled and lies in the crop.

    Args:
        points (`torch.Tensor` of shape `(objects, points, 3)`): x, y in pixels of the image, and 0 where not labelled.
        frames (`torch.Tensor` of shape `(objects, 3)`): Left, top and side of the crops in the image.
        sigma (`float`): Of the Gaussians, in pixels of the heatmaps.
    """
    places = (points[..., :2] - frames[:, None, :2]) / frames[:, None, 2:] * side  # from the first pixel's corner
    inside = ((places >= 0) & (places <= side)).all(dim=-1) & (points[..., 2] > 0)
    line = torch.arange(side, device=points.device) + 0.5
    x, y = ((line - places[..., axis, None]).square() for axis in (0, 1))  # (objects, points, side)
    return torch.exp(-(x[:, :, None, :] + y[:, :, :, None]) / (2 * sigma**2)), inside.float()


def decode_heatmaps(heatmaps: np.ndarray, frames: np.ndarray, sigma: float) -> tuple[np.ndarray, np.ndarray]:
    """Points `(objects, points, 2)` in pixels of the image, and scores `(objects, points)` of predicted heatmaps.

    A point is the maximum, moved by less than a pixel to the peak of the parabola through the logarithm around it (DARK, arXiv
    1910.06278, as in transformers' ViTPose).
    """
    side = heatmaps.shape[-1]
    coarse, scores = get_keypoint_predictions(heatmaps)
    coarse = np.maximum(coarse, 0)  # where no value is above 0
    kernel = 2 * math.ceil(2.5 * sigma) + 1
    fine = post_dark_unbiased_data_processing(coarse.copy(), heatmaps, kernel=kernel)
    places = coarse + np.clip(fine.reshape(coarse.shape) - coarse, -1, 1) + 0.5
    return frames[:, None, :2] + places / side * frames[:, None, 2:], scores[..., 0]


@dataclass
class _Score:
    """What one model's points, or the mean places, are measured by: rows of OKS and of PCK."""

    precision: KeypointAveragePrecision
    correct: PCKh
    precision_rows: list[Row] = field(default_factory=list)
    correct_rows: list[np.ndarray] = field(default_factory=list)

    def add(self, crops: Crops, points: np.ndarray, scores: np.ndarray) -> None:
        """Takes the objects of a batch in, image by image."""
        sources, true, areas = (part.cpu().numpy() for part in (crops.sources, crops.points, crops.areas))
        for image in np.unique(sources):
            chosen = sources == image
            self.precision_rows += self.precision.rows_of(
                [{"keypoints": points[chosen], "scores": scores[chosen]}],
                [{"keypoints": true[chosen], "area": areas[chosen]}],
            )
        sizes = HEAD_SHARE * (crops.boxes[:, 2:] - crops.boxes[:, :2]).amax(dim=1)
        self.correct_rows.append(self.correct.rows_of(points, true[..., :2], sizes, true[..., 2] > 0))

    @property
    def rows(self) -> np.ndarray:
        """Of PCK, `(objects, 2 * points)`."""
        return self.correct.join(self.correct_rows)

    def numbers(self, names: Sequence[str]) -> dict[str, float]:
        """Average precision, PCK, and PCK of each point."""
        return {**self.precision.summarize(self.precision_rows), **self.pck(names, self.rows.sum(axis=0))}

    def pck(self, names: Sequence[str], total: np.ndarray) -> dict[str, float]:
        """PCK, and of each point."""
        each = self.correct.details(total)["pckh_per_joint"]
        of_points = {f"pck_{name.replace(' ', '_')}": value for name, value in zip(names, each, strict=True)}
        return {"pck": self.correct.summarize(total)["pckh"], **of_points}

    def intervals(self, names: Sequence[str], options: EvaluationOptions) -> dict[str, tuple[float, float]]:
        """Of all numbers; average precision, which is slow, has fewer repeats."""
        repeats = min(options.bootstrap, PRECISION_REPEATS)
        return {
            **metric_intervals(self.precision, self.precision_rows, repeats=repeats, seed=options.seed),
            **options.intervals(partial(self.pck, names), self.rows),
        }


def measure_keypoints(
    encoder: Encoder, data: EvaluationData, options: EvaluationOptions, settings: KeypointsSettings
) -> TaskResult:
    """OKS average precision and PCK@.5 of keypoints in true boxes, trunk and head trained end to end.

    Data are scenes (see `scene_keypoints`), or have keypoints in their `objects`. Metrics are `keypoint_ap`, `keypoint_ap50`,
    `keypoint_ap75`, `pck`, and `pck_POINT` for each point; beside them those of the points' mean places in the training
    boxes. The "head size" of PCK is a fifth of the box's longer side.

    Raises:
        ValueError: If the data have no keypoints, or the crop's side is no multiple of the patch size.
    """
    side = settings.crop_size or data.size
    if side % encoder.patch_size:
        raise ValueError(
            f"the crop's side must be a multiple of {encoder.name}'s patch size {encoder.patch_size}, got {side}"
        )
    run = _Run(data, options, settings, encoder.device)
    places, names = run.mean_places()
    models = {"": encoder, **({RANDOM_WEIGHTS: encoder.random_twin(options.seed)} if settings.random_floor else {})}
    scores, shown = run.test({name: run.train(model, len(names)) for name, model in models.items()}, places, names)
    floors = {name: score.numbers(names) for name, score in scores.items()}
    metrics = floors.pop("")

    def draw() -> Image.Image:
        from hf_geossl.evaluation.pictures.images import point_samples

        images, true, predicted = (np.concatenate(parts)[:SHOWN] for parts in zip(*shown, strict=True))
        return point_samples(images, true, predicted, f"{encoder.name}: {', '.join(names)}")

    details = {
        "settings": asdict(settings),
        "points": list(names),
        "head_share": HEAD_SHARE,
        "train_images": data.train.count,
        "test_objects": len(scores[""].rows),
        "floors": floors,
    }
    return TaskResult(metrics, scores[""].intervals(names, options), details, {"points": draw})


@dataclass(frozen=True)
class _Run:
    """What training and test share."""

    data: EvaluationData
    options: EvaluationOptions
    settings: KeypointsSettings
    device: torch.device

    def crops(self, batches: Iterable[Mapping[str, Any]], split: str) -> Iterator[Crops]:
        """`object_crops` as the settings say."""
        return object_crops(
            batches,
            self.data,
            split,
            side=self.settings.crop_size or self.data.size,
            margin=self.settings.margin,
            smallest_side=self.settings.smallest_side,
            device=self.device,
        )

    def mean_places(self) -> tuple[torch.Tensor, tuple[str, ...]]:
        """Where points lie on average in the boxes of training objects, `(points, 2)` in 0..1, and what they are called."""
        train = self.data.train
        sums, count = torch.zeros(()), torch.zeros(0)
        for crops in itertools.islice(
            self.crops(train.batches(self.options.batch_size), self.data.train_split), MEAN_BATCHES
        ):
            boxes, points = crops.boxes.cpu()[:, None], crops.points.cpu()
            places = (points[..., :2] - boxes[..., :2]) / (boxes[..., 2:] - boxes[..., :2])
            weights = (points[..., 2] > 0).float()
            sums = sums + (places * weights[..., None]).sum(dim=0)
            count = weights.sum(dim=0) + (count if len(count) else 0)
        if not len(count):
            raise ValueError(f"{train.name} has no labelled object that is large enough: take more images")
        names = COCO_POINTS if len(count) == len(COCO_POINTS) else tuple(f"point {i}" for i in range(len(count)))
        return sums / count.clamp(min=1)[:, None], SCENE_POINTS if self.data.is_scenes else names

    def train(self, encoder: Encoder, points: int) -> tuple[Encoder, KeypointHead]:
        """A head for so many points and the trunk under it, trained together."""
        settings, options, trunk = self.settings, self.options, encoder.trainable_copy()
        with seeded(options.seed, self.device):
            head = KeypointHead(encoder.width, settings.channels, points).to(self.device)

            def compute_loss(crops: Crops) -> torch.Tensor:
                heatmaps = _heatmaps(trunk, head, crops.images)
                true, weights = draw_heatmaps(crops.points, crops.frames, heatmaps.shape[-1], settings.sigma)
                return ((heatmaps - true).square().mean(dim=(2, 3)) * weights).mean()

            batches = self.data.train.endless_batches(
                settings.images_per_step, options.seed, num_workers=options.num_workers
            )
            fit_with_trunk(
                trunk,
                head,
                compute_loss,
                self.crops(batches, self.data.train_split),
                settings,
                options,
                description=f"{encoder.name}: keypoints",
                max_norm=1.0,
            )
        return trunk, head

    def test(
        self, trained: Mapping[str, tuple[Encoder, KeypointHead]], places: torch.Tensor, names: Sequence[str]
    ) -> tuple[dict[str, _Score], list[tuple[np.ndarray, np.ndarray, np.ndarray]]]:
        """Scores of trained models and of mean places on the test images, and what pictures show of the first model."""
        sigmas = COCO_SIGMAS if names == COCO_POINTS else (self.settings.score_sigma,) * len(names)
        scores = {name: _Score(KeypointAveragePrecision(sigmas), PCKh()) for name in (*trained, MEAN_PLACES)}
        shown: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
        test = self.data.test
        batches = self.options.batches(test, f"{trained[''][0].name}: {test.name}")
        for crops in self.crops(batches, self.data.test_split):
            predicted = {name: self.predict(*model, crops) for name, model in trained.items()}
            corners, lengths = crops.boxes[:, None, :2], (crops.boxes[:, 2:] - crops.boxes[:, :2])[:, None]
            guessed = (corners + places.to(corners) * lengths).cpu().numpy()
            predicted[MEAN_PLACES] = guessed, np.ones(len(guessed))
            for name, (points, confidences) in predicted.items():
                scores[name].add(crops, points, confidences)
            if sum(len(images) for images, _, _ in shown) < SHOWN:
                shown.append(_picture(crops, predicted[""][0]))
        if not shown:
            raise ValueError(f"{test.name} has no labelled object that is large enough: take more images")
        return scores, shown

    @torch.no_grad()
    def predict(self, encoder: Encoder, head: KeypointHead, crops: Crops) -> tuple[np.ndarray, np.ndarray]:
        """Points `(objects, points, 2)` in pixels of the images, and a score for each object."""
        parts = crops.images.split(self.options.batch_size)
        heatmaps = torch.cat([_heatmaps(encoder, head, part).cpu() for part in parts])
        points, scores = decode_heatmaps(heatmaps.numpy(), crops.frames.cpu().numpy(), self.settings.sigma)
        return points, scores.mean(axis=1)


def _heatmaps(encoder: Encoder, head: KeypointHead, images: torch.Tensor) -> torch.Tensor:
    """Heatmaps of crops in float32: bfloat16 has 1/128 at most between the values around a peak, which move it."""
    with mixed_precision(encoder.device):
        patches = encoder.tokens(encoder.normalize(images)).patches
    with full_precision(encoder.device):
        return head(patches.float())


def _picture(crops: Crops, points: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Crops, true and predicted points in their pixels, NaN where not labelled."""
    frames, side = crops.frames[:SHOWN].cpu().numpy()[:, None], crops.images.shape[-1]
    true = crops.points[:SHOWN].cpu().numpy()
    unknown = np.where(true[..., 2:] > 0, 0.0, np.nan)
    true, predicted = (
        (places - frames[..., :2]) / frames[..., 2:] * side + unknown for places in (true[..., :2], points[:SHOWN])
    )
    images = (crops.images[:SHOWN] * 255).round().byte().permute(0, 2, 3, 1).cpu().numpy()
    return images, true, predicted


PROTOCOLS = {"keypoints": EvaluationProtocol(measure_keypoints, KeypointsSettings)}
