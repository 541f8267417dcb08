"""The labelled images of a fine-tuning: which are trained on and which are measured, decoded once."""

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from hf_geossl.data.images import BrokenImageError
from hf_geossl.data.sources.opening import SCENES, open_rows
from hf_geossl.data.wording import counted
from hf_geossl.evaluation.fitting.classifiers import hold_out
from hf_geossl.evaluation.reading.sample_reader import CHANGED, Sample
from hf_geossl.evaluation.reading.sample_store import SampleStore
from hf_geossl.evaluation.samples import Columns, Samples, load_samples
from hf_geossl.evaluation.truth import SharedTruth
from hf_geossl.modeling.image_format import ImageFormat

logger = logging.getLogger(__name__)

TEST_SPLITS = ("test", "validation")  # by default the first that there is
HELD_OUT = 0.2  # share of the training images that is measured where there is none


@dataclass(frozen=True)
class LabelledDataset:
    """A labelled dataset, as `evaluate` reads it.

    Args:
        dataset (`str`): As in `load_samples`: `"scenes"`, a folder, or the id of a dataset on the Hub.
        train_split (`str`): What is trained on.
        test_split (`str`, *optional*): What is measured. By default `TEST_SPLITS`, whichever is there first, or else a fifth
            of the training images, chosen by their places alone, that is not trained on.
        limit (`int`, *optional*): At most so many images of each split.
        columns (`Columns`): Names of the columns.
        config_name, revision, token (`str`, *optional*): Of a dataset on the Hub; of scenes their mode.
    """

    dataset: str = SCENES
    train_split: str = "train"
    test_split: str | None = None
    limit: int | None = None
    columns: Columns = field(default_factory=Columns)
    config_name: str | None = None
    revision: str | None = None
    token: str | None = None

    @property
    def name(self) -> str:
        """What records and cards call it."""
        return Path(self.dataset).resolve().name if Path(self.dataset).exists() else self.dataset

    def find_test_split(self) -> str | None:
        """The split that is measured; None where it is held out of the training images."""
        if self.test_split is not None or self.dataset == SCENES:
            return self.test_split or TEST_SPLITS[0]
        split = next(self._default_splits(), None)
        return None if split == self.train_split else split

    def _default_splits(self) -> Iterator[str]:
        """Those of `TEST_SPLITS` that there are."""
        for split in TEST_SPLITS:
            try:
                open_rows(
                    self.dataset,
                    split,
                    config_name=self.config_name,
                    revision=self.revision,
                    token=self.token,
                    image_column=self.columns.image,
                )
            except ValueError:
                continue
            yield split

    def open(self, target: str, sizes: tuple[int, int], image_format: ImageFormat | None) -> "tuple[Split, Split]":
        """Decodes the images that are trained on and those that are measured.

        Args:
            target (`str`): The truth that is needed, a key of `Samples`.
            sizes (two `int`): Side in pixels of both.
            image_format (`ImageFormat`, *optional*): What the model's images are.

        Raises:
            ValueError: If there is no such dataset, no image with this truth, or too few.
        """
        test_split = self.find_test_split()
        read = self._reader(target, image_format, (self.train_split, test_split or self.train_split))
        train = read(self.train_split, sizes[0])
        if test_split is not None:
            if test_split == self.train_split:
                logger.warning(
                    f"{train.samples.name}: the images that are measured are those that are trained on: the number says nothing "
                    "about others"
                )
            return train, self._read_test(read, test_split, sizes[1])
        held_out = hold_out(len(train), HELD_OUT, seed=0)
        test = train if sizes[0] == sizes[1] else read(self.train_split, sizes[1])
        logger.warning(
            f"{train.samples.name}: there is no split {' or '.join(TEST_SPLITS)}, so {counted(int(held_out.sum()), 'image')} of "
            f"{len(train)}, chosen by their places, are not trained on and measured (--test_split names a split)"
        )
        return train.choose(np.flatnonzero(~held_out)), test.choose(np.flatnonzero(held_out), held_out=True)

    def open_test(self, target: str, size: int, image_format: ImageFormat | None) -> "Split":
        """Decodes the images that are measured, the same as `open`."""
        split = self.find_test_split()
        if split is None:
            return self.open(target, (size, size), image_format)[1]
        read = self._reader(target, image_format, (self.train_split, split))  # which decide together what truth means
        return self._read_test(read, split, size)

    def _read_test(self, read: "Callable[[str, int], Split]", split: str, size: int) -> "Split":
        """Reads what is measured; where that was nobody's choice, an error names the other split: tests often lack their truth."""
        try:
            return read(split, size)
        except ValueError as error:
            other = next((name for name in self._default_splits() if name != split), None)
            if self.test_split is not None or self.dataset == SCENES or other is None:
                raise
            raise ValueError(f"{error}, or measure the other split: --test_split {other}") from error

    def _reader(
        self, target: str, image_format: ImageFormat | None, splits: tuple[str, str]
    ) -> "Callable[[str, int], Split]":
        """What decodes a split at a size; `splits` share their truth."""
        shared, store = SharedTruth(splits), SampleStore(progress=True)

        def read(split: str, size: int) -> Split:
            samples = load_samples(
                self.dataset,
                split,
                size=size,
                limit=self.limit,
                mode=(self.config_name if self.dataset == SCENES else None) or "scene",
                columns=self.columns,
                config_name=None if self.dataset == SCENES else self.config_name,
                revision=self.revision,
                token=self.token,
                shared=shared,
                image_format=image_format,
            )
            return Split.read(samples.stretched(target), store, target)

        return read


class Split(Dataset):
    """Decoded images that have the truth of a task.

    Args:
        samples (`Samples`): What they are.
        rows: What gives a sample by its index.
        indices (`Sequence[int]`): Those that have the truth, in order.
        held_out (`bool`): Whether they are a part of the training split.
    """

    def __init__(self, samples: Samples, rows: Any, indices: Sequence[int], *, held_out: bool = False) -> None:
        self.samples, self.rows, self.indices, self.held_out = samples, rows, list(indices), held_out

    @classmethod
    def read(cls, samples: Samples, store: SampleStore, target: str) -> "Split":
        """Decodes the samples; says how many are broken or lack the truth, and were changed.

        Raises:
            ValueError: If none has the truth.
        """
        stored = store.rows(samples.fingerprint, samples.name, samples.rows, samples.read, samples.indices)
        if not stored.fill():
            samples.require(target)
            return cls(samples, _Reading(samples), samples.indices or [])
        having, lacking, broken, changed = [], 0, 0, dict[str, int]()
        for index in stored.indices or []:
            try:
                sample = stored[index]
            except BrokenImageError:
                broken += 1
                continue
            for what, number in sample.get(CHANGED, {}).items():
                changed[what] = changed.get(what, 0) + number
            if target in sample:
                having.append(index)
            else:
                lacking += 1
        if not having:
            samples.refuse_lack(target)
        changed |= {"images that are broken and were left out": broken, f"images without {target!r}, left out": lacking}
        for what, number in changed.items():
            if number:
                logger.warning("%s: %s: %d (%s read)", samples.name, what, number, counted(len(stored), "image"))
        return cls(samples, stored, having)

    def choose(self, places: Sequence[int] | np.ndarray, *, held_out: bool = False) -> "Split":
        """Those at some places."""
        return Split(self.samples, self.rows, [self.indices[int(place)] for place in places], held_out=held_out)

    def numbered_as(self, target: str, names: Sequence[str]) -> "Split":
        """The same with classes numbered as a model numbers them, by their names: in other data some may be missing.

        Args:
            target (`str`): The truth.
            names (`Sequence[str]`): The model's classes. Where none of the data's is among them and there are as many, the
                model's are new names of the same, in their order.

        Raises:
            ValueError: If the data has a class that the model does not know.
        """
        key = "categories" if target == "boxes" else target
        own = self.samples.names.get(key)
        if own is None or list(own) == list(names):
            return self
        unknown = [name for name in own if name not in names]
        if unknown and len(own) == len(names):
            if len(unknown) < len(own):
                logger.warning(
                    "%s: classes are taken by their numbers, as %s of it is called otherwise in the model",
                    self.name, ", ".join(map(repr, unknown[:5])),
                )  # fmt: skip
            return self
        if unknown:
            raise ValueError(
                f"{self.name} has the class {unknown[0]!r}, which the model does not know: it knows {', '.join(names[:20])}"
            )
        return Split(
            self.samples,
            _Renumbered(self.rows, key, [list(names).index(name) for name in own]),
            self.indices,
            held_out=self.held_out,
        )

    @property
    def name(self) -> str:
        """Which images they are, in words."""
        return f"{self.samples.name}, held out" if self.held_out else self.samples.name

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, place: int) -> Sample:
        return self.rows[self.indices[place]]


class _Reading:
    """Samples that are read each time they are asked for, by their indices."""

    def __init__(self, samples: Samples) -> None:
        self.samples = samples

    def __getitem__(self, index: int) -> Sample:
        return self.samples.read(index, self.samples.rows[index])


class _Renumbered:
    """Samples whose classes have other numbers; what is no class stays as it is."""

    def __init__(self, rows: Any, key: str, numbers: Sequence[int]) -> None:
        self.rows, self.key, self.numbers = rows, key, torch.tensor(numbers)

    def __getitem__(self, index: int) -> Sample:
        sample = self.rows[index]
        if self.key not in sample:
            return sample
        given = torch.as_tensor(sample[self.key])
        known = (given >= 0) & (given < len(self.numbers))
        numbers = torch.where(known, self.numbers[given.long().clamp(0, len(self.numbers) - 1)], given.long())
        return {**sample, self.key: numbers.to(given.dtype)}
