"""Makes a sample of a row of a labelled dataset: image and truth, cut to the same square."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from hf_geossl.data.images import DEFAULT_MAX_PIXELS, decode_image
from hf_geossl.data.sources.base import encoded_image

IGNORED = 255  # a pixel without truth
Sample = dict[str, Any]
ReadRow = Callable[[int, Mapping[str, Any]], Sample]


@dataclass(frozen=True)
class Columns:
    """Names of a dataset's columns; those that it lacks are left out of its samples.

    Args:
        image (`str`): The image.
        label (`str`): Its class, an integer or `ClassLabel`.
        semantic (`str`): An image of class indices, one a pixel.
        depth (`str`): Depths, one a pixel, 0 where unknown; `depth_scale` (`float`) metres a unit.
        objects (`str`): `{"bbox": [[x, y, width, height], ...], "category": [...]}` as in COCO, and optionally "keypoints",
            as there: x, y and visibility (0 where not labelled) of each, `[[x, y, v, x, y, v, ...], ...]`.
        reduce_labels (`bool`): Whether 0 means "no class" in `semantic` (as in ADE20k), so that classes start at 1.
    """

    image: str = "image"
    label: str = "label"
    semantic: str = "annotation"
    depth: str = "depth_map"
    depth_scale: float = 1.0
    objects: str = "objects"
    reduce_labels: bool = False


def read_scene(index: int, row: Mapping[str, Any]) -> Sample:
    """Makes a sample of a rendered scene, which has the size already.

    Args:
        index (`int`): Its place in the dataset.
        row (`dict`): Of a `SceneDataset`.

    Returns:
        `dict`: See `Samples`.
    """
    objects, instance = row["objects"], row["instance"]
    ids = np.array([item["id"] for item in objects], dtype=np.int64)
    return {
        "index": index,
        "image": _image_tensor(np.asarray(row["image"])),
        "label": int(row["label"]),
        "multi_label": torch.from_numpy(row["multi_label"].astype(np.int64)),
        "semantic": torch.from_numpy(row["semantic"].astype(np.uint8)),
        "depth": torch.from_numpy(np.ascontiguousarray(row["depth"], dtype=np.float32)),
        "boxes": torch.tensor([item["bbox"] for item in objects], dtype=torch.float32).view(-1, 4),
        "categories": torch.tensor([item["category"] for item in objects], dtype=torch.int64),
        "masks": torch.from_numpy(instance[None] == ids[:, None, None]),
        "ids": torch.from_numpy(ids),
        "angles": torch.tensor([item["angle"] for item in objects], dtype=torch.float32),
        "mirrors": torch.tensor([item["mirror"] for item in objects], dtype=torch.bool),
        "centers": torch.tensor([item["center"] for item in objects], dtype=torch.float32).view(-1, 2),
    }


@dataclass(frozen=True)
class _Frame:
    """The square cut out of an image: the shorter side scaled to 8 / 7 of `size`, the center taken.

    Attributes:
        size (`int`): Side of the square in pixels.
        width, height (`int`): Of the whole image, scaled.
        left, top (`int`): Of the square in it.
    """

    size: int
    width: int
    height: int
    left: int
    top: int

    @classmethod
    def of(cls, image: Image.Image, size: int) -> "_Frame":
        scale = round(size * 8 / 7) / min(image.size)
        width, height = (max(size, round(length * scale)) for length in image.size)
        return cls(size, width, height, (width - size) // 2, (height - size) // 2)

    def cut(self, picture: Image.Image, resampling: Image.Resampling) -> np.ndarray:
        """Cuts the square out of the image or of a map of it, whatever its resolution."""
        # the square alone is scaled: all of a long thin image would not fit into memory
        across, down = picture.width / self.width, picture.height / self.height
        right, bottom = self.left + self.size, self.top + self.size
        box = (self.left * across, self.top * down, right * across, bottom * down)
        return np.asarray(picture.resize((self.size, self.size), resampling, box))


class SampleReader:
    """Makes samples of the rows of any dataset.

    Args:
        size (`int`): Side of the samples in pixels.
        columns (`Columns`): Names of the columns.
        token (`str` or `bool`, *optional*): For image files on the Hub that the rows only name.
    """

    def __init__(self, size: int, columns: Columns, token: str | bool | None = None) -> None:
        self.size, self.columns, self.token = size, columns, token

    def __call__(self, index: int, row: Mapping[str, Any]) -> Sample:
        """Makes the sample of a row.

        Args:
            index (`int`): Its place in the dataset.
            row (`dict`): Image and truth under the names of `columns`, images undecoded.

        Returns:
            `dict`: See `Samples`; what the row lacks is left out.

        Raises:
            BrokenImageError: If the image cannot be decoded.
            ValueError: If the truth does not fit the image or is no number of a class.
        """
        columns = self.columns
        image = decode_image(encoded_image(row[columns.image], self.token))
        frame = _Frame.of(image, self.size)
        sample: Sample = {"index": index, "image": _image_tensor(frame.cut(image, Image.Resampling.BICUBIC))}
        if row.get(columns.label) is not None:
            sample["label"] = self._label(row[columns.label])
        if row.get(columns.semantic) is not None:
            sample["semantic"] = self._semantic(self._cut_map(columns.semantic, index, row, image, frame))
        if row.get(columns.depth) is not None:
            depth = self._cut_map(columns.depth, index, row, image, frame).astype(np.float32)
            sample["depth"] = torch.from_numpy(depth * columns.depth_scale)
        if row.get(columns.objects) is not None:
            sample.update(_objects(row[columns.objects], image, frame))
        return sample

    def _label(self, label: object) -> int:
        if isinstance(label, str):
            raise ValueError(
                f"the column {self.columns.label!r} must hold the numbers of classes, got the text {label[:40]!r}: number "
                "the classes, or put the images in one folder a class"
            )
        return int(label)  # type: ignore[call-overload]

    def _semantic(self, classes: np.ndarray) -> torch.Tensor:
        if classes.min() < 0 or classes.max() > IGNORED:
            wrong = classes.min() if classes.min() < 0 else classes.max()
            raise ValueError(
                f"the column {self.columns.semantic!r} must hold classes from 0 to {IGNORED}, which is no class, got "
                f"{wrong}: renumber them, or choose another column"
            )
        semantic = torch.from_numpy(classes.astype(np.uint8))
        if self.columns.reduce_labels:
            semantic = torch.where((semantic == 0) | (semantic == IGNORED), IGNORED, semantic - 1).to(torch.uint8)
        return semantic

    def _cut_map(
        self, column: str, index: int, row: Mapping[str, Any], image: Image.Image, frame: _Frame
    ) -> np.ndarray:
        picture = _open_map(encoded_image(row[column], self.token))
        if abs(picture.width * image.height - picture.height * image.width) > max(*picture.size, *image.size):
            raise ValueError(
                f"the map in {column!r} of image {index} has {picture.width} x {picture.height} pixels, its image "
                f"{image.width} x {image.height} (turned as its EXIF orientation says): both must show the same frame, so "
                "turn or cut the map as the image"
            )
        return frame.cut(picture, Image.Resampling.NEAREST)


def _objects(objects: Mapping[str, Any], image: Image.Image, frame: _Frame) -> Sample:
    """Boxes, categories and keypoints in pixels of the frame; objects of less than a pixel in it are left out."""
    boxes = torch.tensor(objects["bbox"], dtype=torch.float32).view(-1, 4)
    boxes = torch.cat([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], dim=1)
    stretch = boxes.new_tensor([frame.width / image.width, frame.height / image.height])
    corner = boxes.new_tensor([frame.left, frame.top])
    boxes = (boxes * stretch.repeat(2) - corner.repeat(2)).clamp(0, frame.size)
    visible = (boxes[:, 2:] - boxes[:, :2]).amin(dim=1) >= 1
    sample: Sample = {
        "boxes": boxes[visible],
        "categories": torch.tensor(objects["category"], dtype=torch.int64)[visible],
    }
    if objects.get("keypoints") is not None:
        count = len(objects["keypoints"][0]) // 3 if len(visible) else 0
        points = torch.tensor(objects["keypoints"], dtype=torch.float32).reshape(len(visible), count, 3)
        moved = points[..., :2] * stretch - corner
        inside = ((moved >= 0) & (moved <= frame.size)).all(dim=-1, keepdim=True)
        labelled = (points[..., 2:] > 0) & inside
        sample["keypoints"] = torch.where(labelled, torch.cat([moved, points[..., 2:]], dim=-1), 0)[visible]
    return sample


def _open_map(value: object) -> Image.Image:
    """A map of classes or metres, one number a pixel: an image that is not turned to RGB, or an array."""
    if isinstance(value, (bytes, str, Path)):
        value = Image.open(BytesIO(value) if isinstance(value, bytes) else value, formats=("PNG", "TIFF", "BMP", "GIF"))
    if not isinstance(value, Image.Image):
        value = Image.fromarray(np.asarray(value))
    if value.width * value.height > DEFAULT_MAX_PIXELS:
        raise ValueError(f"a map of {value.width} x {value.height} pixels is larger than {DEFAULT_MAX_PIXELS} pixels")
    return value


def _image_tensor(pixels: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1)))
