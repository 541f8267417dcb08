"""Objects with keypoints, each cut out of its image: of the scenes by their exact geometry, of datasets as labelled."""

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch.nn import functional

from hf_geossl.data import THING_CLASSES, sample_scene
from hf_geossl.data.scenes.painting import View
from hf_geossl.evaluation.encoders import unit_images
from hf_geossl.evaluation.options import EvaluationData

SCENE_POINTS = ("center", "top", "bottom", "front", "back")
FACING = ("car", "boat", "animal")  # objects of the scenes that have a front; of others two points are not labelled


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
    """Points of objects of a scene by their ids, by their exact geometry.

    These are the middle of the whole object; the middles of the upper and lower edge of its own, turned frame; and those of its
    front and back edge where it has a front (cars, boats, animals), which its mirroring decides. From above an object's own
    frame has its nose at the upper edge, which is the front there.

    Returns:
        `torch.Tensor` of shape `(objects, 5, 3)`: `SCENE_POINTS`, x and y in pixels, and 2, or 0 for a point outside of the
        image or of an object without front.
    """
    points = _points_of_scene(split, index, size, mode)
    return torch.stack([points[number] for number in ids]) if ids else torch.zeros(0, len(SCENE_POINTS), 3)


@lru_cache(maxsize=2**17)  # training comes back to the same scenes, whose sampling takes longer than the crops
def _points_of_scene(split: str, index: int, size: int, mode: str) -> dict[int, torch.Tensor]:
    """`scene_keypoints` of all objects by their ids."""
    view = View(sample_scene(split, index, mode=mode), size, 0.0)
    points = {}
    for placed in view.things:
        thing, x, y, angle, _, distance = placed
        left, bottom, right, top = thing.extent
        middle, height = (left + right) / 2, (bottom + top) / 2
        ends = [[middle, top], [middle, bottom]] if view.plan else [[right, height], [left, height]]
        local = np.array([[middle, height], [middle, top], [middle, bottom], *ends])
        local[:, 0] *= -1 if thing.mirror else 1
        cosine, sine = math.cos(angle), math.sin(angle)
        px, py = view.project(
            x + cosine * local[:, 0] - sine * local[:, 1], y + sine * local[:, 0] + cosine * local[:, 1], distance
        )
        row = torch.zeros(len(SCENE_POINTS), 3)
        row[:, :2] = torch.from_numpy(np.stack([px, py], axis=1) * size)
        inside = ((row[:, :2] >= 0) & (row[:, :2] <= size)).all(dim=1)
        if THING_CLASSES[thing.category] not in FACING:
            inside[3:] = False
        row[:, 2] = 2.0 * inside
        points[thing.id] = row * (row[:, 2:] > 0)
    return points


def object_crops(
    batches: Iterable[Mapping[str, Any]],
    data: EvaluationData,
    split: str,
    *,
    side: int,
    margin: float,
    smallest_side: float,
    device: torch.device,
) -> Iterator[Crops]:
    """Cuts the objects of each batch of images that are large enough and have a labelled point; batches without are skipped.

    Args:
        side (`int`): Of the crops in pixels.
        margin (`float`): The crop's side over the box's longer side.
        smallest_side (`float`): The least longer side of a box as a share of the image's.

    Raises:
        ValueError: If the data have no keypoints.
    """
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
        squares = lengths * margin
        corners = (boxes[:, :2] + boxes[:, 2:]) / 2 - squares[:, None] / 2
        frames = torch.cat([corners, squares[:, None]], dim=1)  # left, top, side
        labelled = torch.cat([part for part in points if len(part)])
        within = (labelled[..., :2] - frames[:, None, :2]) / frames[:, None, 2:]
        seen = (labelled[..., 2] > 0) & ((within >= 0) & (within <= 1)).all(dim=-1)
        labelled = torch.where(seen[..., None], labelled, 0)
        chosen = (lengths >= smallest_side * data.size) & seen.any(dim=1)
        if not chosen.any():
            continue
        sources, frames = sources[chosen].to(device), frames[chosen].to(device)
        yield Crops(
            images=cut_crops(batch["image"].to(device), sources, frames, side),
            frames=frames,
            points=labelled[chosen].to(device),
            boxes=boxes[chosen].to(device),
            areas=torch.cat(areas)[chosen].to(device),
            sources=sources,
        )


def cut_crops(images: torch.Tensor, sources: torch.Tensor, frames: torch.Tensor, side: int) -> torch.Tensor:
    """Squares `(objects, 3, side, side)` of images, in [0, 1]: bilinear, black outside; sources and frames as in `Crops`."""
    line = (torch.arange(side, device=images.device) + 0.5) / side
    extent = frames.new_tensor([images.shape[-1], images.shape[-2]])
    x, y = (frames[:, axis, None] + line * frames[:, 2:] for axis in (0, 1))  # (objects, side)
    grid = torch.stack([x[:, None].expand(-1, side, -1), y[:, :, None].expand(-1, -1, side)], dim=-1)
    chosen = unit_images(images[sources])
    return functional.grid_sample(chosen, grid / extent * 2 - 1, padding_mode="zeros", align_corners=False)
