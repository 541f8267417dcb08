"""One process at a time writes to an output."""

import errno
import subprocess
import sys
from pathlib import Path

import pytest

from hf_geossl.tasks.output_lock import output_lock


def test_another_process_is_refused_by_name_until_the_first_ends(tmp_path):
    lock_file = tmp_path / ".out.lock"
    code = f"import time; from filelock import FileLock; lock = FileLock({str(lock_file)!r}); lock.acquire(); print(1, flush=True); time.sleep(60)"
    other = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    assert other.stdout.readline()
    with (
        pytest.raises(ValueError, match=r"out is being written by another process .*out.lock"),
        output_lock(tmp_path / "out", lock_file, patience=0),
    ):
        pass
    other.kill()
    other.wait()
    with output_lock(tmp_path / "out", lock_file, patience=0):
        pass
    assert not lock_file.exists()


def test_a_full_disk_is_said_by_the_output(tmp_path):
    with pytest.raises(OSError, match="the disk of out is full"), output_lock("out", tmp_path / "lock"):
        raise OSError(errno.ENOSPC, "No space left on device")
    with pytest.raises(FileNotFoundError), output_lock("out", tmp_path / "lock"):
        (tmp_path / "none").read_bytes()


def test_a_place_that_cannot_be_written_is_no_other_process(tmp_path):
    with pytest.raises(FileNotFoundError), output_lock("/proc/out", Path("/proc/.out.lock")):
        pass
