"""Pictures read within limits, cut to shape, coloured and marked."""

import io
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from hf_geossl.demo import pictures
from tests.helpers.demo_models import noise


def encoded(picture: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return buffer.getvalue()


def test_every_kind_of_picture_is_taken() -> None:
    red = Image.new("RGB", (40, 20), (200, 30, 40))
    exif = Image.Exif()
    exif[274] = 6  # the camera was turned
    half = Image.new("RGB", (40, 20), "white")
    half.paste((0, 0, 0), (0, 0, 20, 20))
    upright = pictures.read_upload(encoded(half, "JPEG", exif=exif, quality=95))
    assert upright.size == (20, 40)
    assert upright.getpixel((10, 5))[0] < 20
    assert upright.getpixel((10, 35))[0] > 235
    transparent = Image.new("RGBA", (8, 8), (255, 0, 0, 0))
    grey = Image.fromarray(np.full((8, 8), 32896, dtype=np.uint16))
    for content, color in [
        (encoded(transparent), (255, 255, 255)),
        (encoded(red.convert("CMYK"), "JPEG", quality=95), (200, 30, 40)),
        (encoded(grey), (128, 128, 128)),
        (encoded(red.quantize()), (200, 30, 40)),
        (encoded(Image.new("RGB", (1, 1), (9, 8, 7))), (9, 8, 7)),
    ]:
        picture = pictures.read_upload(content)
        assert picture.mode == "RGB"
        assert picture.getpixel((0, 0)) == pytest.approx(color, abs=12)
        fitted = pictures.fit_picture(picture, (32, 32))
        assert fitted.size == (448, 448)
        assert fitted.getpixel((224, 224)) == pytest.approx(color, abs=12)
    assert pictures.fit_picture(red, (32, 64)).size == (448, 224)


def test_uploads_that_cannot_be_used_get_a_plain_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0))
    bomb = b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"\0" * 100)) + chunk(b"IEND", b"")
    whole = encoded(noise(0, 64), "JPEG")
    for content, words in [
        (b"", "cannot be read as a picture"),
        (b"%PDF-1.7 no picture", "cannot be read as a picture"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'></svg>", "cannot be read as a picture"),
        (whole[: len(whole) // 2], "cannot be read as a picture"),
        (bomb, "34 million pixels"),
        (bytes(pictures.MAX_BYTES + 2**20), "17 MiB; the demo takes up to 16 MiB"),
    ]:
        with pytest.raises(pictures.UploadError, match=words) as caught:
            pictures.read_upload(content)
        assert "\n" not in str(caught.value)
        assert str(caught.value).endswith(".")


def test_heat_maps_and_marks_lie_over_their_patches() -> None:
    ground = Image.new("RGB", (64, 64), (128, 128, 128))
    values = torch.zeros(4, 4)
    values[1, 2] = 3.0
    heat = np.array(pictures.heat_map(ground, values)).astype(int)
    warm = heat[..., 0] > heat[0, 0, 0]
    rows, columns = np.nonzero(warm)
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (16, 31, 32, 47)
    assert pictures.cell_box((1, 2), (4, 4), (64, 64)) == (32, 16, 47, 31)
    marked = np.array(pictures.marked(ground, (32, 16, 47, 31)))
    rows, columns = np.nonzero((marked != 128).any(axis=-1))
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (10, 37, 26, 53)
    assert (marked[18:30, 34:46] == 128).all()
    flat = pictures.heat_map(ground, torch.full((4, 4), 0.3))  # no difference is no error
    assert len(flat.getcolors()) == 1


def test_samples_come_from_a_folder_or_are_scenes(tmp_path: Path) -> None:
    assert [picture.size for picture in pictures.sample_pictures(None)] == [(448, 448)] * 8
    for name, color in [("2.png", "red"), ("1.png", "blue")]:
        Image.new("RGB", (5, 7), color).save(tmp_path / name)
    found = pictures.sample_pictures(tmp_path)
    assert [picture.getpixel((0, 0)) for picture in found] == [(0, 0, 255), (255, 0, 0)]
    (tmp_path / "3.jpg").write_bytes(b"no picture")
    with pytest.raises(ValueError, match="samples hold a picture that cannot be read"):
        pictures.sample_pictures(tmp_path)
    (tmp_path / "none").mkdir()
    with pytest.raises(ValueError, match="two or more pictures, got .* with 0"):
        pictures.sample_pictures(tmp_path / "none")
