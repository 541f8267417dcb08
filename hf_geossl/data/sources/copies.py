"""Files of equal content in two lists: by size first, then by a part of the content, and by all of it only where these agree."""

import hashlib
import io
import os
from collections.abc import Callable, Hashable, Iterable

from hf_geossl.data.images import BrokenImageError
from hf_geossl.data.sources.archives import ADDRESS, member_size, read_member

MOST_FILES = 200_000  # whose sizes are asked for
_PART = 4096  # bytes


def find_copies(first: Iterable[str], second: Iterable[str]) -> list[tuple[str, str]]:
    """Finds the files of the second list whose content is that of a file of the first.

    Args:
        first, second (`Iterable[str]`): paths, or addresses of members of archives. Those that cannot be read have no copies.

    Returns:
        `list[tuple[str, str]]`: the file of the second list and its (first) original, in order.
    """
    originals, candidates = list(first), list(second)
    if len(originals) + len(candidates) > MOST_FILES:
        return []
    original_of: dict[Hashable, str] = {}
    found: list[tuple[str, Hashable]] = []
    for key in (_size, _part, _whole):
        known = [(path, _try(key, path)) for path in originals]
        original_of = {value: path for path, value in reversed(known) if value is not None}
        found = [(path, value) for path in candidates if (value := _try(key, path)) in original_of]
        shared = {value for _, value in found}
        originals = [path for path, value in known if value in shared]
        candidates = [path for path, _ in found]
    return [(path, original_of[value]) for path, value in found]


def _try(key: Callable[[str], Hashable], path: str) -> Hashable | None:
    try:
        return key(path)
    except (OSError, BrokenImageError):
        return None


def _size(path: str) -> int:
    return member_size(path) if path.startswith(ADDRESS) else os.stat(path).st_size


def _part(path: str) -> bytes:
    with _opened(path) as file:
        middle = file.seek(0, os.SEEK_END) // 2
        file.seek(0)
        start = file.read(_PART)
        file.seek(middle)
        return hashlib.sha256(start + file.read(_PART)).digest()


def _whole(path: str) -> bytes:
    with _opened(path) as file:
        return hashlib.file_digest(file, "sha256").digest()


def _opened(path: str) -> io.BufferedReader | io.BytesIO:
    return io.BytesIO(read_member(path)) if path.startswith(ADDRESS) else open(path, "rb")
