"""Flax checkpoints (one msgpack file) without jax or flax, with nothing in memory but the arrays that are read."""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

import msgpack
import torch

_ARRAY, _SCALAR = 1, 3  # the extension types of flax.serialization that hold arrays
_CHUNKED = "__msgpack_chunked_array__"
_DTYPES = {
    b"bfloat16": torch.bfloat16,
    b"float16": torch.float16,
    b"float32": torch.float32,
    b"float64": torch.float64,
}
_MAXIMUM_ENTRIES = 20_000  # at the top, and arrays of a tree; ViT-H has 560
_MAXIMUM_PATH = 256  # characters; also bounds how deep a tree nests
_MAXIMUM_DIMENSIONS = 32


@dataclass(frozen=True)
class FlaxArray:
    """The place of an array in a `FlaxFile`.

    Args:
        shape (`tuple[int, ...]`): Its shape, without empty dimensions.
        pieces (`tuple[tuple[int, int, torch.dtype], ...]`): Of each stretch of values, in order: first byte in the file,
            number of values, and their type.
    """

    shape: tuple[int, ...]
    pieces: tuple[tuple[int, int, torch.dtype], ...]

    def __post_init__(self) -> None:
        if len(self.shape) > _MAXIMUM_DIMENSIONS or any(type(size) is not int or size < 1 for size in self.shape):
            raise ValueError(f"expected up to {_MAXIMUM_DIMENSIONS} positive integers as shape")
        if (count := sum(piece[1] for piece in self.pieces)) != math.prod(self.shape):
            raise ValueError(f"its {count} values do not fill its shape")


def _refuse(container: object) -> NoReturn:
    raise ValueError("a map or list stands where a single value belongs")


# Maps and lists are entered header by header, so the library never builds one; Flax's largest array has 2^30 bytes.
_LIMITS: dict[str, Any] = {
    "max_buffer_size": 2**30 + 2**20,
    "max_array_len": _MAXIMUM_ENTRIES,
    "max_map_len": _MAXIMUM_ENTRIES,
    "list_hook": _refuse,
    "object_hook": _refuse,
}


def _describe(code: int, data: bytes) -> FlaxArray:
    """Describes an extension type, as the library's hook: an array whose first byte is counted from its end, where its values end."""
    if code not in (_ARRAY, _SCALAR):
        raise ValueError(f"extension type {code}, expected an array")
    unpacker = msgpack.Unpacker(BytesIO(data), raw=True, **_LIMITS)  # raw: old writers say text for bytes
    if unpacker.read_array_header() != 3 or (dimensions := unpacker.read_array_header()) > _MAXIMUM_DIMENSIONS:
        raise ValueError(f"expected shape (up to {_MAXIMUM_DIMENSIONS} dimensions), dtype and bytes of an array")
    shape = tuple(unpacker.unpack() for _ in range(dimensions))
    name, content = unpacker.unpack(), unpacker.unpack()
    if (dtype := _DTYPES.get(name)) is None:
        shown = name[:40].decode("latin-1") if isinstance(name, bytes) else type(name).__name__
        raise ValueError(f"dtype {shown!r}, expected one of {b', '.join(_DTYPES).decode()}")
    if not isinstance(content, bytes) or len(content) % dtype.itemsize or unpacker.tell() != len(data):
        raise ValueError("expected shape, dtype and bytes of an array")
    return FlaxArray(shape, ((-len(content), len(content) // dtype.itemsize, dtype),))


def _size(read_header: Callable[[], int]) -> int | None:
    """Entries of the map or list that comes next; the library leaves a value of another kind unread."""
    try:
        return read_header()
    except (ValueError, msgpack.UnpackException):
        return None


def _join_chunks(found: dict[str, Any], path: str) -> FlaxArray:
    """Takes out the parts of an array that was too large for one value: its shape, and flat pieces of it."""

    def numbered(path: str) -> list[Any]:
        items: list[Any] = []
        while (key := f"{path}/{len(items)}") in found:
            items.append(found.pop(key))
        return items

    del found[f"{path}/{_CHUNKED}"]
    shape, chunks = numbered(f"{path}/shape"), numbered(f"{path}/chunks")
    if not all(isinstance(chunk, FlaxArray) for chunk in chunks):
        raise ValueError("expected arrays as chunks")
    return FlaxArray(tuple(shape), tuple(piece for chunk in chunks for piece in chunk.pieces))


class FlaxFile:
    """A checkpoint that `flax.training.checkpoints.save_checkpoint` or `flax.serialization.to_bytes` wrote, open for reading.

    Opening it reads once through the file, array by array and storing none, so that gigabytes of optimizer state cost
    no memory. The `msgpack` package parses. Close it, or use it in a `with` statement.

    Args:
        path (`str` or `Path`): The file.

    Raises:
        FileNotFoundError: If there is no such file, or it is a folder.
        ValueError: If it is damaged or of another kind.

    Source: `flax/serialization.py` (extension types, chunks).
    """

    def __init__(self, path: str | Path) -> None:
        path = Path(path)
        self.name = path.name
        if not path.is_file():
            kind = "a folder" if path.is_dir() else "no file"
            raise FileNotFoundError(f"{self.name} is {kind}: give the path of the checkpoint file itself")
        try:
            self._file: BinaryIO = path.open("rb")
        except OSError as error:
            raise ValueError(f"{self.name} cannot be read: {error.strerror}") from error
        try:
            self._top = self._index()
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> "FlaxFile":
        return self

    def __exit__(self, *exception: object) -> None:
        self._file.close()

    @contextmanager
    def _reading(self, path: str) -> Iterator[None]:
        """Makes one sentence of an error of the library or of a check here."""
        try:
            yield
        except (ValueError, msgpack.UnpackException) as error:
            reason = str(error).rstrip(".") or type(error).__name__
            raise ValueError(f"{self.name} is damaged or no Flax msgpack file, in {path}: {reason}") from error

    def _unpacker(self, start: int) -> msgpack.Unpacker:
        self._file.seek(start)
        return msgpack.Unpacker(self._file, ext_hook=_describe, **_LIMITS)

    def _name(self, unpacker: msgpack.Unpacker, path: str) -> str:
        with self._reading(path):
            name = unpacker.unpack()
            if not isinstance(name, str) or not name.isprintable() or len(name) > _MAXIMUM_PATH:
                raise ValueError(f"a name that is no printable text of up to {_MAXIMUM_PATH} characters")
        return name

    def _index(self) -> dict[str, int]:
        """Finds where each value of the map at the top begins."""
        unpacker, entries = self._unpacker(0), dict[str, int]()
        with self._reading("the map at its top"):
            if (count := unpacker.read_map_header()) > _MAXIMUM_ENTRIES:
                raise ValueError(f"{count} entries, expected up to {_MAXIMUM_ENTRIES}")
        for _ in range(count):
            name = self._name(unpacker, "the map at its top")
            entries[name] = unpacker.tell()
            with self._reading(name):
                unpacker.skip()
        if unpacker.read_bytes(1):
            raise ValueError(f"{self.name} is damaged or no Flax msgpack file: it goes on after its end")
        return entries

    @property
    def keys(self) -> list[str]:
        """Names at the top of the file, in its order."""
        return list(self._top)

    def tree(self, key: str) -> dict[str, FlaxArray]:
        """The arrays below a name at the top of the file; their values are not read.

        Args:
            key (`str`): One of `keys`, such as `"params"`.

        Returns:
            `dict[str, FlaxArray]`: By path in Flax notation, such as `"encoder_norm/scale"`.

        Raises:
            ValueError: If it holds anything but float arrays under names.
        """
        begin, found = self._top[key], dict[str, Any]()
        self._find_arrays(key, self._unpacker(begin), begin, found)
        for path, value in found.items():
            with self._reading(path):
                if not isinstance(value, FlaxArray):
                    raise ValueError(f"{type(value).__name__}, expected an array")
        return {path.removeprefix(f"{key}/"): array for path, array in found.items()}

    def _find_arrays(self, path: str, unpacker: msgpack.Unpacker, begin: int, found: dict[str, Any]) -> None:
        """Notes what lies at a path of the value that begins there: arrays, and the integers of a chunked array's shape."""
        if len(path) > _MAXIMUM_PATH or len(found) > _MAXIMUM_ENTRIES:
            raise ValueError(
                f"{self.name} has over {_MAXIMUM_ENTRIES} arrays, or paths of over {_MAXIMUM_PATH} characters, in {path.partition('/')[0]}"
            )
        if (size := _size(unpacker.read_map_header)) is not None:
            for _ in range(size):
                self._find_arrays(f"{path}/{self._name(unpacker, path)}", unpacker, begin, found)
        elif (size := _size(unpacker.read_array_header)) is not None:
            for index in range(size):
                self._find_arrays(f"{path}/{index}", unpacker, begin, found)
        with self._reading(path):
            if size is None:
                value = unpacker.unpack()
                if isinstance(value, FlaxArray):
                    start, *rest = value.pieces[0]
                    value = FlaxArray(value.shape, ((begin + unpacker.tell() + start, *rest),))
                elif not isinstance(value, int):  # the shape of a chunked array has integers
                    raise ValueError(f"{type(value).__name__}, expected an array")
            elif f"{path}/{_CHUNKED}" in found:
                value = _join_chunks(found, path)
            else:
                return
            if path in found:
                raise ValueError("it is there twice")
            found[path] = value

    def read(self, array: FlaxArray) -> torch.Tensor:
        """Reads an array.

        Args:
            array (`FlaxArray`): One of `tree`.

        Returns:
            `torch.Tensor` of shape `array.shape`, float32, in memory of its own.

        Raises:
            ValueError: If the file has become shorter since it was opened.
        """
        parts = []
        for start, count, dtype in array.pieces:
            values = torch.empty(count, dtype=dtype)
            buffer = values.view(torch.uint8).numpy().data
            self._file.seek(start)
            if self._file.readinto(buffer) != len(buffer):  # type: ignore[attr-defined]
                raise ValueError(f"{self.name} has become shorter while it was read")
            parts.append(values.float())
        return (parts[0] if len(parts) == 1 else torch.cat(parts)).view(array.shape)
