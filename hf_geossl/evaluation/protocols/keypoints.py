"""Keypoints of objects: a plain head on the trunk makes a heatmap of each point from a crop of the object (ViTPose)."""

import itertools
import math
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn
from torch.nn import functional
from transformers.models.vitpose.image_processing_vitpose import (
    get_keypoint_predictions,
    post_dark_unbiased_data_processing,
)

from hf_geossl.data import THING_CLASSES, sample_scene
from hf_geossl.data.scenes.painting import View
from hf_geossl.evaluation.bootstrap import interval
from hf_geossl.evaluation.encoders import Encoder, full_precision, mixed_precision
from hf_geossl.evaluation.metrics import pckh
from hf_geossl.evaluation.metrics.keypoint_average_precision import COCO_SIGMAS, KeypointAveragePrecision
from hf_geossl.evaluation.options import RANDOM_WEIGHTS, EvaluationData, EvaluationOptions, Task, TaskResult
from hf_geossl.evaluation.protocols.detection import average_precision_intervals
from hf_geossl.evaluation.protocols.fit import check_settings, fit, layer_decay_groups, seeded
from hf_geossl.evaluation.samples import Samples

SCENE_POINTS = ("center", "top", "bottom", "front", "back")
FACING = ("car", "boat", "animal")  # things of the scenes that have a front; of the others two points are not labelled
COCO_POINTS = (
    *("nose", "left eye", "right eye", "left ear", "right ear", "left shoulder", "right shoulder", "left elbow"),
    *("right elbow", "left wrist", "right wrist", "left hip", "right hip", "left knee", "right knee", "left ankle"),
    "right ankle",
)
HEAD_SHARE = 0.2  # of the longer side of the box: what stands for the size of a head in PCK
SHOWN = 8
MEAN_PLACES = "mean_places"
MEAN_BATCHES = 32  # of training images, for the floor of mean places


@dataclass(frozen=True)
class KeypointsSettings:
    """How the head and the trunk under it are trained. As published (ViTPose, arXiv 2204.12484): crops of 256 x 192 (here:
    squares), 256 channels, AdamW 5e-4, weight decay .1, layer decay .75 (ViT-B), batch 512, 210 epochs, no gradient above 1.
    The defaults are of desk scale in channels, batch and steps.

    Args:
        steps (`int`): Of training.
        warmup_steps (`int`): In which the learning rate rises.
        images_per_step (`int`): Images whose objects make a batch.
        learning_rate, weight_decay, layer_decay (`float`): Of AdamW.
        channels (`int`): Of the two transposed convolutions.
        crop_size (`int`, *optional*): Side of the crops in pixels; by default that of the images.
        margin (`float`): The crop's side over the box's longer side.
        sigma (`float`): Of the Gaussians in the heatmaps, in their pixels.
        smallest_side (`float`): Of a box, its longer side, as a share of the image's: smaller ones are left out.
        score_sigma (`float`): OKS's tolerance at each point of data other than COCO's 17 points, as a share of the square root
            of the object's area.
        random_floor (`bool`): Whether the same architecture is trained from random weights too, which takes as long again.
    """

    steps: int = 300
    warmup_steps: int = 20
    images_per_step: int = 4
    learning_rate: float = 5e-4
    weight_decay: float = 0.1
    layer_decay: float = 0.75
    channels: int = 64
    crop_size: int | None = None
    margin: float = 1.25
    sigma: float = 2.0
    smallest_side: float = 1 / 8
    score_sigma: float = 0.1
    random_floor: bool = False

    def __post_init__(self) -> None:
        check_settings(self)
        if self.margin < 1:
            raise ValueError(f"margin must be at least 1, got {self.margin}")
        if min(self.sigma, self.score_sigma) <= 0:
            raise ValueError(f"sigma and score_sigma must be above 0, got {self.sigma} and {self.score_sigma}")


@dataclass(frozen=True)
class Crops:
    """Objects, each in a square of its own.

    Args:
        images (`torch.Tensor` of shape `(objects, 3, side, side)`): In [0, 1].
        frames (`torch.Tensor` of shape `(objects, 3)`): Left, top and side of the squares in the image, in pixels.
        points (`torch.Tensor` of shape `(objects, points, 3)`): x, y in pixels of the image, and 0 where not labelled.
        boxes (`torch.Tensor` of shape `(objects, 4)`): x1, y1, x2, y2 in pixels of the image.
        areas (`torch.Tensor` of shape `(objects,)`): Of the objects, in square pixels.
        sources (`torch.Tensor` of shape `(objects,)`): Which image of the batch each comes from.
    """

    images: torch.Tensor
    frames: torch.Tensor
    points: torch.Tensor
    boxes: torch.Tensor
    areas: torch.Tensor
    sources: torch.Tensor


def scene_keypoints(split: str, index: int, ids: list[int], size: int, mode: str = "scene") -> torch.Tensor:
    """Points of things, by their exact geometry: the middle of the whole thing; the middles of the upper and lower edge of its
    own, turned frame; and those of its front and back edge where it has a front (cars, boats, animals), which its mirroring
    decides. From above a thing's own frame has its nose at the upper edge, which is the front there.

    Args:
        split, index, mode: Of the scene, as in `sample_scene`.
        ids (`list[int]`): Of the things.
        size (`int`): Side of the image in pixels.

    Returns:
        `torch.Tensor` of shape `(things, 5, 3)`: `SCENE_POINTS`, x and y in pixels, and 2, or 0 for a point outside of the
        image or of a thing without front.
    """
    scene = sample_scene(split, index, mode=mode)
    view = View(scene, size, 0.0)
    placed = {one.thing.id: one for one in view.things}
    points = torch.zeros(len(ids), len(SCENE_POINTS), 3)
    for row, number in zip(points, ids, strict=True):
        thing, x, y, angle, _, distance = placed[number]
        left, bottom, right, top = thing.extent
        middle, height = (left + right) / 2, (bottom + top) / 2
        ends = [[middle, top], [middle, bottom]] if view.plan else [[right, height], [left, height]]
        local = np.array([[middle, height], [middle, top], [middle, bottom], *ends])
        local[:, 0] *= -1 if thing.mirror else 1
        cosine, sine = math.cos(angle), math.sin(angle)
        px, py = view.project(
            x + cosine * local[:, 0] - sine * local[:, 1], y + sine * local[:, 0] + cosine * local[:, 1], distance
        )
        row[:, :2] = torch.from_numpy(np.stack([px, py], axis=1) * size)
        inside = ((row[:, :2] >= 0) & (row[:, :2] <= size)).all(dim=1)
        if THING_CLASSES[thing.category] not in FACING:
            inside[3:] = False
        row[:, 2] = 2.0 * inside
    return points * (points[..., 2:] > 0)


class KeypointHead(nn.Module):
    """ViTPose's classic head: two transposed convolutions with BatchNorm and ReLU, each doubling the map, and a 1 x 1 one.

    Args:
        width (`int`): Channels of the trunk.
        channels (`int`): Of the transposed convolutions.
        points (`int`): Heatmaps.
    """

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


def cut_crops(images: torch.Tensor, sources: torch.Tensor, frames: torch.Tensor, side: int) -> torch.Tensor:
    """Squares of images, enlarged or reduced.

    Args:
        images (`torch.Tensor` of shape `(batch, 3, height, width)`): uint8.
        sources (`torch.Tensor` of shape `(objects,)`): Which image each square is cut from.
        frames (`torch.Tensor` of shape `(objects, 3)`): Left, top and side of the squares, in pixels.
        side (`int`): Of the result.

    Returns:
        `torch.Tensor` of shape `(objects, 3, side, side)`: In [0, 1], bilinear, black outside of the image.
    """
    line = (torch.arange(side, device=images.device) + 0.5) / side
    extent = frames.new_tensor([images.shape[-1], images.shape[-2]])
    x, y = (frames[:, axis, None] + line * frames[:, 2:] for axis in (0, 1))  # (objects, side)
    grid = torch.stack([x[:, None].expand(-1, side, -1), y[:, :, None].expand(-1, -1, side)], dim=-1)
    chosen = images[sources].float() / 255
    return functional.grid_sample(chosen, grid / extent * 2 - 1, padding_mode="zeros", align_corners=False)


def draw_heatmaps(points: torch.Tensor, frames: torch.Tensor, side: int, sigma: float) -> tuple[Any, Any]:
    """What heatmaps should be.

    Args:
        points (`torch.Tensor` of shape `(objects, points, 3)`): x, y in pixels of the image, and 0 where not labelled.
        frames (`torch.Tensor` of shape `(objects, 3)`): Left, top and side of the crops in the image.
        side (`int`): Of the heatmaps.
        sigma (`float`): Of the Gaussians, in pixels of the heatmaps.

    Returns:
        Heatmaps `(objects, points, side, side)` with 1 at the point, and weights `(objects, points)`: 1 where the point is
        labelled and lies in the crop.
    """
    places = (points[..., :2] - frames[:, None, :2]) / frames[:, None, 2:] * side  # from the first pixel's corner
    inside = ((places >= 0) & (places <= side)).all(dim=-1) & (points[..., 2] > 0)
    line = torch.arange(side, device=points.device) + 0.5
    x, y = ((line - places[..., axis, None]).square() for axis in (0, 1))  # (objects, points, side)
    return torch.exp(-(x[:, :, None, :] + y[:, :, :, None]) / (2 * sigma**2)), inside.float()


def decode_heatmaps(heatmaps: np.ndarray, frames: np.ndarray, sigma: float) -> tuple[np.ndarray, np.ndarray]:
    """Points from heatmaps: the maximum, moved by less than a pixel to the peak of the parabola through the logarithm around
    it (DARK, arXiv 1910.06278, as in transformers' ViTPose).

    Args:
        heatmaps (`numpy.ndarray` of shape `(objects, points, side, side)`): As predicted.
        frames (`numpy.ndarray` of shape `(objects, 3)`): Left, top and side of the crops in the image.
        sigma (`float`): Of the Gaussians, in pixels of the heatmaps.

    Returns:
        Points `(objects, points, 2)` in pixels of the image, and their scores `(objects, points)`.
    """
    side = heatmaps.shape[-1]
    coarse, scores = get_keypoint_predictions(heatmaps)
    coarse = np.maximum(coarse, 0)  # where no value is above 0
    kernel = 2 * math.ceil(2.5 * sigma) + 1
    fine = post_dark_unbiased_data_processing(coarse.copy(), heatmaps, kernel=kernel)
    places = coarse + np.clip(fine.reshape(coarse.shape) - coarse, -1, 1) + 0.5
    return frames[:, None, :2] + places / side * frames[:, None, 2:], scores[..., 0]


def measure_keypoints(
    encoder: Encoder, data: EvaluationData, options: EvaluationOptions, settings: KeypointsSettings
) -> TaskResult:
    """OKS average precision and PCK@.5 of keypoints in true boxes, trunk and head trained end to end; beside it that of the
    points' mean places in the training boxes. The "head size" of PCK is a fifth of the box's longer side.

    Args:
        encoder (`Encoder`): The model.
        data (`EvaluationData`): Scenes (see `scene_keypoints`), or data whose `objects` have keypoints.
        options (`EvaluationOptions`): How to evaluate.
        settings (`KeypointsSettings`): How it is trained.

    Returns:
        `TaskResult`: `keypoint_ap`, `keypoint_ap50`, `keypoint_ap75`, `pck`, and `pck_POINT` for each point.

    Raises:
        ValueError: If the data have no keypoints, or the crop's side is no multiple of the patch size.
    """
    side = settings.crop_size or data.size
    if side % encoder.patch_size:
        raise ValueError(
            f"the crop's side must be a multiple of {encoder.name}'s patch size {encoder.patch_size}, got {side}"
        )
    train = data.train
    seen = _crops(train.batches(options.batch_size), data, data.train_split, side, settings, encoder.device)
    places, names = _mean_places(seen, data, train, settings)
    models = {"": encoder, **({RANDOM_WEIGHTS: encoder.random_twin(options.seed)} if settings.random_floor else {})}
    trained = {name: _train(model, data, options, settings, len(names)) for name, model in models.items()}

    sigmas = COCO_SIGMAS if names == COCO_POINTS else (settings.score_sigma,) * len(names)
    precision = {name: KeypointAveragePrecision(sigmas) for name in (*trained, MEAN_PLACES)}
    sums: dict[str, list[np.ndarray]] = {name: [] for name in precision}
    shown: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
    test = data.test
    batches = test.batches(options.batch_size, num_workers=options.num_workers)
    with options.progress_bar(f"{encoder.name}: {test.name}", test.count) as bar:
        for crops in _crops(batches, data, data.test_split, side, settings, encoder.device):
            found = {name: _predict(*model, crops, settings, options) for name, model in trained.items()}
            corners, lengths = crops.boxes[:, None, :2], (crops.boxes[:, 2:] - crops.boxes[:, :2])[:, None]
            guessed = (corners + places.to(corners) * lengths).cpu().numpy()
            found[MEAN_PLACES] = guessed, np.ones(len(guessed))
            for name, (points, scores) in found.items():
                _add(precision[name], crops, points, scores)
                sums[name].append(_pck_sums(crops, points))
            if sum(len(images) for images, _, _ in shown) < SHOWN:
                shown.append(_picture(crops, found[""][0]))
            bar.update(options.batch_size)
    if not shown:
        raise ValueError(f"{test.name} has no labelled object that is large enough: take more images")

    merged = {name: np.concatenate(rows) for name, rows in sums.items()}

    def summarize(rows: np.ndarray) -> dict[str, float]:
        hits, labelled = rows.reshape(2, -1)
        each = np.divide(hits, labelled, out=np.full(len(hits), np.nan), where=labelled > 0)
        return {
            "pck": pckh.summarize(rows)["pckh"],
            **{f"pck_{name.replace(' ', '_')}": float(value) for name, value in zip(names, each, strict=True)},
        }

    intervals = average_precision_intervals(precision[""], options)
    numbers = {name: {**precision[name].compute(), **summarize(rows.sum(axis=0))} for name, rows in merged.items()}
    result = TaskResult(
        metrics=numbers.pop(""),
        details={
            "settings": asdict(settings),
            "points": list(names),
            "head_share": HEAD_SHARE,
            "train_images": train.count,
            "test_objects": len(merged[""]),
            "floors": numbers,
        },
    )
    if options.bootstrap:
        result.intervals = {
            **intervals,
            **interval(summarize, merged[""], repeats=options.bootstrap, seed=options.seed),
        }

    def draw() -> Image.Image:
        from hf_geossl.evaluation.pictures import point_samples

        images, true, predicted = (np.concatenate(parts)[:SHOWN] for parts in zip(*shown, strict=True))
        return point_samples(images, true, predicted, f"{encoder.name}: {', '.join(names)}")

    result.pictures["points"] = draw
    return result


def _train(
    encoder: Encoder, data: EvaluationData, options: EvaluationOptions, settings: KeypointsSettings, points: int
) -> tuple[Encoder, KeypointHead]:
    """A head for so many points and the trunk under it, trained together."""
    train, side = data.train, settings.crop_size or data.size
    trunk = encoder.trainable_copy()
    with seeded(options.seed, encoder.device):
        head = KeypointHead(encoder.width, settings.channels, points).to(encoder.device)

        def compute_loss(crops: dict[str, Any]) -> torch.Tensor:
            heatmaps = _heatmaps(trunk, head, crops["images"])
            true, weights = draw_heatmaps(crops["points"], crops["frames"], heatmaps.shape[-1], settings.sigma)
            return ((heatmaps - true).square().mean(dim=(2, 3)) * weights).mean()

        batches = train.endless_batches(settings.images_per_step, options.seed, num_workers=options.num_workers)
        fit(
            torch.optim.AdamW(
                layer_decay_groups(trunk, head, settings.learning_rate, settings.weight_decay, settings.layer_decay)
            ),
            compute_loss,
            (vars(crops) for crops in _crops(batches, data, data.train_split, side, settings, encoder.device)),
            options,
            steps=settings.steps,
            description=f"{encoder.name}: keypoints",
            warmup_steps=settings.warmup_steps,
            max_norm=1.0,
        )
    trunk.module.eval()
    head.eval()
    return trunk, head


def _crops(
    batches: Iterable[dict[str, Any]],
    data: EvaluationData,
    split: str,
    side: int,
    settings: KeypointsSettings,
    device: torch.device,
) -> Iterator[Crops]:
    """The objects of each batch of images that are large enough and have a labelled point; batches without any are skipped."""
    for batch in batches:
        if data.is_scenes:
            points = [
                scene_keypoints(split, index, ids.tolist(), data.size, data.mode)
                for index, ids in zip(batch["index"].tolist(), batch["ids"], strict=True)
            ]
            areas = [masks.sum(dim=(1, 2)).float() for masks in batch["masks"]]
        else:
            if "keypoints" not in batch:
                raise ValueError(
                    f"{data.dataset} has no keypoints in its objects: choose data with such truth, or the scenes"
                )
            points = batch["keypoints"]
            areas = [(boxes[:, 2:] - boxes[:, :2]).prod(dim=1) for boxes in batch["boxes"]]
        sources = torch.tensor([image for image, boxes in enumerate(batch["boxes"]) for _ in boxes], dtype=torch.int64)
        if not len(sources):
            continue
        boxes = torch.cat(batch["boxes"])
        lengths = (boxes[:, 2:] - boxes[:, :2]).amax(dim=1)
        squares = lengths * settings.margin
        frames = torch.cat(
            [(boxes[:, :2] + boxes[:, 2:]) / 2 - squares[:, None] / 2, squares[:, None]], dim=1
        )  # left, top, side
        labelled = torch.cat([part for part in points if len(part)])
        within = (labelled[..., :2] - frames[:, None, :2]) / frames[:, None, 2:]
        seen = (labelled[..., 2] > 0) & ((within >= 0) & (within <= 1)).all(dim=-1)
        labelled = torch.where(seen[..., None], labelled, 0)
        kept = (lengths >= settings.smallest_side * data.size) & seen.any(dim=1)
        if not kept.any():
            continue
        sources, frames = sources[kept].to(device), frames[kept].to(device)
        yield Crops(
            images=cut_crops(batch["image"].to(device), sources, frames, side),
            frames=frames,
            points=labelled[kept].to(device),
            boxes=boxes[kept].to(device),
            areas=torch.cat(areas)[kept].to(device),
            sources=sources,
        )


def _mean_places(
    seen: Iterator[Crops], data: EvaluationData, train: Samples, settings: KeypointsSettings
) -> tuple[torch.Tensor, tuple[str, ...]]:
    """Where points lie on average in the boxes of training objects, `(points, 2)` in 0..1, and what they are called."""
    total, count = torch.zeros(0, 2), torch.zeros(0)
    for crops in itertools.islice(seen, MEAN_BATCHES):
        boxes, points = crops.boxes.cpu()[:, None], crops.points.cpu()
        places = (points[..., :2] - boxes[..., :2]) / (boxes[..., 2:] - boxes[..., :2])
        weights = (points[..., 2] > 0).float()
        sums = (places * weights[..., None]).sum(dim=0), weights.sum(dim=0)
        total, count = (sums[0], sums[1]) if not len(count) else (total + sums[0], count + sums[1])
    if not len(count):
        raise ValueError(f"{train.name} has no labelled object that is large enough: take more images")
    if data.is_scenes:
        names: tuple[str, ...] = SCENE_POINTS
    else:
        names = COCO_POINTS if len(count) == len(COCO_POINTS) else tuple(f"point {i}" for i in range(len(count)))
    return total / count.clamp(min=1)[:, None], names


def _heatmaps(encoder: Encoder, head: KeypointHead, images: torch.Tensor) -> torch.Tensor:
    """Heatmaps of crops in float32: bfloat16 has 1/128 at most between the values around a peak, which move it."""
    with mixed_precision(encoder.device):
        patches = encoder.tokens(encoder.normalize(images)).patches
    with full_precision(encoder.device):
        return head(patches.float())


@torch.no_grad()
def _predict(
    encoder: Encoder, head: KeypointHead, crops: Crops, settings: KeypointsSettings, options: EvaluationOptions
) -> tuple[np.ndarray, np.ndarray]:
    """Points `(objects, points, 2)` in pixels of the images, and a score for each object."""
    heatmaps = []
    for part in crops.images.split(options.batch_size):
        heatmaps.append(_heatmaps(encoder, head, part).cpu())
    points, scores = decode_heatmaps(torch.cat(heatmaps).numpy(), crops.frames.cpu().numpy(), settings.sigma)
    return points, scores.mean(axis=1)


def _add(precision: KeypointAveragePrecision, crops: Crops, points: np.ndarray, scores: np.ndarray) -> None:
    """Gives the objects of a batch to the metric, image by image."""
    sources = crops.sources.cpu().numpy()
    for image in np.unique(sources):
        chosen = sources == image
        precision.add(
            prediction={"keypoints": points[chosen], "scores": scores[chosen]},
            reference={"keypoints": crops.points.cpu().numpy()[chosen], "area": crops.areas.cpu().numpy()[chosen]},
        )


def _pck_sums(crops: Crops, points: np.ndarray) -> np.ndarray:
    lengths = (crops.boxes[:, 2:] - crops.boxes[:, :2]).amax(dim=1)
    return pckh.sums_of(
        points, crops.points[..., :2], head_sizes=HEAD_SHARE * lengths, visible=crops.points[..., 2] > 0
    )


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


TASKS = {
    "keypoints": Task(
        measure_keypoints, KeypointsSettings, "keypoints by heatmaps in true boxes, end to end: OKS AP and PCK"
    )
}
