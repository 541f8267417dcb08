"""Looks at every image of a dataset once: what it is, what is broken, what is there twice, which truth there is."""

import re
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import datasets

from hf_geossl.data.blocks import UnitReader
from hf_geossl.data.contact_sheet import Thumbnails
from hf_geossl.data.images import DEFAULT_MAX_PIXELS
from hf_geossl.data.inspection_state import InspectionState, digest_of
from hf_geossl.data.measurement import name_of_row, read_noted, sample_rows
from hf_geossl.data.measuring.image_statistics import Measurement
from hf_geossl.data.rasters import BrokenImageError
from hf_geossl.data.sources.base import Source
from hf_geossl.data.sources.files import as_path
from hf_geossl.data.sources.opening import open_rows, open_source

SPLITS = ("train", "validation", "test")
_ROWS_AT_ONCE = 32
_SAVED_EVERY = 10.0  # seconds
_TOLD_EVERY = 5.0
_MOST_CLASSES = 10_000
_OTHER_CLASSES = "(other classes)"
_LABELS = ("label", "labels", "class", "classes", "category", "target", "fine_label")


@dataclass
class SplitReport:
    """What was found in one split.

    Args:
        measured ([`Measurement`]): of its images.
        classes (`Counter`): images by class, of folders or of a column.
        columns (`dict[str, str]`): type of each column of a labelled dataset.
        label_column (`str`, *optional*): that the classes come from.
    """

    measured: Measurement = field(default_factory=Measurement)
    classes: Counter[str] = field(default_factory=Counter)
    columns: dict[str, str] = field(default_factory=dict)
    label_column: str | None = None

    def add_class(self, name: str) -> None:
        """Counts an image of a class, of 10,000 of them at most."""
        self.classes[name if name in self.classes or len(self.classes) < _MOST_CLASSES else _OTHER_CLASSES] += 1

    def state_dict(self) -> dict[str, Any]:
        """Returns plain values for JSON."""
        return {**vars(self), "measured": self.measured.state_dict()}

    @classmethod
    def from_state_dict(cls, state: Mapping[str, Any]) -> "SplitReport":
        """Makes the report of what `state_dict` returned."""
        measured = Measurement.from_state_dict(state["measured"])
        return cls(**{**state, "measured": measured, "classes": Counter(state["classes"])})


@dataclass(frozen=True)
class DatasetArguments:
    """Which dataset, and how it is read: as in [`load_stream`].

    Args:
        dataset (`str`): folder, glob, file, or id on the Hub.
        split (`str`, *optional*): all splits by default.
        config_name, revision (`str`, *optional*), image_column (`str`), max_pixels (`int`): as there.
        limit (`int`, *optional*): images of each split at most, spread evenly over it; all by default.
    """

    dataset: str
    split: str | None = None
    config_name: str | None = None
    image_column: str = "image"
    revision: str | None = None
    max_pixels: int = DEFAULT_MAX_PIXELS
    limit: int | None = None


class Inspection:
    """Inspects a dataset, image by image, and remembers in a file how far it is.

    Memory is bounded whatever the dataset: counters, histograms, 48 thumbnails; contents and broken images are in the state
    file. After an interruption of any kind the same call goes on at the last saved position, at most 10 seconds before.

    Args:
        arguments ([`DatasetArguments`]): which dataset.
        state_file (`Path`): where it remembers how far it is.
        tell (`Callable`, *optional*): called with a line about the progress every few seconds.

    Attributes:
        reports (`dict[str, SplitReport]`): by split.
        thumbnails ([`Thumbnails`]): for the contact sheet.
    """

    def __init__(
        self, arguments: DatasetArguments, state_file: Path, tell: Callable[[str], None] = lambda line: None
    ) -> None:
        self.arguments, self.state_file, self.tell = arguments, state_file, tell
        self.reports: dict[str, SplitReport] = {}
        self.thumbnails = Thumbnails()
        self.duplicates: dict[str, Any] = {}
        self.broken: list[dict[str, str]] = []
        self._stopping = False
        self._told = self._saved = time.monotonic()

    def stop(self) -> None:
        """Lets `run` end with a KeyboardInterrupt after the present image, when it has saved its position."""
        self._stopping = True

    def run(self) -> None:
        """Inspects what has not been inspected yet.

        Raises:
            FileNotFoundError, PermissionError, ValueError, ConnectionError: as [`load_stream`].
            ValueError: if the state file is of another dataset or other arguments.
            KeyboardInterrupt: after `stop`.
        """
        sources = open_splits(self.arguments)
        identity = {
            "arguments": {**vars(self.arguments), "dataset": Path(self.arguments.dataset).name},
            "splits": {split: source.identity for split, source in sources.items()},
        }
        with InspectionState(self.state_file) as state:
            self._load(state, identity)
            for split, source in sources.items():
                self._inspect_split(state, split, source)
            self.duplicates = {
                "copies": state.count_copies(),
                "across_splits": state.count_across_splits(),
                "groups": list(state.groups(100)),
            }
            self.broken = state.broken(10_000)

    def _load(self, state: InspectionState, identity: Mapping[str, Any]) -> None:
        saved = state.load("identity")
        if saved is None:
            state.save("identity", identity)
            state.commit()
            return
        changed = [name for name in identity if saved.get(name) != _plain(identity[name])]
        if changed:
            raise ValueError(
                f"{self.state_file.name} is of another inspection (its {' and '.join(changed)} differ): begin anew with "
                "--overwrite, or choose another --output"
            )
        self.thumbnails = Thumbnails.from_state_dict(state.load("thumbnails") or [])
        self.reports = {split: SplitReport.from_state_dict(one) for split, one in (state.load("reports") or {}).items()}

    def _save(self, state: InspectionState, split: str, unit: int, rows: int) -> None:
        state.save("reports", {name: report.state_dict() for name, report in self.reports.items()})
        state.save("thumbnails", self.thumbnails.state_dict())
        state.save(f"position of {split}", [unit, rows])
        state.commit()
        self._saved = time.monotonic()

    def _inspect_split(self, state: InspectionState, split: str, source: Source) -> None:
        unit, done = state.load(f"position of {split}") or (0, 0)
        if unit >= source.units:
            return
        if split not in self.reports:
            self.reports[split] = _find_truth(self.arguments, split, source)
        report = self.reports[split]
        total = source.num_images if self.arguments.limit is None else self.arguments.limit
        for at, number, key, row in _rows(source, self.arguments.limit, unit, done):
            self._inspect_image(state, split, source, key, row)
            now = time.monotonic()
            if now - self._told > _TOLD_EVERY:
                self._told = now
                seen = report.measured.images + report.measured.num_broken
                self.tell(f"{split}: {seen:,}{f' of {total:,}' if total else ''} images")
            if now - self._saved > _SAVED_EVERY or self._stopping:
                self._save(state, split, at, number + 1)
            if self._stopping:
                raise KeyboardInterrupt
        self._save(state, split, source.units, 0)

    def _inspect_image(
        self, state: InspectionState, split: str, source: Source, key: str, row: Mapping[str, Any]
    ) -> None:
        report = self.reports[split]

        def remember(value: Any) -> None:
            digest = digest_of(value)
            if digest is not None:
                state.add_content(split, key, digest)

        try:
            raster, notes = read_noted(source, row, self.arguments.max_pixels, observe=remember)
        except BrokenImageError as error:
            report.measured.add_broken(key, error.reason)
            state.add_broken(split, key, error.reason)
            return
        report.measured.add(key, raster, notes)
        self.thumbnails.add(key if key.startswith(split) else f"{split}/{key}", raster)


def open_splits(arguments: DatasetArguments) -> dict[str, Source]:
    """Opens the splits of a dataset that there are.

    Raises:
        FileNotFoundError, PermissionError, ValueError, ConnectionError: as [`load_stream`].
    """
    names = SPLITS if arguments.split is None else (arguments.split,)
    sources: dict[str, Source] = {}
    missing: list[ValueError] = []
    for split in names:
        try:
            sources[split] = open_source(
                arguments.dataset,
                split,
                config_name=arguments.config_name,
                image_column=arguments.image_column,
                shuffle_block=1000,
                revision=arguments.revision,
                token=None,
            )
        except ValueError as error:
            if "split" not in str(error):  # a split that is not there is none of the dataset's
                raise
            missing.append(error)
    if not sources:
        raise missing[0]
    return sources


def _rows(source: Source, limit: int | None, unit: int, done: int) -> Iterator[tuple[int, int, str, dict[str, Any]]]:
    """Gives (unit, row of the unit, name, row) from a position on; with a limit the rows are spread, in unit 0."""
    if limit is not None:
        for number, (key, row) in enumerate(islice(sample_rows(source, limit), done, None)):
            yield 0, done + number, key, row
        return
    for index in range(unit, source.units):
        reader, number = UnitReader(source, index), 0
        while rows := reader.read(_ROWS_AT_ONCE):
            for row in rows:
                if index > unit or number >= done:
                    yield index, number, name_of_row(source, index, number, row), row
                number += 1


def _find_truth(arguments: DatasetArguments, split: str, source: Source) -> SplitReport:
    """Finds columns, truth and classes; labels are counted over the whole split, without reading an image."""
    if source.kind == "scenes":
        return SplitReport()
    try:
        rows = open_rows(arguments.dataset, split, config_name=arguments.config_name, revision=arguments.revision).rows
    except (ValueError, OSError):  # a single parquet or tar file: its images can be read, its labels are not
        return SplitReport()
    features = rows.features
    if features is None:  # of a stream that has not been read
        first: dict[str, Any] = next(iter(rows), {})
        return SplitReport(columns={name: type(value).__name__ for name, value in first.items()})
    classes = [name for name, feature in features.items() if isinstance(feature, datasets.ClassLabel)]
    column = next(iter([name for name in _LABELS if name in features] + classes), None)
    if arguments.limit is not None and as_path(arguments.dataset) is None:
        column = None  # all rows would be downloaded
    report = SplitReport(columns={name: _type_of(one) for name, one in features.items()}, label_column=column)
    if column is not None:
        for batch in rows.select_columns([column]).iter(batch_size=1000):
            for entry in batch[column]:
                for value in entry if isinstance(entry, list) else [entry]:
                    report.add_class(_class_name(features[column], value))
    return report


def _class_name(feature: object, value: object) -> str:
    if value is None:
        return "(none)"
    if isinstance(feature, datasets.ClassLabel) and isinstance(value, int) and 0 <= value < feature.num_classes:
        return str(feature.int2str(value))
    return str(value)[:200]


def _type_of(feature: object) -> str:
    if isinstance(feature, datasets.ClassLabel):
        return f"{feature.num_classes} classes"
    if isinstance(feature, datasets.Image):
        return "image"
    entries = getattr(feature, "feature", feature)  # of a list
    if isinstance(entries, Mapping):
        return ", ".join(map(str, entries))[:200]
    text = str(getattr(feature, "dtype", None) or feature)
    return re.sub(r"\s+", " ", text)[:200]


def _plain(value: Any) -> Any:
    """As JSON gives it back."""
    if isinstance(value, Mapping):
        return {str(name): _plain(entry) for name, entry in value.items()}
    return [_plain(entry) for entry in value] if isinstance(value, (list, tuple)) else value
