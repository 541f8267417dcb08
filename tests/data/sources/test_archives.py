"""Members of `.zip` archives: read in place, bounded, one sentence for what is damaged."""

import zipfile
from pathlib import Path

import pytest

from hf_geossl.data.images import BrokenImageError
from hf_geossl.data.sources import archives
from hf_geossl.data.sources.archives import read_zip_member, zip_member, zip_members
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
    assert zip_members(path) == ["x/1.png", "x/::2.png"]
    other = make_zip(tmp_path / "c.zip", {"x/::2.png": b"two"})
    assert read_zip_member(f"zip://x/::2.png::{other}") == b"two"
    assert zip_member(f"zip://x/::2.png::{other}").file_size == 3
    with pytest.raises(BrokenImageError, match="has no such file"):
        read_zip_member(f"zip://y.png::{other}")


def test_a_member_is_bounded_before_it_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = make_zip(tmp_path / "bomb.zip", {"a.png": b"\0" * 100_000})
    assert Path(path).stat().st_size < 1000
    monkeypatch.setattr(archives, "LARGEST_MEMBER", 99_999)
    with pytest.raises(BrokenImageError, match="unpacks to 100000 bytes, more than 99999"):
        read_zip_member(f"zip://a.png::{path}")


def test_damage_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "no.zip").write_bytes(b"PK no archive")
    with pytest.raises(ValueError, match="no.zip is no zip file that can be read"):
        load_stream(str(tmp_path / "no.zip"))
    path = Path(make_zip(tmp_path / "torn.zip", {"a.png": bytes(range(256)) * 40}))
    content = bytearray(path.read_bytes())
    content[60:90] = b"\xff" * 30
    path.write_bytes(content)
    with pytest.raises(BrokenImageError, match="cannot be unpacked"):
        read_zip_member(f"zip://a.png::{path}")


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
