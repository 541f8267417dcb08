"""Computes the features of all images of a dataset and writes them as a table, from where the last run ended."""

import hashlib
import json
import logging
import math
import os
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from transformers import BaseImageProcessor

from hf_geossl.data.notes import describe_counts
from hf_geossl.data.wording import counted
from hf_geossl.evaluation.encoders import Encoder
from hf_geossl.evaluation.loading import ModelLike, load_encoder
from hf_geossl.tasks.embedding.arguments import EmbeddingArguments
from hf_geossl.tasks.embedding.features import THUMBNAIL, Encoded, columns_of, encode, row_bytes
from hf_geossl.tasks.embedding.images import DatasetImages, open_images
from hf_geossl.tasks.embedding.inputs import ImageInputs, inputs_of
from hf_geossl.tasks.embedding.loader import Decoded, Decoder, Shard, decoded_ahead, plan
from hf_geossl.tasks.embedding.processes import Processes
from hf_geossl.tasks.embedding.search import read_rows
from hf_geossl.tasks.embedding.shards import Output, ShardFacts, ShardWriter, broken_file_of, is_complete
from hf_geossl.tasks.embedding.tiles import Place
from hf_geossl.tasks.output_lock import output_lock

logger = logging.getLogger(__name__)

FORMAT = 1  # of the table
_MOST_ROWS, _MOST_BYTES = 4096, 2**28  # of a shard
_TILED_ROWS = 64  # images of a shard where each may be hundreds of tiles
_TOLD_EVERY = 5.0  # seconds
_OTHER_TABLES = (
    ".arrow",
    ".csv",
    ".feather",
    ".h5",
    ".json",
    ".jsonl",
    ".npy",
    ".npz",
    ".pkl",
    ".pq",
    ".pt",
    ".tsv",
    ".txt",
)
_IN_FLIGHT = 4  # batches that are encoded and not yet written


@dataclass(frozen=True)
class Embedding:
    """A table of features.

    Args:
        path (`Path`): The file, or the folder of shards.
        files (`list[Path]`): That it consists of.
        rows (`int`): Images, or tiles.
        facts ([`ShardFacts`]): How many images were read, and what was broken.
        made (`bool`): Whether this call has made it; False where it was complete.
        rank (`int`): Of the process; the first of several speaks for them.
        images, encoder, inputs, arguments: The dataset, the model, its input, and how the table was made.
    """

    path: Path
    files: list[Path]
    rows: int
    facts: ShardFacts
    made: bool
    rank: int
    images: DatasetImages
    encoder: Encoder
    inputs: ImageInputs
    arguments: EmbeddingArguments

    def places(self, numbers: Collection[int]) -> dict[int, Place]:
        """Key and tile of some rows, by their numbers."""
        columns = ["key", "box"] if self.arguments.tile else ["key"]
        places: dict[int, Place] = {}
        for number, row in read_rows(self.files, columns, numbers):
            x1, y1, x2, y2 = row["box"].tolist() if "box" in row else (0, 0, 0, 0)
            places[number] = row["key"], (x1, y1, x2, y2) if "box" in row else None
        return places

    def lines(self) -> list[str]:
        """What a user should know of it."""
        facts, lines = self.facts, list[str]()
        if self.rank:
            return lines
        if not self.made:
            lines.append(f"{self.path} is complete already; --overwrite makes it anew")
        if facts.broken:
            example = ": ".join(facts.broken[0])
            lines.append(
                f"{len(facts.broken):,} of {counted(facts.images, 'image')} broken and left out, such as {example}; all of them: "
                f"{broken_file_of(self.path)}"
            )
        lines += describe_counts(facts.notes, facts.images - len(facts.broken))
        if facts.not_finite:
            lines.append(
                f"{counted(facts.not_finite, 'row')} with features that are no finite numbers"
                " (float16 ends at 65,504: --dtype float32 has more)"
            )
        what = counted(self.rows, "row")
        return [*lines, f"{what} of {counted(facts.images, 'image')}: {self.path}"]


def embed(
    model: ModelLike,
    dataset: str | os.PathLike[str],
    output: str | os.PathLike[str],
    arguments: EmbeddingArguments | None = None,
    *,
    on_progress: Callable[[str], None] = lambda line: None,
) -> Embedding:
    """Computes features of all images of a dataset, and writes them as parquet.

    After an end of any kind the same call goes on: shards that are whole are kept, the others made again. Where several
    processes were launched (`torchrun`, `accelerate launch`) each makes its own shards.

    Args:
        model (`str`, `Path`, `nn.Module` or `Encoder`): What `evaluate_model` takes.
        dataset (`str` or path): What `load_stream` takes, or a single image.
        output (`str` or path): A file that ends in .parquet, or a folder of such files.
        arguments ([`EmbeddingArguments`], *optional*): Which features, and how.
        on_progress (`Callable`): Called with a line every few seconds.

    Returns:
        [`Embedding`]: The table. Its columns are `key` (which image: a path, a place in an archive, a row), `height` and
        `width` in pixels, with tiles `box` (x1, y1, x2, y2 in pixels), the dataset's own columns, the features as lists of
        fixed length (`patches` in raster order, `(rows * columns, width)`), and `thumbnail` (12 x 12 pixels of the
        whole image or tile, channel by channel).

    Raises:
        ValueError: If model, dataset, output or arguments do not fit.
        KeyboardInterrupt: After Ctrl-C; shards that are whole stay.
    """
    arguments = arguments or EmbeddingArguments()
    dataset, path = os.fspath(dataset), Path(output).expanduser()
    _check_place(dataset, path)
    processes = Processes.launched()
    images = open_images(dataset, arguments)
    encoder = load_encoder(
        model,
        device=processes.device(arguments.device),
        trust_remote_code=arguments.trust_remote_code,
        revision=arguments.revision,
    )
    inputs = inputs_of(model, encoder, arguments)
    run = _Run(images, encoder, inputs, arguments, processes, on_progress)
    target = Output(path, run.settings())
    with ExitStack() as stack:
        if not processes.rank and (arguments.overwrite or not target.is_there):
            stack.enter_context(output_lock(path, target.lock_file))
        to_do = not processes.rank and target.prepare(arguments.overwrite)
        processes.wait()
        if processes.rank:
            to_do = target.parts.exists()
        facts = run.make(target) if to_do else target.facts()
    files = target.files()
    rows = sum(pq.read_metadata(file).num_rows for file in files) if files else 0
    return Embedding(path, files, rows, facts, to_do, processes.rank, images, encoder, inputs, arguments)


def _check_place(dataset: str, path: Path) -> None:
    """Refuses an output among the images, which would be read as one of them."""
    folder = Path(dataset).expanduser()
    if folder.is_dir() and folder.resolve() in path.resolve().parents:
        raise ValueError(f"the output {path} lies in the folder of the images, {dataset}: choose a place outside of it")
    if not path.suffix == ".parquet" and path.is_file():
        raise ValueError(f"the output must be a folder, or a file that ends in .parquet, got the file {path}")
    if path.suffix.lower() in _OTHER_TABLES:
        raise ValueError(
            f"features are written as parquet, got the output {path}: name a file {path.stem}.parquet, or a folder"
        )
    if path.suffix == ".parquet" and path.is_dir():
        raise ValueError(f"the output {path} is a folder: name it without .parquet, or choose another file")


class _Run:
    """One call of `embed` in one process."""

    def __init__(
        self,
        images: DatasetImages,
        encoder: Encoder,
        inputs: ImageInputs,
        arguments: EmbeddingArguments,
        processes: Processes,
        on_progress: Callable[[str], None],
    ) -> None:
        self.images, self.encoder, self.inputs, self.arguments = images, encoder, inputs, arguments
        self.processes, self.on_progress = processes, on_progress
        self.decoder = Decoder(images, inputs, arguments.tile, arguments.tile_overlap)
        self.own_columns = columns_of(encoder, self._input_shape(), arguments)
        images.without(list(self.own_columns))
        if images.left_out and not processes.rank:
            on_progress(f"columns not carried along: {', '.join(images.left_out)} (--columns names those that are)")
        last = [name for name in self.own_columns if name in (*arguments.features, THUMBNAIL)]
        first = {name: kind for name, kind in self.own_columns.items() if name not in last}
        self.features = datasets.Features(
            {**first, **images.features, **{name: self.own_columns[name] for name in last}}
        )
        batch, wanted = arguments.batch_size, arguments.shard_rows
        if wanted is None:
            wanted = _TILED_ROWS if arguments.tile else min(_MOST_ROWS, _MOST_BYTES // row_bytes(self.own_columns))
        self.shard_rows = max(1, math.ceil(wanted / batch)) * batch
        self._notes: Counter[str] = Counter()
        self._done = self._known = 0
        self._started = self._told = time.monotonic()

    def _input_shape(self) -> tuple[int, int, int]:
        """Channels, height and width of the model's input."""
        described = self.inputs.image_format
        empty = torch.zeros(3 if described is None else described.num_channels, 64, 64, dtype=torch.uint8)
        if described is None:
            from PIL import Image

            picture: Any = Image.new("RGB", (64, 64))
        else:
            picture = empty if described.is_uint8 else empty.float()
        channels, height, width = self.inputs.pixel_values(picture).shape
        return channels, height, width

    def settings(self) -> dict[str, Any]:
        """What decides on the table, as plain values."""
        processor = self.inputs.process
        described = processor.to_json_string() if isinstance(processor, BaseImageProcessor) else str(processor)
        return {
            "format": FORMAT,
            "dataset": json.loads(json.dumps(self.images.identity, default=str)),
            "model": self.encoder.fingerprint[:32],
            "processor": hashlib.sha256(described.encode()).hexdigest()[:16],
            **self.arguments.of_the_table(),
            "shard_rows": self.shard_rows,
        }

    def make(self, output: Output) -> ShardFacts:
        """Makes the shards that are missing, waits for the other processes, and puts the table in its place."""
        ready = output.shards()
        self._known = sum(facts.images for facts in ready.values())
        if self._known and not self.processes.rank:
            self.on_progress(f"{counted(self._known, 'image')} of an earlier run kept")
        works = plan(
            self.images,
            self.arguments.batch_size,
            self.shard_rows,
            lambda shard: shard not in ready and self._is_mine(shard),
            lambda unit: is_complete(unit, ready),
        )
        workers = self._num_workers()
        pins = self.encoder.device.type == "cuda"
        with ThreadPoolExecutor(1) as writing:
            self._write_all(output, decoded_ahead(self.decoder, works, workers, pin_memory=pins), writing)
        self.processes.wait()
        total = ShardFacts()
        if not self.processes.rank:
            total = output.finish(self.images.units, self.features)
        self.processes.wait()
        return total

    def _is_mine(self, shard: Shard) -> bool:
        world = self.processes.world_size
        turn = shard.unit if self.images.units >= world else shard.unit + shard.number
        return turn % world == self.processes.rank

    def _num_workers(self) -> int:
        if self.arguments.num_workers is not None:
            return self.arguments.num_workers
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        cores //= int(os.environ.get("LOCAL_WORLD_SIZE", 1))
        return max(1, min(16, cores if self.encoder.device.type == "cuda" else cores // 2))

    def _write_all(self, output: Output, decoded: Iterator[Decoded], writing: ThreadPoolExecutor) -> None:
        """Encodes in this thread and writes in another, a few batches behind."""
        sink = _Sink(output.parts, self.features)
        pending: list[Future[None]] = []
        for entry in decoded:
            self._count_notes(entry)
            encoded = list(self._encode(entry))
            pending.append(writing.submit(sink.add, entry, encoded))
            while len(pending) > _IN_FLIGHT:
                pending.pop(0).result()
            self._done += len(entry.images) + len(entry.broken)
            self._tell()
        for future in pending:
            future.result()

    def _count_notes(self, entry: Decoded) -> None:
        """Counts what decoding did to images, and logs the first image of each kind."""
        for key, notes in entry.notes:
            for note in {note.kind: note for note in reversed(notes)}.values():
                if not self._notes[note.kind]:
                    logger.warning("%s: %s; further ones are counted and not logged one by one", key, note.facts)
                self._notes[note.kind] += 1

    def _encode(self, entry: Decoded) -> Iterator[Encoded]:
        if entry.pixel_values is None:
            return
        kind = self.encoder.device.type
        with torch.inference_mode(), torch.autocast(kind, torch.bfloat16) if self.arguments.bf16 else nullcontext():
            for pixel_values in entry.pixel_values.split(self.arguments.batch_size):
                yield encode(self.encoder, pixel_values, self.arguments)

    def _tell(self) -> None:
        now = time.monotonic()
        if now - self._told < _TOLD_EVERY:
            return
        self._told = now
        count = self.images.count
        of = f" of {count:,}" if count is not None and self.processes.world_size == 1 else ""
        who = f"process {self.processes.rank}: " if self.processes.world_size > 1 else ""
        known = self._known if self.processes.world_size == 1 else 0
        speed = self._done / (now - self._started)
        self.on_progress(f"{who}{known + self._done:,}{of} images, {speed:.1f} a second")


class _Sink:
    """Makes tables of what was encoded, and shards of tables; in one thread."""

    def __init__(self, folder: Path, features: datasets.Features) -> None:
        self.folder, self.features = folder, features
        self._writer: ShardWriter | None = None

    def add(self, entry: Decoded, encoded: list[Encoded]) -> None:
        """Adds a batch; the shard is finished with its last."""
        if self._writer is None:
            self._writer = ShardWriter(self.folder, entry.work.shard, self.features)
        notes = Counter(kind for _, notes in entry.notes for kind in {note.kind for note in notes})
        not_finite = 0
        if entry.keys:
            arrays = [batch.arrays() for batch in encoded]
            columns = arrays[0]
            if len(arrays) > 1:  # of an image in more tiles than a batch; copies of one would cost
                columns = {name: np.concatenate([batch[name] for batch in arrays]) for name in columns}
            finite = [_finite_rows(values) for values in columns.values()]
            not_finite = int((~np.logical_and.reduce(finite)).sum())
            columns = {**columns, THUMBNAIL: np.stack(entry.thumbnails)}
            self._writer.add(self._table(entry, columns))
        images = len(entry.images) + len(entry.broken)
        self._writer.facts.add(ShardFacts(images, entry.work.last, entry.broken, notes, not_finite))
        if entry.work.ends:
            self._writer.finish()
            self._writer = None

    def _table(self, entry: Decoded, columns: dict[str, np.ndarray]) -> pa.Table:
        plain: dict[str, Any] = {"key": entry.keys}
        plain["height"], plain["width"] = zip(*entry.sizes, strict=True)
        plain["box"] = entry.boxes
        schema = self.features.arrow_schema
        own = datasets.Features({name: self.features[name] for name in entry.carried[0]})
        carried = [own.encode_example(row) for row in entry.carried]
        arrays: list[pa.Array] = []
        for column in schema:
            if column.name in columns:
                arrays.append(_fixed_lists(columns[column.name], column.type))
                continue
            values = list(plain[column.name]) if column.name in plain else [row[column.name] for row in carried]
            try:
                arrays.append(pa.array(values, column.type))
            except pa.ArrowException as error:
                raise ValueError(
                    f"the column {column.name!r} of {entry.keys[0]} or one of the {len(entry.keys)} from it on is no "
                    f"{column.type} ({str(error).splitlines()[0][:120]}): leave it out by --columns"
                ) from error
        return pa.Table.from_arrays(arrays, schema=schema)


def _finite_rows(values: np.ndarray) -> np.ndarray:
    """Which rows hold finite numbers alone, bool `(rows,)`; numpy looks at float16 four times slower than at its bits."""
    rows = values.reshape(len(values), -1)
    if values.dtype == np.float16:
        exponent = np.uint16(0x7C00)
        finite: np.ndarray = ((rows.view(np.uint16) & exponent) != exponent).all(axis=1)
    else:
        finite = np.isfinite(rows).all(axis=1)
    return finite


def _fixed_lists(values: np.ndarray, kind: pa.DataType) -> pa.Array:
    """An array `(rows, ..., width)` as nested lists of fixed length."""
    array = pa.array(np.ascontiguousarray(values).reshape(-1))
    for length in reversed(values.shape[1:]):
        array = pa.FixedSizeListArray.from_arrays(array, length)
    return array.cast(kind)
