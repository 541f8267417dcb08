"""Compressed tars: opened as a stream, or decompressed once into the cache so that their members can be read in place."""

import bz2
import gzip
import hashlib
import lzma
import os
import shutil
import tarfile
import tempfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
from huggingface_hub.constants import HF_HOME

from hf_geossl.data.wording import Place

CACHE = Path(HF_HOME) / "hf_geossl" / "archives"
FREE_AFTERWARDS = 2**30  # bytes of the disk that stay free
_PIECE = 2**22  # bytes
_DAMAGED = (OSError, EOFError, lzma.LZMAError, zlib.error, pa.ArrowException)


def _open_zstd(path: str) -> Any:
    return pa.input_stream(path, compression="zstd")


_OPENERS: dict[bytes, Callable[[str], Any]] = {
    b"\x1f\x8b": gzip.open,
    b"BZh": bz2.open,
    b"\xfd7zXZ": lzma.open,
    b"\x28\xb5\x2f\xfd": _open_zstd,
}


def _opener(path: str) -> Callable[[str], Any] | None:
    with open(path, "rb") as file:
        start = file.read(8)
    return next((opener for magic, opener in _OPENERS.items() if start.startswith(magic)), None)


def open_tar(path: str) -> tarfile.TarFile:
    """Opens a tar, whatever it is compressed by, also by zstd, which `tarfile` does not know everywhere."""
    if os.path.getsize(path) and _opener(path) is _open_zstd:
        try:
            return tarfile.open(fileobj=_open_zstd(path), mode="r|")
        except pa.ArrowException as error:
            raise tarfile.ReadError(str(error)) from error
    return tarfile.open(path, "r:*")


def decompressed(path: str) -> str:
    """The path of a tar without its compression: itself, or a copy in the cache, which is made once and said.

    Members are never unpacked by their names, so that none can lie outside of the cache.

    Raises:
        ValueError: if it is damaged, or larger than the disk.
    """
    opener = _opener(path)
    if opener is None:
        return path
    name, state = os.path.basename(path), os.stat(path)
    key = hashlib.sha256(repr((os.path.realpath(path), state.st_size, state.st_mtime_ns)).encode()).hexdigest()[:16]
    copy = CACHE / f"{key}.tar"
    if copy.exists():
        return str(copy)
    CACHE.mkdir(parents=True, exist_ok=True)
    Place(path).warn(
        "it is compressed, so that its images cannot be read in place: decompressed once, to HF_HOME/hf_geossl/archives, "
        "which can be deleted"
    )
    left = shutil.disk_usage(CACHE).free - FREE_AFTERWARDS
    with tempfile.NamedTemporaryFile(dir=CACHE, prefix=".", suffix=".part", delete=False) as part:
        try:
            with opener(path) as file:
                while piece := file.read(_PIECE):
                    left -= len(piece)
                    if left < 0:
                        raise ValueError(
                            f"{name} does not fit on the disk of HF_HOME without its compression: unpack it elsewhere"
                        )
                    part.write(piece)
            part.flush()
            os.replace(part.name, copy)
        except _DAMAGED as error:
            raise ValueError(f"{name} cannot be decompressed ({error}): mend or unpack it") from error
        finally:
            Path(part.name).unlink(missing_ok=True)
    return str(copy)
