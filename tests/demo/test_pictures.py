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

from hf_geossl.data.notes import collect_notes
from hf_geossl.demo import pictures
from tests.helpers.demo_models import BANDS, FORMATS, GRAY, noise, stored
from tests.helpers.demo_models import encoded as encoded_channels
from tests.helpers.image_files import dicom, npy


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


def test_files_of_any_kind_are_taken_for_models_of_other_images() -> None:
    five, gray = stored("bands"), stored("gray")
    for described, content in [
        (BANDS, encoded_channels("bands")),
        (BANDS, npy(five)),
        (GRAY, encoded_channels("gray")),
        (GRAY, npy(gray)),
        (GRAY, dicom(gray[..., 0], bits=12)),
    ]:
        expected = (five[..., ::-1] + 1) / 4 if described is BANDS else gray / 4095
        picture = pictures.read_upload(content, described)
        np.testing.assert_allclose(np.stack([np.asarray(plane) for plane in picture.planes], -1), expected, atol=1e-6)
        fitted = pictures.fit_picture(picture, (16, 32))
        assert fitted.size == (448, 224)
        # the middle half of the rows, 14 times as large
        np.testing.assert_allclose(fitted.units().mean((1, 2)), expected[8:24].mean((0, 1)), atol=0.02)


def test_files_that_a_model_of_other_images_cannot_use_get_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    takes = "cannot be read as an image of this model, which takes 5 channels: infrared"
    for content, described, words in [
        (encoded_channels("gray"), BANDS, f"{takes}.*: it has 1 channel, and channel 5 is asked for\\.$"),
        (b"%PDF-1.7 no picture", BANDS, takes),
        (encoded_channels("bands")[:900], BANDS, takes),
        (encoded_channels("gray")[:-900], GRAY, "which takes 1 channel: gray; uint16, values 0 to 4095"),
    ]:
        with pytest.raises(pictures.UploadError, match=words) as caught:
            pictures.read_upload(content, described)
        assert "\n" not in str(caught.value)
        assert "--" not in str(caught.value)
    monkeypatch.setattr(pictures, "_MAX_CHANNEL_PIXELS", 1000)
    for kind, described in FORMATS.items():
        with pytest.raises(
            pictures.UploadError, match="more than the 0 million pixels of 16 bytes that the demo takes"
        ):
            pictures.read_upload(encoded_channels(kind), described)


def test_what_decoding_did_is_said_in_one_line_without_arguments() -> None:
    half = Image.new("RGBA", (8, 8), (255, 0, 0, 100))
    with collect_notes() as notes:
        pictures.read_upload(encoded(half, save_all=True, append_images=[half]))
    frames = "only the first of several frames or pages read (2 images in this file)"
    assert pictures.describe_notes(notes) == f"Of this file: transparency laid over white; {frames}."
    with collect_notes() as notes:
        pictures.read_upload(encoded(Image.new("L", (8, 8), 40)), GRAY)
    stored_as = "uint8 instead of uint16; 0 to 255 became the whole range"
    assert pictures.describe_notes(notes) == (
        f"Of this file: stored in another type than the model's images ({stored_as})."
    )
    with collect_notes() as notes:
        pictures.read_upload(encoded(noise(0)))
    assert pictures.describe_notes(notes) == ""


def test_samples_of_other_images_come_from_a_folder_alone_and_what_decoding_did_is_logged(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert pictures.sample_pictures(None, BANDS) == []
    for seed in range(2):
        (tmp_path / f"{seed}.png").write_bytes(encoded_channels("gray", seed))
    Image.new("L", (8, 8), 40).save(tmp_path / "2.png")
    found = pictures.sample_pictures(tmp_path, GRAY)
    assert [picture.size for picture in found] == [(32, 32), (32, 32), (8, 8)]
    assert [record.getMessage() for record in caplog.records] == [
        f"{tmp_path.name}: 1 of 3 images: stored in another type than the model's images"
    ]
    with pytest.raises(ValueError, match="0.png: it has 1 channel, and channel 5 is asked for"):
        pictures.sample_pictures(tmp_path, BANDS)
