"""Flax checkpoints (one msgpack file) without jax or flax, holding nothing in memory that is not asked for."""

import math
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

import msgpack
import torch

_ARRAY, _COMPLEX, _SCALAR = 1, 2, 3  # the extension types of flax.serialization
_CHUNKED = "__msgpack_chunked_array__"
_DTYPES = {
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "float32": torch.float32,
    "float64": torch.float64,
}

# what keeps a hostile file from taking memory or hours: far beyond any checkpoint (ViT-H has 560 arrays a tree, 8 deep)
_MAXIMUM_DEPTH = 32
_MAXIMUM_ENTRIES = 20_000  # of a map that is read, and arrays of a tree
_MAXIMUM_VALUES = 2_000_000  # looked at in the whole file
_MAXIMUM_DIMENSIONS = 32
_MAXIMUM_TEXT = 1024  # bytes of a name, a shape or a dtype
_BLOCK = 1 << 20  # values that are converted to float32 at a time

# of every type byte: what it is, the bytes of its length field, and its size where that is fixed
_KINDS: dict[int, tuple[str, int, int]] = {
    **dict.fromkeys((*range(0x80), *range(0xE0, 0x100)), ("integer", 0, 0)),
    **{0x80 + size: ("map", 0, size) for size in range(16)},
    **{0x90 + size: ("list", 0, size) for size in range(16)},
    **{0xA0 + size: ("text", 0, size) for size in range(32)},
    0xC0: ("nil", 0, 0),
    **dict.fromkeys((0xC2, 0xC3), ("truth value", 0, 0)),
    **{0xC4 + power: ("bytes", 2**power, 0) for power in range(3)},
    **{0xC7 + power: ("extension", 2**power, 0) for power in range(3)},
    **{0xCA + power: ("number", 0, 4 * 2**power) for power in range(2)},
    **{0xCC + power: ("integer", 0, 2**power) for power in range(4)},
    **{0xD0 + power: ("integer", 0, 2**power) for power in range(4)},
    **{0xD4 + power: ("extension", 0, 2**power) for power in range(5)},
    **{0xD9 + power: ("text", 2**power, 0) for power in range(3)},
    **{0xDC + power: ("list", 2 * 2**power, 0) for power in range(2)},
    **{0xDE + power: ("map", 2 * 2**power, 0) for power in range(2)},
}
_LENGTHS = {1: ">B", 2: ">H", 4: ">I"}


@dataclass(frozen=True)
class FlaxArray:
    """
    Where an array lies in a `FlaxFile`.

    Args:
        shape (`tuple[int, ...]`): Its shape, without empty dimensions.
        pieces (`tuple[tuple[int, int, torch.dtype], ...]`): Of each stretch of values, in order: first byte in the file,
            number of values, and their type.
    """

    shape: tuple[int, ...]
    pieces: tuple[tuple[int, int, torch.dtype], ...]


@dataclass(frozen=True)
class _Value:
    """What the first bytes of a msgpack value tell: `size` counts entries of containers, bytes of everything else."""

    kind: str
    size: int
    extension: int
    body: int  # first byte after the header


class FlaxFile:
    """
    A checkpoint that `flax.training.checkpoints.save_checkpoint` or `flax.serialization.to_bytes` wrote, open for reading.

    Opening it walks once over the headers of its values and jumps over their content, so that gigabytes of optimizer
    state cost neither memory nor reading. Small values are decoded by the `msgpack` package. Close it, or use it in a
    `with` statement.

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
        if path.is_dir():
            raise FileNotFoundError(f"{self.name} is a folder: give the path of the checkpoint file itself")
        if not path.is_file():
            raise FileNotFoundError(f"no checkpoint file {self.name!r}: give the path of a Flax msgpack file")
        try:
            self._file: BinaryIO = path.open("rb")
        except OSError as error:
            raise ValueError(f"{self.name} cannot be read: {error.strerror}") from error
        try:
            self._size = path.stat().st_size
            self._values = 0
            self._top = self._open()
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> "FlaxFile":
        return self

    def __exit__(self, *exception: object) -> None:
        self._file.close()

    def _fail(self, detail: str) -> NoReturn:
        raise ValueError(f"{self.name} {detail}")

    def _open(self) -> dict[str, int]:
        start = self._file.read(4)
        if not start:
            self._fail("is empty")
        if start[:2] in (b"PK", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05"):
            self._fail("is no Flax msgpack file: it looks like a PyTorch file or a pickle, which is not read here")
        value = self._value(0, self._size)
        if value.kind != "map":
            self._fail(f"is no Flax msgpack file: it begins with {_article(value.kind)}, expected a map of trees")
        entries, end = self._entries(value, self._size, "")
        if end != self._size:
            self._fail(f"is no whole Flax msgpack file: it goes on for {self._size - end} bytes after its end")
        return entries

    # ---- walking over msgpack values

    def _take(self, position: int, size: int, end: int) -> bytes:
        found = b""
        if position + size <= end:
            self._file.seek(position)
            found = self._file.read(size)
        if len(found) < size:
            self._fail(f"is damaged or cut off: a value at byte {position} goes on after the end")
        return found

    def _value(self, position: int, end: int) -> _Value:
        """Reads the header at `position` of a value that must lie before `end`."""
        self._values += 1
        if self._values > _MAXIMUM_VALUES:
            self._fail(f"holds more than {_MAXIMUM_VALUES} values, which is no model's checkpoint")
        code = self._take(position, 1, end)[0]
        if code not in _KINDS:
            self._fail(f"is damaged or no msgpack file: byte {position} is 0x{code:02x}, which begins no value")
        kind, length, size = _KINDS[code]
        body = position + 1
        if length:
            size = struct.unpack(_LENGTHS[length], self._take(body, length, end))[0]
            body += length
        extension = 0
        if kind == "extension":
            extension = struct.unpack(">b", self._take(body, 1, end))[0]
            body += 1
        # every entry takes a byte at least, so a container cannot promise more entries than there are bytes
        if body + (2 * size if kind == "map" else size) > end:
            self._fail(f"is damaged or cut off: the {kind} at byte {position} goes on after the end")
        return _Value(kind, size, extension, body)

    def _skip(self, position: int, end: int) -> int:
        """Goes over one value and everything in it; gives the first byte after it."""
        open_containers: list[int] = []  # how many values each still has to come; no recursion, as files may nest
        while True:
            value = self._value(position, end)
            position = value.body
            if value.kind in ("map", "list"):
                open_containers.append(2 * value.size if value.kind == "map" else value.size)
                if len(open_containers) > _MAXIMUM_DEPTH:
                    self._fail(f"nests deeper than {_MAXIMUM_DEPTH} levels, which is no model's checkpoint")
            else:
                position += value.size
                if open_containers:
                    open_containers[-1] -= 1
            while open_containers and not open_containers[-1]:
                open_containers.pop()
                if open_containers:
                    open_containers[-1] -= 1
            if not open_containers:
                return position

    def _small(self, position: int, end: int, what: str) -> tuple[Any, int]:
        """Decodes a small value; gives it and the first byte after it."""
        after = self._skip(position, end)
        if after - position > _MAXIMUM_TEXT:
            self._fail(f"is damaged: {what} takes {after - position} bytes")
        try:
            return msgpack.unpackb(self._take(position, after - position, end), raw=False), after
        except (ValueError, msgpack.UnpackException) as error:
            raise ValueError(f"{self.name} is damaged: {what} is no readable msgpack value") from error

    def _entries(self, value: _Value, end: int, path: str) -> tuple[dict[str, int], int]:
        """Where each value of a map with names lies, and the first byte after the map."""
        what = path or "the top"
        if value.size > _MAXIMUM_ENTRIES:
            self._fail(f"holds {value.size} entries in {what}, which is no model's checkpoint")
        entries: dict[str, int] = {}
        position = value.body
        for _ in range(value.size):
            key, position = self._small(position, end, f"a name in {what}")
            if not isinstance(key, str):
                self._fail(f"has {_article(type(key).__name__)} as a name in {what}, expected text")
            if key in entries:
                self._fail(f"has {_shown(key)} twice in {what}")
            entries[key] = position
            position = self._skip(position, end)
        return entries, position

    # ---- arrays

    def _shape(self, dimensions: Any, path: str) -> tuple[int, ...]:
        if (
            not isinstance(dimensions, list)
            or len(dimensions) > _MAXIMUM_DIMENSIONS
            or any(isinstance(size, bool) or not isinstance(size, int) or size < 1 for size in dimensions)
        ):
            self._fail(
                f"has {_short(dimensions)} as the shape of {path}, expected up to {_MAXIMUM_DIMENSIONS} positive integers"
            )
        return tuple(dimensions)

    def _array(self, value: _Value, path: str) -> FlaxArray:
        """Of the triple (shape, dtype, bytes) that an extension of type 1 or 3 holds."""
        end = value.body + value.size
        triple = self._value(value.body, end)
        if triple.kind != "list" or triple.size != 3:
            self._fail(f"has no array in {path}: expected shape, dtype and bytes")
        dimensions, position = self._small(triple.body, end, f"the shape of {path}")
        shape = self._shape(dimensions, path)
        dtype, position = self._small(position, end, f"the dtype of {path}")
        if isinstance(dtype, bytes):
            dtype = dtype.decode("latin-1")
        if not isinstance(dtype, str) or dtype not in _DTYPES:
            self._fail(f"has dtype {str(dtype)[:40]!r} in {path}, expected one of {', '.join(_DTYPES)}")
        content = self._value(position, end)
        if content.kind not in ("bytes", "text") or content.body + content.size != end:  # old writers say text
            self._fail(f"has no array in {path}: expected shape, dtype and bytes")
        count, itemsize = math.prod(shape), _DTYPES[dtype].itemsize
        if count * itemsize != content.size:
            self._fail(
                f"has {content.size} bytes in {path}, expected {_short(count * itemsize)} for shape {_short(shape)} of {dtype}"
            )
        return FlaxArray(shape, ((content.body, count, _DTYPES[dtype]),))

    def _sequence(self, position: int, path: str) -> Iterator[int]:
        """Where the items of a list lie, or of a map with the keys "0", "1", ..., in their order."""
        value = self._value(position, self._size)
        if value.kind == "map":
            entries, _ = self._entries(value, self._size, path)
            if entries.keys() != {str(index) for index in range(len(entries))}:
                self._fail(f"has other keys than 0, 1, ... in {path}")
            yield from (entries[str(index)] for index in range(len(entries)))
        elif value.kind == "list" and value.size <= _MAXIMUM_ENTRIES:
            position = value.body
            for _ in range(value.size):
                yield position
                position = self._skip(position, self._size)
        else:
            self._fail(f"has {_article(value.kind)} in {path}, expected a list, or a map with the keys 0, 1, ...")

    def _chunked_array(self, entries: dict[str, int], path: str) -> FlaxArray:
        """Of an array that was too large for one value: flat pieces of it, in order."""
        if missing := [key for key in ("shape", "chunks") if key not in entries]:
            self._fail(f"has a chunked array without {missing[0]} in {path}")
        what = f"{path}/shape"
        dimensions = [self._small(item, self._size, what)[0] for item in self._sequence(entries["shape"], what)]
        shape = self._shape(dimensions, path)
        pieces: list[tuple[int, int, torch.dtype]] = []
        for index, item in enumerate(self._sequence(entries["chunks"], f"{path}/chunks")):
            chunk = self._leaf(item, f"{path}/chunks/{index}")
            pieces += chunk.pieces
        count, expected = sum(piece[1] for piece in pieces), math.prod(shape)
        if count != expected:
            self._fail(
                f"has {count} values in the chunks of {path}, expected {_short(expected)} for shape {_short(shape)}"
            )
        return FlaxArray(shape, tuple(pieces))

    def _leaf(self, position: int, path: str) -> FlaxArray:
        value = self._value(position, self._size)
        if value.kind == "extension" and value.extension in (_ARRAY, _SCALAR):
            return self._array(value, path)
        kind = value.kind
        if kind == "extension":
            kind = "complex number" if value.extension == _COMPLEX else f"value of extension type {value.extension}"
        self._fail(f"has {_article(kind)} in {path}, expected an array")

    # ---- what callers use

    @property
    def keys(self) -> list[str]:
        """Names at the top of the file, in its order."""
        return list(self._top)

    @property
    def contents(self) -> str:
        """These names as messages show them."""
        return ", ".join(_shown(key) for key in self.keys[:12]) or "no names"

    def tree(self, key: str) -> dict[str, FlaxArray]:
        """
        The arrays below a name at the top of the file; their values are not read yet.

        Args:
            key (`str`): One of `keys`, such as `"params"`.

        Returns:
            `dict[str, FlaxArray]`: By path in Flax notation, such as `"encoder_norm/scale"`.

        Raises:
            ValueError: If there is no such tree, or it holds anything but float arrays under names.
        """
        if key not in self._top:
            self._fail(f"lacks {_shown(key)}; at its top are: {self.contents}")
        top = self._value(self._top[key], self._size)
        if top.kind != "map":
            self._fail(f"has {_article(top.kind)} in {key}, expected a map of arrays")
        arrays: dict[str, FlaxArray] = {}
        waiting = [("", self._top[key])]
        while waiting:
            path, position = waiting.pop()
            full = key + path
            value = self._value(position, self._size)
            if value.kind == "map":
                entries, _ = self._entries(value, self._size, full)
                if _CHUNKED not in entries:
                    waiting += [(f"{path}/{_shown(name)}", place) for name, place in reversed(entries.items())]
                    if len(waiting) > _MAXIMUM_ENTRIES:
                        self._fail(f"holds more than {_MAXIMUM_ENTRIES} entries in {key}, which is no model's")
                    continue
                array = self._chunked_array(entries, full)
            else:
                array = self._leaf(position, full)
            if path[1:] in arrays:
                self._fail(f"has {full} twice")
            arrays[path[1:]] = array
            if len(arrays) > _MAXIMUM_ENTRIES:
                self._fail(f"holds more than {_MAXIMUM_ENTRIES} arrays in {key}, which is no model's")
        return arrays

    def read(self, array: FlaxArray) -> torch.Tensor:
        """
        Reads an array.

        Args:
            array (`FlaxArray`): One of `tree`.

        Returns:
            `torch.Tensor` of shape `array.shape`, float32, in memory of its own.

        Raises:
            ValueError: If the file has become shorter since it was opened.
        """
        values = torch.empty(math.prod(array.shape), dtype=torch.float32)
        start = 0
        for offset, count, dtype in array.pieces:
            self._file.seek(offset)
            for first in range(0, count, _BLOCK):
                part = values[start + first : start + min(first + _BLOCK, count)]
                raw = part if dtype == torch.float32 else torch.empty(len(part), dtype=dtype)
                buffer = raw.view(torch.uint8).numpy().data
                if self._file.readinto(buffer) != len(buffer):  # type: ignore[attr-defined]
                    self._fail("has become shorter while it was read")
                if raw is not part:
                    part.copy_(raw)
            start += count
        return values.view(array.shape)


def _article(noun: str) -> str:
    if noun in ("nil", "bytes", "text"):
        return noun
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 60 else f"{text[:60]}..."


def _shown(key: str) -> str:
    """A name of the file as messages may show it: one line, without control characters, not too long."""
    return key if key.isprintable() and len(key) <= 80 else repr(key[:60])
