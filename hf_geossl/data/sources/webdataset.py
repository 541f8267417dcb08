"""WebDataset tars, on this machine or on the Hub: a stream's images, or labelled rows.

A sample is a run of members that share their name up to its first dot; the rest of the name is the ending. Names may have
dots of their own: an ending with a dot that no other of the first samples has ends at the name's last dot instead, so that
photo.2021.jpg and photo.2022.jpg are two samples.
"""

import json
import os
import re
import tarfile
import zlib
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from itertools import islice
from typing import Any, NamedTuple

import datasets
import pyarrow as pa
from datasets.iterable_dataset import ExamplesIterable
from huggingface_hub import HfFileSystem

from hf_geossl.data.retries import OPENING_PAUSES, is_transient, retry
from hf_geossl.data.sources.archives import check_regular
from hf_geossl.data.sources.base import Source, missing_column, rows_from, value_of_row
from hf_geossl.data.sources.compressed import open_tar
from hf_geossl.data.sources.files import Files
from hf_geossl.data.sources.listing import is_hidden, kind_of, sample_of
from hf_geossl.data.sources.pairing import MAP_COLUMNS, image_of, map_column
from hf_geossl.data.wording import Place, some_of

OpenTar = Callable[[str], AbstractContextManager[tarfile.TarFile]]
_UNREADABLE = (OSError, EOFError, tarfile.TarError, zlib.error)
_SAMPLES_TRIED = 20  # of the first readable tar, to learn their endings
_ROWS_TRIED = 5  # to learn the types of columns
_IN_JSON = frozenset(["label", "objects"])  # what a sample's .json may give it as columns


def open_local(path: str) -> tarfile.TarFile:
    """Opens a tar on this machine."""
    check_regular(path)
    return open_tar(path)


@contextmanager
def open_on_hub(path: str, token: str | bool | None = None) -> Iterator[tarfile.TarFile]:
    """Opens a tar on the Hub as one stream of bytes; after a failed read it has to be opened again."""
    with (
        HfFileSystem(token=token).open(path, "rb", block_size=0) as file,
        tarfile.open(fileobj=file, mode="r|*") as archive,
    ):
        yield archive


class Layout(NamedTuple):
    """What endings mean.

    Args:
        column (`str`): the ending of the images, with or without its format; "" for the plain one of each sample.
        fields (`frozenset[str]`): endings with dots that are a sample's, and not parts of names.
        several (`bool`): whether a sample may have several plain images, of which the first counts.
        maps (`bool`): whether samples called after others ("7_mask" beside "7") are maps, and no images to learn from.
    """

    column: str = ""
    fields: frozenset[str] = frozenset()
    several: bool = False
    maps: bool = False

    def divide(self, name: str) -> tuple[str, str]:
        """The sample's name and the ending of a member."""
        folder, _, base = name.rpartition("/")
        stem, _, ending = base.partition(".")
        if "." in ending and ending.lower() not in self.fields and not _map_column(ending):
            stem, _, ending = base.rpartition(".")
        return f"{folder}/{stem}".lstrip("./"), ending.lower()

    def wants(self, ending: str) -> bool:
        """Whether an ending is that of a sample's image."""
        if not self.column:
            return _is_image(ending) and "." not in ending
        return _is_image(ending) and self.column in (ending, ending.rpartition(".")[0])


def _map_column(ending: str) -> str | None:
    """The column of truth that an ending such as "seg.png" stands for; None of an image's."""
    return map_column(ending.split(".")[-2]) if "." in ending and _is_image(ending) else None


def _is_image(ending: str) -> bool:
    return kind_of(f"x.{ending}") == "folder"


def webdataset_source(
    files: Files,
    name: str,
    image_column: str,
    *,
    kind: str = "webdataset",
    identity: dict[str, Any] | None = None,
    open_tar: OpenTar = open_local,
) -> Source:
    """Opens WebDataset tars, a unit each.

    Args:
        files (`Files`): the tars.
        name (`str`), kind (`str`, *optional*), identity (`dict`, *optional*): as in [`Source`].
        image_column (`str`): the ending of the images ("left.jpg", or "left" for any format). The default "image" takes the
            one plain image of a sample, whether it ends in .jpg, .png or .webp.
        open_tar (`Callable`, *optional*): path -> the archive, in a `with` statement.

    Raises:
        ValueError: if no tar can be read, or none has such images.
        ConnectionError: if the network keeps failing.
    """
    layout = _layout(files, name, image_column, open_tar)
    return Source(
        kind=kind,
        name=name,
        rows=rows_from(_image_rows, tars=files.names, root=files.root, layout=layout, open_tar=open_tar),
        units=len(files.names),
        read=partial(value_of_row, files.root),
        identity=files.identity() if identity is None else identity,
    )


def webdataset_rows(
    files: Files, name: str, columns: Collection[str] | None = None, *, open_tar: OpenTar = open_local
) -> datasets.IterableDataset:
    """Opens WebDataset tars with all endings as columns, "image" for the plain one, "label" for `.cls`, and those of maps.

    Where a sample's `.json` holds an object with "label" or "objects", these are columns too.

    Args:
        files (`Files`), name (`str`), open_tar (`Callable`, *optional*): as in [`webdataset_source`].
        columns (`Collection[str]`, *optional*): these alone; what they do not need is not read.

    Raises:
        ValueError: if no tar can be read.
    """
    layout = _layout(files, name, "image", open_tar)
    shards: dict[str, Any] = {"tars": files.names, "root": files.root, "layout": layout, "open_tar": open_tar}
    first = [row for _, row in islice(_labelled_rows(**shards), _ROWS_TRIED)]
    schema = pa.concat_tables([pa.Table.from_pylist([row]) for row in first], promote_options="default").schema
    features = datasets.Features.from_arrow_schema(schema)
    features |= {
        column: datasets.Image(decode=False)
        for column in features
        if column in ("image", *MAP_COLUMNS) or _is_image(column)
    }
    features = datasets.Features({key: kind for key, kind in features.items() if columns is None or key in columns})
    info = datasets.DatasetInfo(features=features)
    return datasets.IterableDataset(
        ExamplesIterable(_labelled_rows, shards | {"columns": frozenset(features)}), info=info
    )


def _layout(files: Files, name: str, image_column: str, open_tar: OpenTar) -> Layout:
    """Learns what endings mean from the first samples, and says which images are not read."""
    samples = _first_samples(files, name, open_tar)
    runs = list(samples.values())
    endings = Counter(ending for run in runs for ending in run)
    images = {ending for ending in endings if _is_image(ending)}
    place = Place(files.root, name)
    if any(map(Layout(image_column).wants, images)):
        return Layout(image_column, frozenset(ending for ending in endings if "." in ending))
    if maps := sorted(filter(_map_column, images)):
        place.warn(
            f"maps ({some_of(maps)}) taken as no images to learn from, and as the "
            f"{' and '.join(sorted({str(_map_column(ending)) for ending in maps}))} of an evaluation"
        )
        images -= set(maps)
    plain = sorted(ending for ending in images if "." not in ending)
    beside = {
        ending for run in runs if run & set(plain) for ending in run if re.fullmatch(r"[a-z_]+\.[a-z0-9]+", ending)
    }
    dotted = beside | {ending for ending, count in endings.items() if "." in ending and count > 1}
    several = any(len(run & set(plain)) > 1 for run in runs)
    if image_column != "image" or not images:
        raise missing_column(image_column, sorted(endings), name)
    others = sorted(images & dotted)
    if others and not plain:
        if len(others) > 1:
            place.warn(
                f"each of a sample's images ({some_of(others)}) taken as one of its own; --image_column takes one kind"
            )
        if maps and len(others) == 1 and all(others[0] in run for run in runs):
            return Layout(others[0], frozenset(dotted))
        return Layout("", frozenset(dotted - images))
    called = sorted(sample for sample in samples if _named_map(sample))
    of_images = [sample for sample in called if f"{sample.rpartition('/')[0]}/{_named_map(sample)}" in samples]
    if of_images and 2 * len(of_images) >= len(samples) - len(called):
        place.warn(
            f"samples called after the one beside ({some_of([sample.lstrip('/') for sample in called])}) taken as maps and "
            "left out; in an evaluation x.seg.png is the map of x.jpg"
        )
    else:
        of_images = []
    if several:
        place.warn(f"of a sample's images ({', '.join(plain)}) only the first is read; --image_column takes another")
    if others:
        place.warn(f"images under further endings ({some_of(others)}) not read; --image_column takes one")
    if own := sorted(images - dotted - set(plain)):
        place.warn(
            f"dots in names of images ({some_of(own)}) taken as parts of the names: each image is a sample of its own"
        )
    return Layout("", frozenset(dotted), several, bool(of_images))


def _named_map(sample: str) -> str | None:
    return image_of(sample.rpartition("/")[2])


def _first_samples(files: Files, name: str, open_tar: OpenTar) -> dict[str, set[str]]:
    """The endings of each of the first samples, by their names, in the first tar that can be read and has some."""
    failures: list[str] = []
    for tar in files.names:
        read = partial(_endings, os.path.join(files.root, tar), open_tar)
        try:
            samples = retry(f"opening {tar} of {name}", read, OPENING_PAUSES)
        except ConnectionError:
            raise
        except _UNREADABLE as error:
            failures.append(f"{tar} ({_reason(error)})")
            continue
        if samples:
            return samples
    if failures:
        raise ValueError(f"none of the tars of {name} can be read: {some_of(failures)}; mend or replace them")
    return {}


def _endings(path: str, open_tar: OpenTar) -> dict[str, set[str]]:
    samples: dict[str, set[str]] = {}
    try:
        for run in islice(_runs(path, open_tar), _SAMPLES_TRIED):
            endings = {name.rpartition("/")[2].partition(".")[2].lower() for name, _ in run}
            samples.setdefault(sample_of(run[0][0]), set()).update(endings)
    except _UNREADABLE as error:
        if is_transient(error) or not samples:  # else it is damaged further on, which reading it will say
            raise
    return samples


def _runs(
    path: str, open_tar: OpenTar, wanted: Callable[[str], bool] = lambda name: False
) -> Iterator[list[tuple[str, bytes | None]]]:
    """Yields the members that share their name up to the first dot, with the content of those that are `wanted`."""
    run: list[tuple[str, bytes | None]] = []
    current = ""
    with open_tar(path) as archive:
        for member in archive:
            archive.members.clear()  # type: ignore[attr-defined]  # it would remember every member it passes
            base = member.name.rpartition("/")[2]
            if not member.isfile() or is_hidden(base) or "." not in base:
                continue
            sample = sample_of(member.name)
            if sample != current and run:
                yield run
                run = []
            current = sample
            content = archive.extractfile(member) if wanted(member.name) else None
            run.append((member.name, content.read() if content else None))
    if run:
        yield run


def _samples(
    run: list[tuple[str, bytes | None]], layout: Layout
) -> Iterator[tuple[str, dict[str, bytes | None], str | None]]:
    """Divides a run into samples: name, content by ending, and the ending of the image.

    A second plain image is a sample of its own, unless the first samples have several. A run without an image is a sample
    without one.
    """
    fields: dict[str, dict[str, bytes | None]] = {}
    for name, content in run:
        sample, ending = layout.divide(name)
        fields.setdefault(sample, {})[ending] = content
    shared = fields.get(sample_of(run[0][0]).lstrip("./"), {})  # of x.left.jpg and x.right.jpg, that x.cls
    if not any(map(layout.wants, shared)):
        fields = {sample: {**shared, **inside} for sample, inside in fields.items()}
    any_image = layout.maps and _named_map(sample_of(run[0][0])) is not None
    for sample, inside in () if any_image else fields.items():
        images = sorted(filter(layout.wants, inside), key=lambda ending: (ending in ("npy", "npz"), ending))
        for place, ending in enumerate(images[:1] if layout.several or layout.column else images):
            any_image = True
            yield f"{sample}.{ending}" if place else sample, inside, ending
    if not any_image:
        yield next(iter(fields)), {}, None


def _image_rows(tars: list[str], root: str, layout: Layout, open_tar: OpenTar) -> Iterator[tuple[int, dict]]:
    unreadable = _UNREADABLE  # a local name: at the interpreter's end, the module's may be gone before the stream

    def wanted(name: str) -> bool:
        return layout.wants(layout.divide(name)[1])

    for name in tars:
        row = 0
        try:
            for run in _runs(os.path.join(root, name), open_tar, wanted):
                for sample, fields, ending in _samples(run, layout):
                    yield row, {"key": f"{name}:{sample}", "value": None if ending is None else fields[ending]}
                    row += 1
        except unreadable as error:
            if is_transient(error):  # the reader of the unit opens the tar again, at this row
                raise
            reason = f"the rest of the archive cannot be read ({_reason(error)}); its samples, nobody knows how many, are lost"
            yield row, {"key": f"{name}:{row}", "error": reason}


def _labelled_rows(
    tars: list[str], root: str, layout: Layout, open_tar: OpenTar, columns: frozenset[str] | None = None
) -> Iterator[tuple[str, dict[str, Any]]]:
    """The rows of samples; only some columns of them, where these are given."""

    def wanted(name: str) -> bool:
        ending = layout.divide(name)[1]
        return (
            columns is None
            or ending in columns
            or ending in ("cls", "json")
            or ("image" in columns and layout.wants(ending))
        )

    for tar in tars:
        path = os.path.join(root, tar)
        try:
            for run in _runs(path, open_tar, wanted):
                for sample, fields, ending in _samples(run, layout):
                    row = {
                        "__key__": sample,
                        **{
                            key: _decoded(sample, key, content)
                            for key, content in fields.items()
                            if content is not None
                        },
                    }
                    row["image"] = None if ending is None else row.get(ending)
                    row |= {
                        column: row[key]
                        for key in sorted(fields, reverse=True)
                        if key in row and (column := _map_column(key))
                    }
                    if "cls" in row:
                        row.setdefault("label", row["cls"])
                    in_json: Any = row.get("json")
                    for key in sorted(_IN_JSON & in_json.keys()) if isinstance(in_json, dict) else ():
                        row.setdefault(key, in_json[key])
                    yield f"{tar}:{sample}", row if columns is None else {key: row.get(key) for key in columns}
        except _UNREADABLE as error:
            if is_transient(error):
                raise
            Place(path).warn(f"the rest of the archive cannot be read ({_reason(error)}) and is left out")


def _decoded(sample: str, ending: str, content: bytes) -> object:
    """The value of a column, by its ending as in the `webdataset` library; images stay encoded."""
    kind = ending.rpartition(".")[2]
    if _is_image(kind):
        return {"bytes": content, "path": f"{sample}.{ending}"}
    try:
        if kind in ("cls", "cls2", "class", "count", "index", "inx", "id"):
            text = content.decode().strip()
            return int(text) if re.fullmatch(r"[+-]?\d+", text) or not text else text
        if kind in ("json", "jsn"):
            return json.loads(content)
        return content.decode().rstrip("\r\n") if kind in ("txt", "text", "transcript", "caption") else content
    except ValueError as error:
        raise ValueError(
            f"{sample}.{ending} in a tar cannot be read as .{kind} ({error}): mend or remove it"
        ) from error


def _reason(error: BaseException) -> str:
    text = (getattr(error, "strerror", None) or str(error)).split("\n")[0].rstrip(":")
    return text or type(error).__name__
