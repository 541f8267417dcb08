"""Images with truth, at one size: the embedded scenes, a folder, or a dataset of the Hub, read as they are needed."""

import hashlib
import json
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from huggingface_hub import HfApi
from PIL import Image
from torch.utils.data import DataLoader, Dataset, IterableDataset

from hf_geossl.data import SCENES_VERSION, SEMANTIC_CLASSES, THING_CLASSES, label_names, load_scenes
from hf_geossl.data.images import DEFAULT_MAX_PIXELS, BrokenImageError, decode_image
from hf_geossl.data.retries import is_transient

logger = logging.getLogger(__name__)

SCENES = "scenes"
IGNORED = 255  # a pixel without truth
SHUFFLE_BUFFER = 2048  # samples among which a stream is shuffled
CLIP_FOLDERS = ("JPEGImages", "Annotations")  # of DAVIS
_PACKED = {".parquet": "parquet", ".tar": "webdataset"}  # which builder of `datasets` reads such files
BROKEN = "broken"  # in a sample that replaces others: how many of them were broken
Sample = dict[str, Any]


@dataclass(frozen=True)
class Columns:
    """Which columns of a dataset hold what; those that it lacks are left out of its samples.

    Args:
        image (`str`): The image.
        label (`str`): Its class, an integer or `ClassLabel`.
        semantic (`str`): An image of class indices, one a pixel.
        depth (`str`): Depths, one a pixel, 0 where unknown; `depth_scale` (`float`) metres a unit.
        objects (`str`): `{"bbox": [[x, y, width, height], ...], "category": [...]}` as in COCO, and if known "keypoints", as
            there: x, y and visibility (0 where not labelled) of each, `[[x, y, v, x, y, v, ...], ...]`.
        reduce_labels (`bool`): Whether 0 means "no class" in `semantic` (as in ADE20k), so that classes start at 1.
    """

    image: str = "image"
    label: str = "label"
    semantic: str = "annotation"
    depth: str = "depth_map"
    depth_scale: float = 1.0
    objects: str = "objects"
    reduce_labels: bool = False


class _Reader:
    """Makes a sample of a row: everything cut to the same square."""

    def __init__(self, size: int, columns: Columns) -> None:
        self.size, self.columns = size, columns

    def scene(self, index: int, row: Mapping[str, Any]) -> Sample:
        """A sample of a rendered scene, which has the size already."""
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

    def row(self, index: int, row: Mapping[str, Any]) -> Sample:
        """A sample of a row of any dataset: the shorter side scaled to 8 / 7 of the size, the middle cut out."""
        columns = self.columns
        image = decode_image(_encoded(row[columns.image]))
        side = round(self.size * 8 / 7)
        scale = side / min(image.size)
        width, height = (max(self.size, round(length * scale)) for length in image.size)
        left, top = (width - self.size) // 2, (height - self.size) // 2

        def cut(picture: Image.Image, resampling: Image.Resampling) -> np.ndarray:
            # the middle alone is scaled: all of a long thin image would not fit into memory
            across, down = picture.width / width, picture.height / height
            box = (left * across, top * down, (left + self.size) * across, (top + self.size) * down)
            return np.asarray(picture.resize((self.size, self.size), resampling, box))

        def cut_map(column: str) -> np.ndarray:
            picture = _open_map(row[column])
            if abs(picture.width * image.height - picture.height * image.width) > max(*picture.size, *image.size):
                raise ValueError(
                    f"the map in {column!r} of image {index} has {picture.width} x {picture.height} pixels, its image "
                    f"{image.width} x {image.height} (turned as its EXIF orientation says): both must show the same frame, so "
                    "turn or cut the map as the image"
                )
            return cut(picture, Image.Resampling.NEAREST)

        sample: Sample = {"index": index, "image": _image_tensor(cut(image, Image.Resampling.BICUBIC))}

        if row.get(columns.label) is not None:
            label = row[columns.label]
            if isinstance(label, str):
                raise ValueError(
                    f"the column {columns.label!r} must hold the numbers of classes, got the text {label[:40]!r}: number the "
                    "classes, or put the images in one folder a class"
                )
            sample["label"] = int(label)
        if row.get(columns.semantic) is not None:
            classes = cut_map(columns.semantic)
            if classes.min() < 0 or classes.max() > IGNORED:
                wrong = classes.min() if classes.min() < 0 else classes.max()
                raise ValueError(
                    f"the column {columns.semantic!r} must hold classes from 0 to {IGNORED}, which is no class, got {wrong}: "
                    "renumber them, or choose another column"
                )
            semantic = torch.from_numpy(classes.astype(np.uint8))
            if columns.reduce_labels:
                semantic = torch.where((semantic == 0) | (semantic == IGNORED), IGNORED, semantic - 1).to(torch.uint8)
            sample["semantic"] = semantic
        if row.get(columns.depth) is not None:
            sample["depth"] = torch.from_numpy(cut_map(columns.depth).astype(np.float32) * columns.depth_scale)
        if row.get(columns.objects) is not None:
            objects = row[columns.objects]
            boxes = torch.tensor(objects["bbox"], dtype=torch.float32).view(-1, 4)
            boxes = torch.cat([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], dim=1)
            stretch = boxes.new_tensor([width / image.width, height / image.height])
            boxes = (boxes * stretch.repeat(2) - boxes.new_tensor([left, top, left, top])).clamp(0, self.size)
            kept = (boxes[:, 2:] - boxes[:, :2]).amin(dim=1) >= 1
            sample["boxes"] = boxes[kept]
            sample["categories"] = torch.tensor(objects["category"], dtype=torch.int64)[kept]
            if objects.get("keypoints") is not None:
                count = len(objects["keypoints"][0]) // 3 if len(kept) else 0
                points = torch.tensor(objects["keypoints"], dtype=torch.float32).reshape(len(kept), count, 3)
                moved = points[..., :2] * stretch - points.new_tensor([left, top])
                labelled = (points[..., 2:] > 0) & ((moved >= 0) & (moved <= self.size)).all(dim=-1, keepdim=True)
                sample["keypoints"] = torch.where(labelled, torch.cat([moved, points[..., 2:]], dim=-1), 0)[kept]
        return sample


class _Indexed(Dataset):
    """Rows that can be read in any order; None for a broken image, or with `replace` the next one that can be read."""

    def __init__(self, rows: Any, indices: list[int], read: Any, *, replace: bool = False) -> None:
        self.rows, self.indices, self.read, self.replace = rows, indices, read, replace

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, position: int) -> Sample | None:
        for step in range(len(self) if self.replace else 1):
            index = self.indices[(position + step) % len(self)]
            with suppress(BrokenImageError):
                return {**self.read(index, self.rows[index]), **({BROKEN: int(step > 0)} if self.replace else {})}
        return None


class _Streamed(IterableDataset):
    """Rows that come in an order of their own; None for a broken image, or with `replace` the next one that can be read."""

    def __init__(self, rows: Any, read: Any, *, replace: bool = False) -> None:
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


class Samples:
    """Images with truth. Make them with `load_samples`.

    A sample is a dictionary of `index` (its place in the dataset), `image` (`(3, size, size)`, uint8) and what the dataset
    knows of: `label` (int), `multi_label` (`(classes,)`, int64, 0 or 1), `semantic` (`(size, size)`, uint8, 255 where there
    is no truth), `depth` (`(size, size)`, float32 metres, 0 where unknown), `boxes` (`(objects, 4)`, x1, y1, x2, y2 in
    pixels), `categories` (`(objects,)`), `masks` (`(objects, size, size)`, bool), `keypoints` (`(objects,
    points, 3)`, x and y in pixels and visibility, 0 where there is no truth); scenes also `ids` (of the instances), `angles`
    (radians), `mirrors` and `centers` (x, y in pixels) of the objects.

    Attributes:
        name (`str`): What reports call them, such as "scenes (test)".
        size (`int`): Side of the images in pixels.
        names (`dict[str, tuple[str, ...]]`): Class names of `label`, `multi_label`, `semantic` and `categories`, where the
            dataset tells them.
        fingerprint (`str`): A hash of what the samples are.
    """

    def __init__(
        self, rows: Any, told: dict[str, Any], names: dict[str, tuple[str, ...]], read: Any, indices: list[int] | None
    ) -> None:
        self._rows, self._told, self._read, self._indices = rows, told, read, indices
        self.names = names
        self._told_of_broken = False
        self.name, self.size = f"{told['dataset']} ({told['split']})", told["size"]

    @property
    def fingerprint(self) -> str:
        """A hash of what the samples are."""
        return hashlib.sha256(json.dumps(self._told, sort_keys=True, default=str).encode()).hexdigest()

    @property
    def images_fingerprint(self) -> str:
        """The same of the images alone, whatever size they are read at."""
        told = {name: value for name, value in self._told.items() if name != "size"}
        return hashlib.sha256(json.dumps(told, sort_keys=True, default=str).encode()).hexdigest()

    @property
    def count(self) -> int | None:
        """How many there are; None where the stream would have to be read to know."""
        return None if self._indices is None else len(self._indices)

    @property
    def mode(self) -> str | None:
        """The mode of the embedded scenes, None of other images."""
        return self._told.get("mode")

    def subset(self, share: float, seed: int = 0) -> "Samples":
        """A fixed part of the samples, chosen by a hash of each one's place: a smaller share is a part of a larger one.

        Args:
            share (`float`): In (0, 1]. Where the count is known exactly this share of it, rounded, and at least one.
            seed (`int`): Another seed is another part.

        Raises:
            ValueError: If the share is outside (0, 1].
        """
        if not 0 < share <= 1:
            raise ValueError(f"share must be above 0 and at most 1, got {share}")
        rows, indices = self._rows, self._indices
        if indices is None:
            rows = rows.filter(lambda row, index: _hash(index, seed) < share, with_indices=True)
        else:
            indices = _chosen(indices, max(1, round(share * len(indices))), seed)
        told = {**self._told, "subset": [*self._told.get("subset", []), [share, seed]]}
        return Samples(rows, told, self.names, self._read, indices)

    def __iter__(self) -> Iterator[Sample]:
        if self._indices is None:
            found: Iterator[Sample | None] = iter(_Streamed(self._rows, self._read))
        else:
            indexed = _Indexed(self._rows, self._indices, self._read)
            found = (indexed[position] for position in range(len(indexed)))
        return self._readable((sample, 1, int(sample is None)) for sample in found)

    def batches(self, batch_size: int, *, num_workers: int = 0) -> Iterator[dict[str, Any]]:
        """Every sample once, in order, in batches; tensors of equal shape stacked, others in lists. Broken images are left
        out, and a warning tells how many.
        """
        if self._indices is None:  # workers would each read the whole stream
            return self._readable(_loader(_Streamed(self._rows, self._read), batch_size))
        dataset = _Indexed(self._rows, self._indices, self._read)
        return self._readable(_loader(dataset, batch_size, num_workers=num_workers))

    def endless_batches(self, batch_size: int, seed: int, *, num_workers: int = 0) -> Iterator[dict[str, Any]]:
        """Whole batches without end, each pass in another order, a function of `seed` and the pass alone; the rest of a pass
        is left out. Where there are fewer samples than a batch holds they come more than once, those of a stream in smaller
        batches. A broken image is replaced by the next one.
        """
        for epoch in range(2**31):
            if self._indices is None:
                rows = self._rows.shuffle(seed=seed + epoch, buffer_size=SHUFFLE_BUFFER)
                passed = self._readable(_loader(_Streamed(rows, self._read, replace=True), batch_size))
                yield from (
                    batch for place, batch in enumerate(passed) if not place or len(batch["index"]) == batch_size
                )
                continue
            order = np.random.default_rng([seed, epoch]).permutation(len(self._indices)).tolist()
            order *= -(-batch_size // len(order))
            dataset = _Indexed(self._rows, self._indices, self._read, replace=True)
            whole = order[: len(order) // batch_size * batch_size]
            yield from self._readable(_loader(dataset, batch_size, sampler=whole, num_workers=num_workers))

    def _readable(self, parts: Iterable[tuple[Any, int, int]]) -> Iterator[Any]:
        """What can be read of parts with their numbers of images and of broken ones; after the last a word about these."""
        images = broken = 0
        for part, count, lost in parts:
            images, broken = images + count, broken + lost
            if part is not None:
                yield part
        if images == broken:
            raise ValueError(
                f"{self.name} gave no image that can be read ({broken} are broken): choose another split, or a larger limit"
            )
        if broken and not self._told_of_broken:
            logger.warning(f"images of {self.name} that are broken and were left out: {broken}")
            self._told_of_broken = True


def _loader(dataset: Any, batch_size: int, **given: Any) -> DataLoader:
    """A loader with a generator of its own: by default each pass draws from the caller's."""
    return DataLoader(dataset, batch_size, collate_fn=_collate_readable, generator=torch.Generator(), **given)


def _collate_readable(samples: list[Sample | None]) -> tuple[dict[str, Any] | None, int, int]:
    """A batch of those that are not broken, the number of all, and that of broken ones, replaced ones among them."""
    readable = [sample for sample in samples if sample is not None]
    replaced = sum(sample.pop(BROKEN, 0) for sample in readable)
    broken = len(samples) - len(readable) + replaced
    return collate(readable) if readable else None, len(readable) + broken, broken


def collate(samples: list[Sample]) -> dict[str, Any]:
    """A batch of samples: numbers and tensors of one shape stacked, tensors of other shapes in a list."""
    batch: dict[str, Any] = {}
    for key in samples[0]:
        values = [torch.as_tensor(sample[key]) for sample in samples]
        variable = key in ("boxes", "categories", "masks", "keypoints", "ids", "angles", "mirrors", "centers")
        batch[key] = values if variable else torch.stack(values)
    return batch


def load_samples(
    dataset: str = SCENES,
    split: str = "test",
    *,
    size: int,
    limit: int | None = None,
    mode: str = "scene",
    seed: int = 0,
    columns: Columns | None = None,
    config_name: str | None = None,
    revision: str | None = None,
    token: str | None = None,
) -> Samples:
    """Opens images with truth.

    Args:
        dataset (`str`): `"scenes"`; a folder of images in one folder a class (or with `metadata.jsonl`, as `imagefolder`
            reads it), of parquet or tar files (as `webdataset` reads them), both streamed, or of what `save_to_disk` of a
            `DatasetDict` has written; or the id of a dataset on the Hub, which is streamed.
        split (`str`): Which part.
        size (`int`): Side of the images in pixels.
        limit (`int`, *optional*): Only so many. Scenes are drawn independently, so the first are taken; of a folder, whose
            order is by class, those that a hash of the place chooses, whatever else is there; of a stream the first after it
            was shuffled in blocks of shards and among `SHUFFLE_BUFFER` samples with seed 0.
        mode, seed: Of the scenes, see `load_scenes`.
        columns (`Columns`, *optional*): What the columns are called.
        config_name, revision, token (`str`, *optional*): Of a dataset on the Hub, as in `datasets.load_dataset`.

    Returns:
        `Samples`.

    Raises:
        ValueError: If there is no such dataset, split or column, or a number makes no sense.
    """
    if limit is not None and limit < 1:
        raise ValueError(f"limit must be at least 1, got {limit}")
    columns = columns or Columns()
    reader = _Reader(size, columns)
    told: dict[str, Any] = {"dataset": dataset, "split": split, "size": size, "limit": limit}
    if dataset == SCENES:
        scenes = load_scenes(split, size, limit, mode=mode, seed=seed)
        told |= {"mode": mode, "seed": seed, "version": SCENES_VERSION, "limit": len(scenes)}
        if mode != "scene":
            told["dataset"] = f"{SCENES}, {mode}"
        names = {
            "label": label_names(mode),
            "multi_label": THING_CLASSES,
            "semantic": SEMANTIC_CLASSES,
            "categories": THING_CLASSES,
        }
        return Samples(scenes, told, names, reader.scene, list(range(len(scenes))))
    local = Path(dataset).exists()
    revision = revision if local else _commit(dataset, revision, token)
    rows = _open(dataset, split, config_name, revision, token)
    told |= {"columns": asdict(columns), "config": config_name, "revision": revision}
    if local:
        told |= {"dataset": Path(dataset).name, "files": folder_hash(Path(dataset))}
    features = rows.features or {}
    defaults = asdict(Columns())
    for key, column in asdict(columns).items():
        named = isinstance(column, str) and (key == "image" or column != defaults[key])
        if features and named and column not in features:
            raise ValueError(
                f"{told['dataset']} has no column {column!r} but {', '.join(sorted(features))}: name the {key} column"
            )
    names = {}
    for key, column in (("label", columns.label), ("categories", columns.objects)):
        feature: Any = features.get(column)
        if key == "categories" and feature is not None:
            feature = (
                feature.get("category")
                if isinstance(feature, dict)
                else getattr(feature, "feature", {}).get("category")
            )
            feature = getattr(feature, "feature", feature)
        if hasattr(feature, "names"):
            names[key] = tuple(feature.names)
    streamed = _is_stream(rows)
    if limit is not None:
        told["chosen"] = f"shuffled among {SHUFFLE_BUFFER}" if streamed else "by hash"
    if not streamed:
        return Samples(rows, told, names, reader.row, _chosen(range(len(rows)), limit, seed=0))
    if limit is not None:
        rows = rows.shuffle(seed=0, buffer_size=SHUFFLE_BUFFER).take(limit)
    return Samples(rows, told, names, reader.row, None)


def _open(dataset: str, split: str, config_name: str | None, revision: str | None, token: str | None) -> Any:
    """Rows in any order or as a stream; images undecoded, since `decode_image` bounds their size."""
    from datasets import Image as ImageFeature
    from datasets import load_dataset, load_from_disk
    from datasets.exceptions import DatasetNotFoundError

    folder = Path(dataset)
    if folder.is_file():
        raise ValueError(
            f"{folder.name} is a file: name the folder that holds its splits, such as train.parquet and test.parquet"
        )
    try:
        if all((folder / name).is_dir() for name in CLIP_FOLDERS):
            raise ValueError("it holds clips, which only the task propagation reads")
        if (folder / "dataset_dict.json").is_file():
            saved: Any = load_from_disk(dataset)
            if split not in saved:
                raise ValueError(f"it holds {', '.join(saved)}")
            rows = saved[split]
        elif (folder / "state.json").is_file() and (folder / "dataset_info.json").is_file():
            raise ValueError("a Dataset was saved, which has one split: save a DatasetDict of train and test")
        elif folder.is_dir():
            packed = next((kind for kind in _PACKED if next(folder.rglob(f"*{kind}"), None)), None)
            builder = "imagefolder" if packed is None else _PACKED[packed]
            rows = load_dataset(builder, data_dir=dataset, split=split, streaming=packed is not None)
        else:
            rows = load_dataset(dataset, config_name, split=split, streaming=True, revision=revision, token=token)
    except (DatasetNotFoundError, FileNotFoundError, ValueError) as error:
        reason = " ".join(str(error).split())[:300]
        raise ValueError(f"the split {split!r} of {Path(dataset).name} cannot be read: {reason}") from None
    for name, feature in (rows.features or {}).items():
        if isinstance(feature, ImageFeature):
            rows = rows.cast_column(name, ImageFeature(decode=False))
    return rows


def _commit(dataset: str, revision: str | None, token: str | None) -> str | None:
    """The commit that a revision of a dataset on the Hub is now; the revision as given where the Hub does not tell."""
    try:
        return HfApi(token=token).dataset_info(dataset, revision=revision).sha
    except Exception as error:  # no network, or no such dataset, which opening it will say
        if not is_transient(error) and not isinstance(error, (OSError, ValueError)):
            raise
        return revision


def folder_hash(folder: Path) -> str:
    """Of where a folder lies and of its files' names, sizes and times; tells nothing of them."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    states = [(path.relative_to(folder).as_posix(), path.stat().st_size, path.stat().st_mtime_ns) for path in files]
    return hashlib.sha256(repr((str(folder.resolve()), states)).encode()).hexdigest()


def _is_stream(rows: Any) -> bool:
    """Whether rows come in an order of their own. (With torch loaded a stream has a `__getitem__`, which only raises.)"""
    from datasets import IterableDataset as Stream

    return isinstance(rows, Stream)


def _encoded(value: Any) -> Any:
    """What `datasets` gives for an image that it has not decoded, as bytes or path; anything else as it is."""
    if isinstance(value, dict):
        return value["path"] if value.get("bytes") is None else value["bytes"]
    return value


def _open_map(value: Any) -> Image.Image:
    """A map of classes or metres, one number a pixel: an image that is not turned to RGB, or an array."""
    value = _encoded(value)
    if isinstance(value, (bytes, str, Path)):
        value = Image.open(BytesIO(value) if isinstance(value, bytes) else value, formats=("PNG", "TIFF", "BMP", "GIF"))
    if not isinstance(value, Image.Image):
        value = Image.fromarray(np.asarray(value))
    if value.width * value.height > DEFAULT_MAX_PIXELS:
        raise ValueError(f"a map of {value.width} x {value.height} pixels is larger than {DEFAULT_MAX_PIXELS} pixels")
    return value


def _image_tensor(pixels: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1)))


def _chosen(indices: Sequence[int], count: int | None, seed: int) -> list[int]:
    """Those of the smallest hash, in their order: data lie in the order of their classes."""
    if count is None or count >= len(indices):
        return list(indices)
    return sorted(sorted(indices, key=lambda index: _hash(index, seed))[:count])


def _hash(index: int, seed: int) -> float:
    """A number in [0, 1) that is a function of its arguments on every machine."""
    digest = hashlib.sha256(f"{seed}/{index}".encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64
