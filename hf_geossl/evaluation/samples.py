"""Images with truth, at one size: the embedded scenes, a folder, or a dataset of the Hub, read as they are needed."""

import hashlib
import json
import logging
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import datasets
import numpy as np

from hf_geossl.data import SCENES_VERSION, SEMANTIC_CLASSES, THING_CLASSES, label_names, load_scenes
from hf_geossl.data.sources.base import number_type
from hf_geossl.data.sources.opened import MapDataset
from hf_geossl.data.sources.opening import SCENES, open_rows
from hf_geossl.data.wording import counted
from hf_geossl.evaluation.reading.annotations import is_label
from hf_geossl.evaluation.reading.lacking import mend_of
from hf_geossl.evaluation.reading.sample_reader import (
    CHANGED,
    IndexedRows,
    ReadRow,
    Sample,
    SampleReader,
    StreamedRows,
    batch_loader,
    read_scene,
)
from hf_geossl.evaluation.reading.sample_store import SampleStore, StoredRows
from hf_geossl.evaluation.truth import Columns, SharedTruth, Truth
from hf_geossl.modeling.image_format import ImageFormat

logger = logging.getLogger(__name__)

SHUFFLE_BUFFER = 2048  # samples among which a stream is shuffled
_COLUMN_OF = {
    **{column: column for column in ("label", "semantic", "depth")},
    "multi_label": "label",
    **dict.fromkeys(("boxes", "categories", "keypoints"), "objects"),
}  # target -> the column of `Columns` that it comes from
_TOGETHER = ("boxes", "categories")  # of objects
Part = TypeVar("Part")


class Samples:
    """Images with truth. Make them with `load_samples`.

    A sample is a dictionary of `index` (its place in the dataset), `image` (`(channels, size, size)`, uint8, or float32 in
    units where the image format is not of 8 bits) and what the dataset has of: `label` (int), `multi_label` (`(classes,)`, int64, 0 or 1), `semantic` (`(size, size)`, uint8, 255 where there
    is no truth), `depth` (`(size, size)`, float32 metres, 0 where unknown), `boxes` (`(objects, 4)`, x1, y1, x2, y2 in
    pixels), `categories` (`(objects,)`), `masks` (`(objects, size, size)`, bool), `keypoints` (`(objects,
    points, 3)`, x and y in pixels and visibility, 0 where there is no truth); scenes also `ids` (of the instances), `angles`
    (radians), `mirrors` and `centers` (x, y in pixels) of the objects.

    Args:
        rows: A map-style dataset, or a `datasets.IterableDataset`.
        description (`dict`): What the samples are, in plain values; with `"dataset"`, `"split"` and `"size"`.
        names (`dict[str, tuple[str, ...]]`): Class names of `label`, `multi_label`, `semantic` and `categories`, where the
            dataset has them.
        read (`Callable`): (index, row) -> sample; raises `BrokenImageError`.
        indices (`list[int]`, *optional*): The rows that are samples, in order; None of a stream.

    Attributes:
        name (`str`): What reports call them, such as "scenes (test)".
        size (`int`): Side of the images in pixels.
        stored (`StoredRows`, *optional*): Where they are kept once they have been decoded.
    """

    def __init__(
        self,
        rows: MapDataset | datasets.IterableDataset,
        description: dict[str, Any],
        names: dict[str, tuple[str, ...]],
        read: ReadRow,
        indices: list[int] | None,
    ) -> None:
        self.rows, self.description, self.names, self.read, self.indices = rows, description, names, read, indices
        self.name, self.size = f"{description['dataset']} ({description['split']})", description["size"]
        self.stored: StoredRows | None = None
        self._told: set[str] = set()

    @property
    def fingerprint(self) -> str:
        """A hash of what the samples are."""
        return _digest(self.description)

    @property
    def images_fingerprint(self) -> str:
        """A hash of the images alone, whatever size they are read at."""
        return _digest({name: value for name, value in self.description.items() if name != "size"})

    @property
    def count(self) -> int | None:
        """The number of samples; None where the stream would have to be read to know."""
        return None if self.indices is None else len(self.indices)

    @property
    def mode(self) -> str | None:
        """The mode of the embedded scenes, None of other images."""
        return self.description.get("mode")

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
        rows, indices = self.rows, self.indices
        if isinstance(rows, datasets.IterableDataset):
            rows = rows.filter(lambda row, index: _hash(index, seed) < share, with_indices=True)
        elif indices is not None:
            indices = _chosen(indices, max(1, round(share * len(indices))), seed)
        description = {**self.description, "subset": [*self.description.get("subset", []), [share, seed]]}
        part = Samples(rows, description, self.names, self.read, indices)
        part.stored = None if isinstance(rows, datasets.IterableDataset) else self.stored
        return part

    def stretched(self, target: str) -> "Samples":
        """The same images with one kind of truth, each stretched to the square as a whole, not cut to its center.

        That is what a model's image processor does. Scenes are squares of the size already.
        """
        description = {**self.description, "whole": True, "target": target}
        if isinstance(self.read, SampleReader):
            read: ReadRow = self.read.of_whole_images(_COLUMN_OF[target])
        else:
            read = partial(
                _read_some, self.read, ("index", "image", *(_TOGETHER if target in _TOGETHER else (target,)))
            )
        return Samples(self.rows, description, self.names, read, self.indices)

    def store_in(self, store: SampleStore) -> "Samples":
        """Decodes each sample once: what the first whole pass has read is kept there, for all samples of this fingerprint.

        Passes over a stream in an order of their own, as for training, read it again; and so does all of a stream without
        limit, of which nobody knows how much it is.
        """
        if self.count is not None or self.description.get("limit") is not None:
            self.stored = store.rows(self.fingerprint, self.name, self.rows, self.read, self.indices)
        return self

    def require(self, *targets: str) -> Sample:
        """The first sample.

        Raises:
            ValueError: If it lacks one of the targets; it names the dataset's columns and the argument that chooses one.
        """
        first = next(iter(self))
        self.refuse_lack(*(target for target in targets if target not in first))
        return first

    def refuse_lack(self, *missing: str) -> None:
        """Raises the error for truth that the samples lack, if any is."""
        known = ", ".join(getattr(self.rows, "column_names", None) or ()) or "unknown"
        for target in missing:
            if target == "label" and "multi_label" in self.names:
                raise ValueError(
                    f"the labels of {self.name} are lists of classes, and one class an image is needed: name a column of such "
                    "by --label_column (Columns(label=...)); geossl evaluate --tasks multilabel measures lists"
                )
            mend = mend_of(_COLUMN_OF.get(target), self.rows, self.description["dataset"])
            raise ValueError(f"{self.name} has no {target!r}, which this task needs; its columns are {known}: {mend}")

    def __iter__(self) -> Iterator[Sample]:
        samples = self._dataset(fill=False)
        read: Iterable[Sample | None] = (
            samples if isinstance(samples, StreamedRows) else map(samples.__getitem__, range(len(samples)))
        )
        return self._readable((sample, 1, int(sample is None), (sample or {}).pop(CHANGED, {})) for sample in read)

    def batches(
        self, batch_size: int, *, num_workers: int = 0, columns: Sequence[str] | None = None
    ) -> Iterator[dict[str, Any]]:
        """Every sample once, in order, in batches; tensors of equal shape stacked, others in lists.

        Broken images are left out, and a warning says how many. Columns name what is needed of what there is; the rest may
        be missing.
        """
        stored = self.stored
        if columns is not None and stored is not None and stored.fill() and stored.are_uniform(columns):
            places = stored.indices if self.indices is None else self.indices
            return self._readable(stored.batches(places or [], batch_size, columns))
        samples = self._dataset()
        workers = num_workers if isinstance(samples, IndexedRows) else 0  # which would each read the whole stream
        return self._readable(batch_loader(samples, batch_size, num_workers=workers))

    def endless_batches(self, batch_size: int, seed: int, *, num_workers: int = 0) -> Iterator[dict[str, Any]]:
        """Full batches without end, each pass in another order, a function of `seed` and the pass alone.

        The rest of a pass is left out. Where there are fewer samples than a batch holds they come more than once, those of
        a stream in smaller batches. A broken image is replaced by the next one.
        """
        for epoch in range(2**31):
            if isinstance(self.rows, datasets.IterableDataset):
                rows = self.rows.shuffle(seed=seed + epoch, buffer_size=SHUFFLE_BUFFER)
                passed = self._readable(batch_loader(StreamedRows(rows, self.read, replace=True), batch_size))
                yield from (
                    batch for place, batch in enumerate(passed) if not place or len(batch["index"]) == batch_size
                )
                continue
            indices = self.indices or []
            order = np.random.default_rng([seed, epoch]).permutation(len(indices)).tolist()
            order *= -(-batch_size // len(order))
            samples, workers = IndexedRows(self.rows, indices, self.read, replace=True), num_workers
            if self.stored is not None and self.stored.fill():
                samples, workers = IndexedRows(self.stored, indices, _as_read, replace=True), 0
            full = order[: len(order) // batch_size * batch_size]
            yield from self._readable(batch_loader(samples, batch_size, sampler=full, num_workers=workers))

    def _dataset(self, *, fill: bool = True) -> "IndexedRows | StreamedRows":
        stored = self.stored
        if stored is not None and (stored.fill() if fill else stored.filled):
            return IndexedRows(stored, (stored.indices if self.indices is None else self.indices) or [], _as_read)
        if isinstance(self.rows, datasets.IterableDataset):
            return StreamedRows(self.rows, self.read)
        return IndexedRows(self.rows, self.indices or [], self.read)

    def _readable(self, parts: Iterable[tuple[Part | None, int, int, Mapping[str, int]]]) -> Iterator[Part]:
        """Yields the parts that can be read, of (part, images, broken ones, what was changed); says these after the last."""
        images = broken = 0
        changes: Counter[str] = Counter()
        for part, count, lost, changed in parts:
            images, broken = images + count, broken + lost
            changes.update(changed)
            if part is not None:
                yield part
        if images == broken:
            raise ValueError(
                f"{self.name} gave no image that can be read ({broken} are broken): choose another split, or a larger limit"
            )
        changes["images that are broken and were left out"] = broken
        for what, number in changes.items():
            if number and what not in self._told:
                logger.warning("%s: %s: %d (%s read)", self.name, what, number, counted(images, "image"))
                self._told.add(what)


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
    shared: SharedTruth | None = None,
    image_format: ImageFormat | None = None,
) -> Samples:
    """Opens images with truth.

    Args:
        dataset (`str`): `"scenes"`; a folder, archive or list of images in one folder a class, or with `metadata.jsonl`; a
            folder of parquet or tar files, which are streamed, or of what `save_to_disk` has written; or the id of a dataset
            on the Hub, which is streamed.
        split (`str`): Which part.
        size (`int`): Side of the images in pixels.
        limit (`int`, *optional*): Only so many. Scenes are drawn independently, so the first are taken; of a folder, whose
            order is by class, those that a hash of the place chooses, whatever else is there; of a stream the first after it
            was shuffled in blocks of shards and among `SHUFFLE_BUFFER` samples with seed 0.
        mode, seed: Of the scenes, see `load_scenes`.
        columns (`Columns`, *optional*): Names of the columns.
        config_name, revision, token (`str`, *optional*): Of a dataset on the Hub, as in `datasets.load_dataset`.
        image_format (`ImageFormat`, *optional*): What the model's images are; RGB of 8 bits by default.
        shared (`SharedTruth`, *optional*): What the truth means, decided once for splits that must be read alike.

    Returns:
        `Samples`.

    Raises:
        ValueError: If there is no such dataset, split or column, or a number makes no sense.
    """
    if limit is not None and limit < 1:
        raise ValueError(f"limit must be at least 1, got {limit}")
    description: dict[str, Any] = {"dataset": dataset, "split": split, "size": size, "limit": limit}
    if image_format is not None:
        if dataset == SCENES:
            raise ValueError(
                f"the scenes are RGB of 8 bits, and the model takes {image_format.describe()}: name a dataset of your own, by --dataset"
            )
        description["image_format"] = image_format.to_dict()
    if dataset == SCENES:
        return _load_scenes(description, mode, seed)
    columns = columns or Columns()
    opening = partial(open_rows, dataset, config_name=config_name, token=token, image_column=columns.image)
    opened = opening(split, revision=revision)
    rows = opened.rows
    description |= {"columns": asdict(columns), "config": config_name, "revision": opened.revision}
    if opened.folder is not None:
        description |= {"dataset": opened.folder.name, "files": folder_hash(opened.folder), "revision": revision}
    features = rows.features or datasets.Features()
    _check_columns(features, columns, description["dataset"])
    shared = shared or SharedTruth((split,))
    opening = partial(opening, revision=opened.revision)
    truth = shared.decide({split: opened}, opening, columns, str(description["dataset"]))
    if truth != Truth():
        description["truth"] = asdict(truth)
    dtype = number_type(features.get(columns.image))
    names, read = _class_names(features, columns, truth), SampleReader(size, columns, token, truth, image_format, dtype)
    streamed = isinstance(rows, datasets.IterableDataset)
    if limit is not None:
        description["chosen"] = f"shuffled among {SHUFFLE_BUFFER}" if streamed else "by hash"
    place = f"{description['dataset']} ({split})"
    labelled = shared.with_label(opened, columns, place)
    if not streamed:
        return Samples(rows, description, names, read, _chosen(labelled, limit, seed=0))
    if shared.lacking[place]:
        rows = rows.filter(partial(_has_label, columns.label))
    if limit is not None:
        rows = rows.shuffle(seed=0, buffer_size=SHUFFLE_BUFFER).take(limit)
    return Samples(rows, description, names, read, None)


def _as_read(index: int, row: Mapping[str, Any]) -> Sample:
    """A stored sample, which needs no reading."""
    return dict(row)


def _read_some(read: ReadRow, keys: Sequence[str], index: int, row: Mapping[str, Any]) -> Sample:
    sample = read(index, row)
    return {key: sample[key] for key in keys if key in sample}


def _has_label(column: str, row: Mapping[str, Any]) -> bool:
    return is_label(row[column])


def _load_scenes(description: dict[str, Any], mode: str, seed: int) -> Samples:
    scenes = load_scenes(description["split"], description["size"], description["limit"], mode=mode, seed=seed)
    description |= {"mode": mode, "seed": seed, "version": SCENES_VERSION, "limit": len(scenes)}
    if mode != "scene":
        description["dataset"] = f"{SCENES}, {mode}"
    names = {
        "label": label_names(mode),
        "multi_label": THING_CLASSES,
        "semantic": SEMANTIC_CLASSES,
        "categories": THING_CLASSES,
    }
    return Samples(scenes, description, names, read_scene, list(range(len(scenes))))


def _check_columns(features: datasets.Features, columns: Columns, name: str) -> None:
    """Refuses a column that the user has named, or that of the images, if it is not there."""
    defaults = asdict(Columns())
    for key in ("image", "label", "semantic", "depth", "objects"):
        column = getattr(columns, key)
        named = key == "image" or column != defaults[key]
        if features and named and column not in features:
            raise ValueError(
                f"{name} has no column {column!r} but {', '.join(sorted(features))}: name the {key} column"
            )


def _class_names(features: datasets.Features, columns: Columns, truth: Truth) -> dict[str, tuple[str, ...]]:
    label, objects = features.get(columns.label), features.get(columns.objects)
    category = (objects if isinstance(objects, dict) else getattr(objects, "feature", None) or {}).get("category")
    category = getattr(category, "feature", category)
    classes = {"label": label, "categories": category}
    names = {key: tuple(feature.names) for key, feature in classes.items() if hasattr(feature, "names")}
    if getattr(label, "dtype", None) == "bool" and not truth.lists:
        names["label"] = ("False", "True")
    numbered = {"multi_label" if truth.lists else "label": truth.labels, "categories": truth.categories}
    return names | {key: tuple(map(str, values)) for key, values in numbered.items() if values is not None}


def folder_hash(folder: Path) -> str:
    """Returns a hash of where a folder lies and of its files' names, sizes and times, which reveals none of them."""
    files = sorted(path for path in folder.rglob("*") if path.is_file()) if folder.is_dir() else [folder]
    states = [(path.relative_to(folder).as_posix(), path.stat().st_size, path.stat().st_mtime_ns) for path in files]
    return hashlib.sha256(repr((str(folder.resolve()), states)).encode()).hexdigest()


def _digest(description: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(description, sort_keys=True, default=str).encode()).hexdigest()


def _chosen(indices: Sequence[int], count: int | None, seed: int) -> list[int]:
    """Takes those of the smallest hash, in their order: data often lie in the order of their classes."""
    if count is None or count >= len(indices):
        return list(indices)
    return sorted(sorted(indices, key=lambda index: _hash(index, seed))[:count])


def _hash(index: int, seed: int) -> float:
    """A number in [0, 1) that is a function of its arguments on every machine."""
    digest = hashlib.sha256(f"{seed}/{index}".encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64
