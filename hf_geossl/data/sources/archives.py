"""Images in `.zip` and plain `.tar` archives, read in place: nothing is unpacked, and a member is bounded before it is read."""

import os
import stat
import tarfile
import zipfile
from collections.abc import Iterator
from functools import lru_cache

from hf_geossl.data.rasters import BrokenImageError
from hf_geossl.data.sources.compressed import open_tar

ADDRESS = "archive://"  # archive://member::archive; both may hold "::"
LARGEST_MEMBER = 2**30  # bytes, unpacked
UNREADABLE_TAR = (OSError, EOFError, tarfile.TarError)


def check_regular(path: str) -> None:
    """Raises an `OSError` for what would be waited for when it is opened, such as a pipe."""
    if not stat.S_ISREG(os.stat(path).st_mode):
        raise OSError("it is no regular file")


def is_plain_tar(archive: str) -> bool:
    """Whether a file is a tar without compression, whose members can be read in place."""
    try:
        check_regular(archive)
        tarfile.open(archive, "r:").close()
    except UNREADABLE_TAR:
        return False
    return True


def members(archive: str) -> list[str]:
    """The names of an archive's files, sorted.

    Raises:
        ValueError: if it is no archive that can be read, or wants a password.
    """
    name = os.path.basename(archive)
    try:
        check_regular(archive)
        if not archive.lower().endswith(".zip"):
            return sorted(_tar_index(archive))
        with zipfile.ZipFile(archive) as opened:
            infos = [info for info in opened.infolist() if not info.is_dir()]
    except (*UNREADABLE_TAR, zipfile.BadZipFile, ValueError, RuntimeError) as error:
        raise ValueError(f"{name} is no archive that can be read ({error}): mend or unpack it") from error
    if any(info.flag_bits & 1 for info in infos):
        raise ValueError(f"{name} wants a password: unpack it first")
    return sorted({_upright(info.filename) for info in infos})


def _upright(name: str) -> str:
    """The name with `/` between folders, also where a program of Windows has written another mark."""
    return name.replace("\\", "/") if "/" not in name else name


def _info(opened: zipfile.ZipFile, member: str) -> zipfile.ZipInfo:
    written = member if member in opened.NameToInfo else member.replace("/", "\\")
    return opened.getinfo(written)


def tar_names(archive: str) -> Iterator[str]:
    """The names of a tar's files, in order, up to its damage."""
    try:
        check_regular(archive)
        with open_tar(archive) as opened:
            for member in opened:
                opened.members.clear()  # type: ignore[attr-defined]  # it would remember every member it passes
                if member.isfile():
                    yield member.name.removeprefix("./")
    except UNREADABLE_TAR:
        return


def _tar_index(archive: str) -> dict[str, tuple[int, int]]:
    """Where the files of a plain tar begin, and their sizes; of several of one name the last, as unpacking has it."""
    return _index_of_state(archive, *_state(archive))


def _state(archive: str) -> tuple[int, int]:
    """What changes when an archive is written anew."""
    found = os.stat(archive)
    return found.st_mtime_ns, found.st_size


@lru_cache(maxsize=8)
def _index_of_state(archive: str, *state: int) -> dict[str, tuple[int, int]]:
    places: dict[str, tuple[int, int]] = {}
    with tarfile.open(archive, "r:") as opened:
        for member in opened:
            opened.members.clear()  # type: ignore[attr-defined]
            if member.isfile():
                places[member.name.removeprefix("./")] = member.offset_data, member.size
    return places


def _opened_zip(archive: str) -> zipfile.ZipFile:
    """An archive's reader; each process has its own, since they share a position in the file otherwise."""
    return _zip_of_state(archive, os.getpid(), *_state(archive))


@lru_cache(maxsize=8)
def _zip_of_state(archive: str, *process_and_state: int) -> zipfile.ZipFile:
    return zipfile.ZipFile(archive)


def _split(address: str) -> tuple[str, str]:
    """The archive and the member of an address."""
    parts = address.removeprefix(ADDRESS).split("::")
    for place in range(1, len(parts)):
        archive = "::".join(parts[place:])
        if os.path.isfile(archive):
            return archive, "::".join(parts[:place])
    raise BrokenImageError("its archive is not there")


def member_size(address: str) -> int:
    """The size of a member, unpacked.

    Raises:
        BrokenImageError: if it is not there.
    """
    archive, member = _split(address)
    try:
        if archive.lower().endswith(".zip"):
            return _info(_opened_zip(archive), member).file_size
        return _tar_index(archive)[member][1]
    except KeyError as error:
        raise BrokenImageError("the archive has no such file") from error
    except (*UNREADABLE_TAR, zipfile.BadZipFile) as error:
        raise BrokenImageError(f"its archive cannot be read ({error})") from error


def read_member(address: str) -> bytes:
    """The content of a member, of at most `LARGEST_MEMBER` bytes.

    Args:
        address (`str`): "archive://member::archive".

    Raises:
        BrokenImageError: if it cannot be read.
    """
    size = member_size(address)
    if size > LARGEST_MEMBER:
        raise BrokenImageError(f"it unpacks to {size} bytes, more than {LARGEST_MEMBER}")
    archive, member = _split(address)
    try:
        if archive.lower().endswith(".zip"):
            opened = _opened_zip(archive)
            with opened.open(_info(opened, member)) as file:
                return file.read(LARGEST_MEMBER + 1)
        with open(archive, "rb") as file:
            file.seek(_tar_index(archive)[member][0])
            return file.read(size)
    except Exception as error:  # zipfile and its decompressors raise a dozen kinds for damaged members
        raise BrokenImageError(f"it cannot be unpacked ({type(error).__name__})") from error
