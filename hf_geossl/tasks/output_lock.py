"""One process at a time writes to an output."""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

_PATIENCE = 6.0  # seconds; of a run that was killed, processes that decode may live for 5 more


@contextmanager
def output_lock(output: Path | str, lock_file: Path, patience: float = _PATIENCE) -> Iterator[None]:
    """Keeps other processes from writing to an output, until the block or the process ends, however it ends.

    Args:
        output (`Path` or `str`): What is written, as people call it.
        lock_file (`Path`): By which processes know of each other; it is there as long as the block runs.
        patience (`float`, *optional*): Seconds to wait for another process.

    Raises:
        ValueError: If another process is writing.
        OSError: If nothing can be written there, or the disk gets full meanwhile; it names the output.
    """
    lock_file.parent.mkdir(parents=True, exist_ok=True)
    os.close(
        os.open(lock_file, os.O_CREAT | os.O_RDWR)
    )  # where that fails, `FileLock` would wait as for another process
    lock = FileLock(lock_file, timeout=patience)
    try:
        lock.acquire()
    except Timeout:
        raise ValueError(
            f"{output} is being written by another process (it holds {lock_file}): wait for its end, or choose another output"
        ) from None
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise OSError(
            f"the disk of {output} is full: make room, and the same command goes on with what is whole there"
        ) from error
    finally:
        with suppress(OSError):  # Windows removes no file that is open: an empty one stays
            lock_file.unlink()
        lock.release()
