"""Images in `.zip` archives, read in place: nothing is unpacked, and a member is bounded before it is read."""

import os
import zipfile
from functools import lru_cache

from hf_geossl.data.rasters import BrokenImageError

ADDRESS = "zip://"
LARGEST_MEMBER = 2**30  # bytes, unpacked


def zip_members(archive: str) -> list[str]:
    """The names of an archive's files, sorted, without those that are hidden.

    Raises:
        ValueError: if it is no archive that can be read, or wants a password.
    """
    name = os.path.basename(archive)
    try:
        with zipfile.ZipFile(archive) as opened:
            infos = [info for info in opened.infolist() if not info.is_dir()]
    except (OSError, zipfile.BadZipFile, ValueError, NotImplementedError) as error:
        raise ValueError(f"{name} is no zip file that can be read ({error}): mend or unpack it") from error
    if any(info.flag_bits & 1 for info in infos):
        raise ValueError(f"{name} wants a password: unpack it first")
    hidden = (".", "__")
    return sorted(
        info.filename for info in infos if not any(part.startswith(hidden) for part in info.filename.split("/"))
    )


@lru_cache(maxsize=8)
def _opened(archive: str, process: int) -> zipfile.ZipFile:
    """An archive's reader; each process has its own, since they share a position in the file otherwise."""
    return zipfile.ZipFile(archive)


def _split(address: str) -> tuple[zipfile.ZipFile, str]:
    member, _, archive = address.removeprefix(ADDRESS).rpartition("::")
    try:
        return _opened(archive, os.getpid()), member
    except (OSError, zipfile.BadZipFile) as error:
        raise BrokenImageError(f"its archive cannot be read ({error})") from error


def zip_member(address: str) -> zipfile.ZipInfo:
    """What an archive says of a member.

    Raises:
        BrokenImageError: if it cannot be read.
    """
    opened, member = _split(address)
    try:
        return opened.getinfo(member)
    except KeyError as error:
        raise BrokenImageError("the archive has no such file") from error


def read_zip_member(address: str) -> bytes:
    """The content of a member of an archive, of at most `LARGEST_MEMBER` bytes.

    Args:
        address (`str`): "zip://member::archive".

    Raises:
        BrokenImageError: if it cannot be read.
    """
    info = zip_member(address)
    if info.file_size > LARGEST_MEMBER:
        raise BrokenImageError(f"it unpacks to {info.file_size} bytes, more than {LARGEST_MEMBER}")
    opened, _ = _split(address)
    try:
        with opened.open(info) as file:
            return file.read(LARGEST_MEMBER + 1)
    except Exception as error:  # zipfile and its decompressors raise a dozen kinds for damaged members
        raise BrokenImageError(f"it cannot be unpacked ({type(error).__name__})") from error
