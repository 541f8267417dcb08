"""WebDataset tars as a source, on this machine or on the Hub."""

import logging
import os
import tarfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from typing import Any

from huggingface_hub import HfFileSystem

from hf_geossl.data.retries import OPENING_PAUSES, is_transient, retry
from hf_geossl.data.sources.archives import check_regular
from hf_geossl.data.sources.base import Source, missing_column, rows_from, value_of_row
from hf_geossl.data.sources.files import Files
from hf_geossl.data.sources.listing import kind_of

OpenTar = Callable[[str], AbstractContextManager[tarfile.TarFile]]
_UNREADABLE = (OSError, EOFError, tarfile.TarError, zlib.error)
_EACH = "*"  # in the place of a column: every image is a sample
_SAMPLES_TRIED = 20  # of the first readable tar, to learn the endings of its members

logger = logging.getLogger(__name__)


def open_local(path: str) -> tarfile.TarFile:
    """Opens a tar on this machine."""
    check_regular(path)
    return tarfile.open(path, "r:*")


@contextmanager
def open_on_hub(path: str, token: str | bool | None = None) -> Iterator[tarfile.TarFile]:
    """Opens a tar on the Hub as one stream of bytes; after a failed read it has to be opened again."""
    with (
        HfFileSystem(token=token).open(path, "rb", block_size=0) as file,
        tarfile.open(fileobj=file, mode="r|*") as archive,
    ):
        yield archive


def webdataset_source(
    files: Files,
    name: str,
    image_column: str,
    *,
    kind: str = "webdataset",
    identity: dict[str, Any] | None = None,
    open_tar: OpenTar = open_local,
) -> Source:
    """Opens WebDataset tars, a unit each; a sample is a run of members that share their name up to the first dot.

    Args:
        files (`Files`): the tars.
        name (`str`), kind (`str`, *optional*), identity (`dict`, *optional*): as in [`Source`].
        image_column (`str`): the rest of the members' name ("left.jpg", or "left" for any format). The default "image"
            takes the one plain image of a sample, whether it ends in .jpg, .png or .webp.
        open_tar (`Callable`, *optional*): path -> the archive, in a `with` statement.

    Raises:
        ValueError: if no tar can be read, or none has such images.
        ConnectionError: if the network keeps failing.
    """
    images, others, are_names = _endings(files, name, open_tar)
    if are_names and image_column == "image":
        logger.warning(
            "the names of the images in %s have dots and no common endings (%s, ...): each image is a sample of its own",
            name, ", ".join(sorted(images)[:3]),
        )  # fmt: skip
        images = {"image"}
    named = {ending for ending in images if image_column in (ending, ending.rpartition(".")[0])}
    plain = {ending for ending in images if "." not in ending}
    default = plain or (images if len(images) == 1 else set())
    if not named and (image_column != "image" or not default):
        raise missing_column(image_column, sorted(images | others), name)
    wanted = _EACH if images == {"image"} else image_column if named else ("" if plain else default.pop())
    return Source(
        kind=kind,
        name=name,
        rows=rows_from(_tar_rows, tars=files.names, root=files.root, wanted=wanted, open_tar=open_tar),
        units=len(files.names),
        read=partial(value_of_row, files.root),
        identity=files.identity() if identity is None else identity,
    )


def _endings(files: Files, name: str, open_tar: OpenTar) -> tuple[set[str], set[str], bool]:
    """The endings of images and of other members in the first tar that can be read and has samples.

    And whether the dots of images' endings are those of names ("photo.2021.jpg"), since most stand once only.
    """
    images: set[str] = set()
    others: set[str] = set()
    are_names = False
    failures: list[str] = []
    for tar in files.names:
        read = partial(_first_endings, os.path.join(files.root, tar), open_tar)
        try:
            endings = retry(f"opening {tar} of {name}", read, OPENING_PAUSES)
        except ConnectionError:
            raise
        except _UNREADABLE as error:
            failures.append(f"{tar} ({_reason(error)})")
            continue
        images = {ending for ending in endings if kind_of(f"x.{ending}") == "folder"}
        others = endings.keys() - images
        dotted = [endings[ending] for ending in images if "." in ending]
        are_names = len(dotted) > 1 and 2 * dotted.count(1) > len(dotted)
        if endings:
            break
    if failures and not (images or others):
        raise ValueError(
            f"none of the tars of {name} can be read: {', '.join(failures[:3])}{', ...' if len(failures) > 3 else ''}; "
            "mend or replace them"
        )
    return images, others, are_names


def _first_endings(path: str, open_tar: OpenTar) -> Counter[str]:
    endings: Counter[str] = Counter()
    try:
        for _, fields in _samples(path, open_tar, most=_SAMPLES_TRIED):
            endings.update(fields.keys())
    except _UNREADABLE as error:
        if is_transient(error) or not endings:  # else it is damaged further on, which reading it will say
            raise
    return endings


def _tar_rows(tars: list[str], root: str, wanted: str, open_tar: OpenTar) -> Iterator[tuple[int, dict]]:
    unreadable = _UNREADABLE  # a local name: at the interpreter's end, the module's may be gone before the stream
    for name in tars:
        row = 0
        try:
            for sample, fields in _samples(os.path.join(root, name), open_tar, wanted):
                value = next(iter(fields.values()), None)
                yield row, {"key": f"{name}:{sample}", "value": value}
                row += 1
        except unreadable as error:
            if is_transient(error):  # the reader of the unit opens the tar again, at this row
                raise
            reason = f"the rest of the archive cannot be read ({_reason(error)}); its samples, nobody knows how many, are lost"
            yield row, {"key": f"{name}:{row}", "error": reason}


def _reason(error: BaseException) -> str:
    text = (getattr(error, "strerror", None) or str(error)).split("\n")[0].rstrip(":")
    return text or type(error).__name__


def _samples(
    path: str, open_tar: OpenTar, wanted: str | None = None, most: int = -1
) -> Iterator[tuple[str, dict[str, bytes | None]]]:
    """Yields `(sample, {ending: bytes})`; only the endings that are `wanted` are read, none of them if it is None."""
    current = ""
    fields: dict[str, bytes | None] = {}
    with open_tar(path) as archive:
        for member in archive:
            archive.members.clear()  # type: ignore[attr-defined]  # it would remember every member it passes
            place, base = os.path.split(member.name)
            stem, _, ending = base.partition(".")
            if not member.isfile() or not stem or not ending or base.startswith("._"):
                continue
            sample = f"{place}/{stem}".lstrip("./")
            if sample != current and current:
                yield current, fields
                most -= 1
                if most == 0:
                    return
                fields = {}
            if wanted == _EACH:
                if kind_of(base) == "folder" and (content := archive.extractfile(member)):
                    yield f"{place}/{os.path.splitext(base)[0]}".lstrip("./"), {"image": content.read()}
                continue
            current, ending = sample, ending.lower()
            if wanted is None:
                fields[ending] = None
            elif kind_of(f"x.{ending}") == "folder" and _matches(wanted, ending) and not fields:
                content = archive.extractfile(member)
                fields[ending] = content.read() if content else None
    if current:
        yield current, fields


def _matches(wanted: str, ending: str) -> bool:
    return "." not in ending if not wanted else wanted in (ending, ending.rpartition(".")[0])
