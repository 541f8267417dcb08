"""Makes a sample of a row of a labelled dataset, image and truth cut to the same square, and batches of samples."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset, IterableDataset

from hf_geossl.data.images import BrokenImageError, decode_image, decode_pixels
from hf_geossl.data.notes import collect_notes
from hf_geossl.data.sources.base import as_array, encoded_image
from hf_geossl.data.sources.opened import MapDataset
from hf_geossl.evaluation.reading.annotations import IGNORED, as_lists, class_number, corners, is_label, open_map
from hf_geossl.evaluation.truth import Columns, Truth
from hf_geossl.modeling.image_format import ImageFormat

BROKEN = "broken"  # in a sample that replaces others: how many of them were broken
CHANGED = "changed"  # in a sample: how often what was done to its truth
Sample = dict[str, Any]
ReadRow = Callable[[int, Mapping[str, Any]], Sample]


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
    """The square made of an image: the shorter side scaled to 8 / 7 of `size`, the center taken; or the whole, stretched.

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
    def of(cls, image: Image.Image, size: int, whole: bool) -> "_Frame":
        if whole:
            return cls(size, size, size, 0, 0)
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
        truth (`Truth`, *optional*): What the values of the columns mean.
        image_format (`ImageFormat`, *optional*): What the model's images are; RGB of 8 bits by default.
        dtype (`str`, *optional*): Type of the numbers in a column of arrays.
        whole (`bool`): Whether images are stretched to the square as a whole, as a model's image processor does; otherwise
            the center is taken.
    """

    def __init__(
        self,
        size: int,
        columns: Columns,
        token: str | bool | None = None,
        truth: Truth | None = None,
        image_format: ImageFormat | None = None,
        dtype: str | None = None,
        whole: bool = False,
    ) -> None:
        self.dtype, self.whole = dtype, whole
        self.size, self.columns, self.token, self.image_format = size, columns, token, image_format
        self.truth = truth or Truth(bbox_format=columns.bbox_format or "coco", depth_scale=columns.depth_scale or 1.0)

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
        columns, changed = self.columns, dict[str, int]()
        with collect_notes() as notes:
            image, channels = self._channels(encoded_image(as_array(row[columns.image], self.dtype), self.token))
        changed |= {f"images with {entry.summary}": 1 for entry in notes}
        frame = _Frame.of(image, self.size, self.whole)
        pixels = [frame.cut(channel, Image.Resampling.BICUBIC) for channel in channels]
        sample: Sample = {
            "index": index,
            "image": _image_tensor(pixels[0] if self.image_format is None else np.stack(pixels, axis=-1)),
        }
        label = row.get(columns.label)
        if self.truth.vectors and label is not None:
            vector = torch.tensor(label).to(torch.int64)
            if vector.shape != (len(self.truth.labels or ()),):
                raise ValueError(f"the column {columns.label!r} of image {index} holds no vector of the others' length")
            sample |= {"multi_label": vector} if self.truth.lists else {"label": int(vector.argmax())}
        elif self.truth.lists and label is not None:
            sample["multi_label"] = self._multi_label(label)
        elif label is not None and is_label(label):
            sample["label"] = class_number(label, self.truth.labels, columns.label)
        if row.get(columns.semantic) is not None:
            sample["semantic"] = self._semantic(self._cut_map(columns.semantic, index, row, image, frame, changed))
        if row.get(columns.depth) is not None:
            sample["depth"] = self._depth(self._cut_map(columns.depth, index, row, image, frame, changed), changed)
        if row.get(columns.objects) is not None:
            sample.update(self._objects(as_lists(row[columns.objects], columns.objects), image, frame, changed))
        return sample | ({CHANGED: changed} if changed else {})

    def of_whole_images(self, column: str) -> "SampleReader":
        """A reader that stretches images to the square as a whole, where this one takes their center, and reads one kind of truth.

        `column` is the field of `Columns` that it comes from.
        """
        others: dict[str, Any] = {name: "" for name in ("label", "semantic", "depth", "objects") if name != column}
        parts = (replace(self.columns, **others), self.token, self.truth, self.image_format, self.dtype)
        return SampleReader(self.size, *parts, whole=True)

    def _channels(self, encoded: Any) -> tuple[Image.Image, list[Image.Image]]:
        """A picture of the image's size, and what is cut: itself, or each channel of the model's format."""
        if self.image_format is None:
            image = decode_image(encoded)
            return image, [image]
        pixels = decode_pixels(encoded, image_format=self.image_format).numpy()
        channels = [Image.fromarray(np.ascontiguousarray(pixels[..., number])) for number in range(pixels.shape[-1])]
        return channels[0], channels

    def _multi_label(self, labels: Sequence[Any]) -> torch.Tensor:
        known = self.truth.labels or ()
        present = torch.zeros(len(known), dtype=torch.int64)
        present[[class_number(label, known, self.columns.label) for label in labels]] = 1
        return present

    def _semantic(self, classes: np.ndarray) -> torch.Tensor:
        column = self.columns.semantic
        if np.issubdtype(classes.dtype, np.floating) and not (classes == np.rint(classes)).all():
            raise ValueError(f"the column {column!r} must hold the numbers of classes, got fractions")
        if classes.min() < 0 or classes.max() > IGNORED:
            wrong = classes.min() if classes.min() < 0 else classes.max()
            raise ValueError(
                f"the column {column!r} must hold classes from 0 to {IGNORED}, which is no class, got "
                f"{wrong}: renumber them, or choose another column"
            )
        semantic = torch.from_numpy(classes.astype(np.uint8))
        if self.truth.binary:
            other = semantic[(semantic != 0) & (semantic != IGNORED)]
            if len(other):
                raise ValueError(
                    f"the column {column!r} holds the class {other[0]} in one map, and 0 and 255 alone in the first ones, "
                    "where 255 was taken as class 1: write 1 for 255 where it is a class"
                )
            return (semantic == IGNORED).to(torch.uint8)
        if self.columns.reduce_labels:
            semantic = torch.where((semantic == 0) | (semantic == IGNORED), IGNORED, semantic - 1).to(torch.uint8)
        return semantic

    def _depth(self, depths: np.ndarray, changed: dict[str, int]) -> torch.Tensor:
        metres = depths.astype(np.float32) * self.truth.depth_scale
        unknown = ~np.isfinite(metres) | (metres < 0)
        if unknown.any():
            changed["images with depths that are negative or no number, taken as unknown"] = 1
        return torch.from_numpy(np.where(unknown, np.float32(0), metres))

    def _cut_map(
        self,
        column: str,
        index: int,
        row: Mapping[str, Any],
        image: Image.Image,
        frame: _Frame,
        changed: dict[str, int],
    ) -> np.ndarray:
        picture = open_map(encoded_image(row[column], self.token), column)
        if abs(picture.width * image.height - picture.height * image.width) > max(*picture.size, *image.size):
            raise ValueError(
                f"the map in {column!r} of image {index} has {picture.width} x {picture.height} pixels, its image "
                f"{image.width} x {image.height} (turned as its EXIF orientation says): both must show the same frame, so "
                "turn or cut the map as the image"
            )
        if picture.size != image.size:
            changed[f"images whose map in {column!r} has another size than the image, scaled by nearest neighbour"] = 1
        return frame.cut(picture, Image.Resampling.NEAREST)

    def _objects(
        self, objects: Mapping[str, Any], image: Image.Image, frame: _Frame, changed: dict[str, int]
    ) -> Sample:
        """Boxes, categories and keypoints in pixels of the frame; objects of less than a pixel in it are left out."""
        column = self.columns.objects
        whole = corners(objects["bbox"], self.truth.bbox_format, image.width, image.height)
        if len(whole) and (not np.isfinite(whole).all() or (whole[:, 2:] < whole[:, :2]).any()):
            raise ValueError(
                f"the column {column!r} holds boxes that end before they begin when read as {self.truth.bbox_format}: say "
                "their format by bbox_format (--bbox_format)"
            )
        reach = (whole[:, :2] < -1).any(1) | (whole[:, 2:] > np.array(image.size) + 1).any(1)
        if reach.any():
            changed["objects whose boxes reach out of their image, clipped to it"] = int(reach.sum())
        boxes = torch.from_numpy(whole).float()
        stretch = boxes.new_tensor([frame.width / image.width, frame.height / image.height])
        corner = boxes.new_tensor([frame.left, frame.top])
        boxes = (boxes * stretch.repeat(2) - corner.repeat(2)).clamp(0, frame.size)
        visible = (boxes[:, 2:] - boxes[:, :2]).amin(dim=1) >= 1
        if not visible.all():
            changed["objects of less than a pixel in the square that is measured, left out"] = int((~visible).sum())
        numbers = [class_number(value, self.truth.categories, column) for value in objects["category"]]
        sample: Sample = {
            "boxes": boxes[visible],
            "categories": torch.tensor(numbers, dtype=torch.int64)[visible],
        }
        if objects.get("keypoints") is not None:
            count = len(objects["keypoints"][0]) // 3 if len(visible) else 0
            points = torch.tensor(objects["keypoints"], dtype=torch.float32).reshape(len(visible), count, 3)
            moved = points[..., :2] * stretch - corner
            inside = ((moved >= 0) & (moved <= frame.size)).all(dim=-1, keepdim=True)
            labelled = (points[..., 2:] > 0) & inside
            sample["keypoints"] = torch.where(labelled, torch.cat([moved, points[..., 2:]], dim=-1), 0)[visible]
        return sample


def _image_tensor(pixels: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1)))


class IndexedRows(Dataset):
    """Rows that can be read in any order; None for a broken image, or with `replace` the next one that can be read."""

    def __init__(self, rows: MapDataset, indices: list[int], read: ReadRow, *, replace: bool = False) -> None:
        self.rows, self.indices, self.read, self.replace = rows, indices, read, replace

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, position: int) -> Sample | None:
        for step in range(len(self) if self.replace else 1):
            index = self.indices[(position + step) % len(self)]
            with suppress(BrokenImageError):
                return {**self.read(index, self.rows[index]), **({BROKEN: int(step > 0)} if self.replace else {})}
        return None


class StreamedRows(IterableDataset):
    """Rows that come in an order of their own; None for a broken image, or with `replace` the next one that can be read."""

    def __init__(self, rows: Iterable[Any], read: ReadRow, *, replace: bool = False) -> None:
        self.rows, self.read, self.replace = rows, read, replace

    def __iter__(self) -> Iterator[Sample | None]:
        passed = 0
        for index, row in enumerate(self.rows):
            try:
                sample = self.read(index, row)
            except BrokenImageError:
                passed += 1
                if not self.replace:
                    yield None
                continue
            yield {**sample, BROKEN: passed} if self.replace else sample
            passed = 0
        yield from [None] * passed if self.replace else ()


def batch_loader(
    dataset: Dataset, batch_size: int, *, sampler: Sequence[int] | None = None, num_workers: int = 0
) -> DataLoader:
    """Makes a loader with a generator of its own: by default each pass draws from the caller's."""
    return DataLoader(
        dataset,
        batch_size,
        sampler=sampler,
        num_workers=num_workers,
        collate_fn=_collate_readable,
        generator=torch.Generator(),
    )


def _collate_readable(samples: list[Sample | None]) -> tuple[dict[str, Any] | None, int, int, Counter[str]]:
    """Makes a batch of those that are not broken, with the numbers of all, of broken ones (replaced ones too), of changes."""
    readable = [sample for sample in samples if sample is not None]
    changes: Counter[str] = Counter()
    for sample in readable:
        changes.update(sample.pop(CHANGED, {}))
    replaced = sum(sample.pop(BROKEN, 0) for sample in readable)
    broken = len(samples) - len(readable) + replaced
    return collate(readable) if readable else None, len(readable) + broken, broken, changes


def collate(samples: list[Sample]) -> dict[str, Any]:
    """Makes a batch of samples: numbers and tensors of one shape stacked, tensors of other shapes in a list."""
    batch: dict[str, Any] = {}
    for key in dict.fromkeys(key for sample in samples for key in sample):
        if lacking := [sample["index"] for sample in samples if key not in sample]:
            raise ValueError(f"image {lacking[0]} has no {key!r} and others have: give it one, or leave the image out")
        values = [torch.as_tensor(sample[key]) for sample in samples]
        variable = key in ("boxes", "categories", "masks", "keypoints", "ids", "angles", "mirrors", "centers")
        batch[key] = values if variable else torch.stack(values)
    return batch
