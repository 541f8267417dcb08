"""Compressed tars of folders: decompressed once, bounded, with nothing written outside of the cache."""

import bz2
import gzip
import io
import lzma
import tarfile
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pytest
from PIL import Image

from hf_geossl.data.sources import compressed
from hf_geossl.data.sources.compressed import decompressed, open_tar
from hf_geossl.data.sources.opening import open_rows
from hf_geossl.data.streams import load_stream

Compress = Callable[[bytes], bytes]
COMPRESSIONS: dict[str, Compress] = {
    ".tar.gz": gzip.compress,
    ".tgz": gzip.compress,
    ".tar.bz2": bz2.compress,
    ".tar.xz": lzma.compress,
    ".tar.zst": lambda content: pa.compress(content, "zstd", asbytes=True),
}


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(compressed, "CACHE", tmp_path / "home" / "archives")
    return tmp_path / "home" / "archives"


def tar(*names: str) -> bytes:
    """A tar of files and of a link that leads out of it."""
    file, image = io.BytesIO(), io.BytesIO()
    Image.new("RGB", (8, 8), (9, 9, 9)).save(image, "PNG")
    with tarfile.open(fileobj=file, mode="w") as archive:
        for name in names:
            member = tarfile.TarInfo(name)
            member.size = len(image.getvalue())
            archive.addfile(member, io.BytesIO(image.getvalue()))
        link = tarfile.TarInfo("train/a/link.png")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
    return file.getvalue()


FOLDERS = ("train/a/0.png", "train/b/1.png", "test/a/2.png", "../train/a/up.png", "/train/a/root.png")


@pytest.mark.parametrize("ending", COMPRESSIONS)
def test_folders_are_read_from_a_copy_that_is_made_once(
    ending: str, tmp_path: Path, cache: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """With splits and classes; members whose names lead out of it write nothing there, and links are no images."""
    archive = tmp_path / f"pets{ending}"
    archive.write_bytes(COMPRESSIONS[ending](tar(*FOLDERS)))
    before = {path for path in tmp_path.parent.rglob("*") if cache not in path.parents}
    assert {sample["key"] for sample in load_stream(str(archive)).one_epoch()} == {"train/a/0.png", "train/b/1.png"}
    rows = open_rows(str(archive), "test").rows
    assert rows.features["label"].names == ["a", "b"]
    assert rows["label"][:] == [0]
    assert caplog.text.count("decompressed once, to HF_HOME/hf_geossl/archives") == 1
    (copy,) = cache.iterdir()
    assert copy.read_bytes() == tar(*FOLDERS)
    assert {path for path in tmp_path.parent.rglob("*") if cache not in path.parents} - before == {cache, cache.parent}
    caplog.clear()
    archive.write_bytes(COMPRESSIONS[ending](tar("train/a/0.png", "test/a/5.png", "train/b/1.png", "test/b/6.png")))
    assert len(list(load_stream(str(archive), "test").one_epoch())) == 2  # another archive of the name is another copy


@pytest.mark.parametrize("ending", COMPRESSIONS)
def test_samples_of_a_webdataset_are_read_without_a_copy(ending: str, tmp_path: Path, cache: Path) -> None:
    (tmp_path / f"train{ending}").write_bytes(COMPRESSIONS[ending](tar("0.png", "1.png")))
    assert len(list(load_stream(str(tmp_path / f"train{ending}")).one_epoch())) == 2
    assert not cache.exists()
    with open_tar(str(tmp_path / f"train{ending}")) as archive:
        assert [member.name for member in archive][:2] == ["0.png", "1.png"]


def test_what_is_damaged_or_too_large_is_said(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = gzip.compress(tar(*FOLDERS))
    (tmp_path / "cut.tar.gz").write_bytes(content[:-20])
    with pytest.raises(ValueError, match=r"cut.tar.gz cannot be decompressed .*: mend or unpack it"):
        decompressed(str(tmp_path / "cut.tar.gz"))
    (tmp_path / "bomb.tar.gz").write_bytes(content)
    monkeypatch.setattr(compressed, "FREE_AFTERWARDS", 2**80)
    with pytest.raises(ValueError, match=r"bomb.tar.gz does not fit on the disk of HF_HOME without its compression"):
        decompressed(str(tmp_path / "bomb.tar.gz"))
    assert list(cache.iterdir()) == []
    (tmp_path / "plain.tar").write_bytes(tar(*FOLDERS))
    assert decompressed(str(tmp_path / "plain.tar")) == str(tmp_path / "plain.tar")
