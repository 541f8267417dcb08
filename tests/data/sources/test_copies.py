"""Files of equal content: found whatever they are called, and none besides."""

import zipfile
from pathlib import Path

import numpy as np
import pytest

from hf_geossl.data.sources import copies
from hf_geossl.data.sources.copies import find_copies


@pytest.mark.parametrize("size", [10, 5000, 20000])
def test_copies_are_files_of_equal_content(size: int, tmp_path: Path) -> None:
    """Also of files that are equal in size, start and middle, and of members of archives."""
    content = np.random.default_rng(0).integers(0, 255, size, np.uint8).tobytes()
    files = {
        "a": content,
        "b": content[::-1],
        "c": content,
        "d": content[:-1] + bytes([content[-1] ^ 1]),
        "e": content[:-1],
    }
    for name, inside in files.items():
        (tmp_path / name).write_bytes(inside)
    paths = {name: str(tmp_path / name) for name in files}
    with zipfile.ZipFile(tmp_path / "z.zip", "w") as archive:
        archive.writestr("inside.png", content)
    member = f"archive://inside.png::{tmp_path / 'z.zip'}"
    second = [paths["c"], paths["d"], paths["e"], str(tmp_path / "gone"), member]
    assert find_copies([paths["b"], paths["a"]], second) == [(paths["c"], paths["a"]), (member, paths["a"])]
    assert find_copies([str(tmp_path / "gone")], second) == []
    assert find_copies([], second) == []


def test_only_the_sizes_of_different_files_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(6):
        (tmp_path / str(number)).write_bytes(bytes(number + 1))
    monkeypatch.setattr(copies, "_part", lambda path: pytest.fail(f"{path} was read"))
    paths = [str(tmp_path / str(number)) for number in range(6)]
    assert find_copies(paths[:3], paths[3:]) == []
    monkeypatch.setattr(copies, "MOST_FILES", 5)
    monkeypatch.setattr(copies, "_size", lambda path: pytest.fail(f"{path} was asked for"))
    assert find_copies(paths[:3], paths[:3]) == []
