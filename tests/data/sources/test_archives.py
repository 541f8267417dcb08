"""Members of archives: read in place, bounded, one sentence for what is damaged."""

import io
import shutil
import tarfile
import zipfile
from pathlib import Path

import pytest

from hf_geossl.data.images import BrokenImageError
from hf_geossl.data.sources import archives
from hf_geossl.data.sources.archives import is_plain_tar, member_size, members, read_member, tar_names
from hf_geossl.data.streams import load_stream
from tests.helpers.images import write_folder


def make_zip(path: Path, members: dict[str, bytes]) -> str:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return str(path)


def test_members_are_listed_and_read(tmp_path: Path) -> None:
    path = make_zip(
        tmp_path / "a::b.zip", {"x/1.png": b"one", "x/::2.png": b"two", ".x/3.png": b"", "__MACOSX/1.png": b""}
    )
    assert members(path) == [".x/3.png", "__MACOSX/1.png", "x/1.png", "x/::2.png"]
    assert read_member(f"archive://x/::2.png::{path}") == b"two"
    assert member_size(f"archive://x/::2.png::{path}") == 3
    with pytest.raises(BrokenImageError, match="has no such file"):
        read_member(f"archive://y.png::{path}")
    with pytest.raises(BrokenImageError, match="archive is not there"):
        read_member(f"archive://y.png::{tmp_path / 'gone.zip'}")


def test_folders_of_windows_are_folders(tmp_path: Path) -> None:
    """Some programs of Windows write backslashes, which a system with another mark takes for a part of the name."""
    path = make_zip(tmp_path / "a.zip", {"train\\x\\1.png": b"one", "test\\x\\2.png": b"two"})
    assert members(path) == ["test/x/2.png", "train/x/1.png"]
    assert read_member(f"archive://train/x/1.png::{path}") == b"one"
    assert member_size(f"archive://test/x/2.png::{path}") == 3


def test_members_of_plain_tars_are_read_in_place(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w") as archive:
        for name, content in (("./x/1.png", b"old"), ("x/::2.png", b"two" * 1000), ("./x/1.png", b"newer")):
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
        archive.addfile(tarfile.TarInfo("folder"))
    assert members(str(path)) == ["folder", "x/1.png", "x/::2.png"]
    assert [*tar_names(str(path))] == ["x/1.png", "x/::2.png", "x/1.png", "folder"]
    assert read_member(f"archive://x/1.png::{path}") == b"newer"  # as unpacking has it
    assert read_member(f"archive://x/::2.png::{path}") == b"two" * 1000
    assert is_plain_tar(str(path))
    with tarfile.open(tmp_path / "b.tar.gz", "w:gz") as archive:
        archive.add(path, "x.png")
    assert not is_plain_tar(str(tmp_path / "b.tar.gz"))
    assert [*tar_names(str(tmp_path / "b.tar.gz"))] == ["x.png"]


def test_a_member_is_bounded_before_it_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = make_zip(tmp_path / "bomb.zip", {"a.png": b"\0" * 100_000})
    assert Path(path).stat().st_size < 1000
    monkeypatch.setattr(archives, "LARGEST_MEMBER", 99_999)
    with pytest.raises(BrokenImageError, match="unpacks to 100000 bytes, more than 99999"):
        read_member(f"archive://a.png::{path}")


def test_damage_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "no.zip").write_bytes(b"PK no archive")
    with pytest.raises(ValueError, match="no.zip is no archive that can be read"):
        load_stream(str(tmp_path / "no.zip"))
    path = Path(make_zip(tmp_path / "torn.zip", {"a.png": bytes(range(256)) * 40}))
    content = bytearray(path.read_bytes())
    content[60:90] = b"\xff" * 30
    path.write_bytes(content)
    with pytest.raises(BrokenImageError, match="cannot be unpacked"):
        read_member(f"archive://a.png::{path}")


def test_several_archives_are_folders_of_their_names(tmp_path: Path) -> None:
    write_folder(tmp_path / "images", 9)
    (tmp_path / "data").mkdir()
    for name, numbers in (("train", range(6)), ("val", range(6, 9))):
        with zipfile.ZipFile(tmp_path / f"data/{name}.zip", "w") as archive:
            for file in sorted((tmp_path / "images").rglob("*.png")):
                if int(file.stem) in numbers:
                    archive.write(file, file.relative_to(tmp_path / "images"))
    assert len(list(load_stream(str(tmp_path / "data")).one_epoch())) == 6
    assert len(list(load_stream(str(tmp_path / "data"), "validation").one_epoch())) == 3


@pytest.mark.parametrize("ending", ["zip", "tar"])
def test_an_archive_that_is_written_anew_is_read_anew(ending: str, tmp_path: Path) -> None:
    for content in (b"first", b"the second one"):
        (tmp_path / "x.png").write_bytes(content)
        path = shutil.make_archive(str(tmp_path / "a"), ending, tmp_path, "x.png")
        assert members(path) == ["x.png"]
        assert read_member(f"archive://x.png::{path}") == content
