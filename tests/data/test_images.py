"""Decoding: exact numbers for what is converted, one clear error for what is not."""

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import skimage
import torch
from PIL import Image, ImageOps

from hf_geossl.data import images
from hf_geossl.data.images import BrokenImageError, decode_image, decode_pixels


def save(image: Image.Image, kind: str, **options) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def pixels(source, **options) -> np.ndarray:
    image = decode_image(source, **options)
    assert image.mode == "RGB"
    return np.asarray(image)


def noise(*shape: int, kind=np.uint8) -> np.ndarray:
    return np.random.default_rng(0).integers(0, np.iinfo(kind).max, shape, dtype=kind, endpoint=True)


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "WEBP"])
def test_lossless_formats_keep_every_pixel(kind):
    expected = noise(7, 5, 3)
    content = save(Image.fromarray(expected), kind, **({"lossless": True} if kind == "WEBP" else {}))
    assert np.array_equal(pixels(content), expected)


def test_bytes_path_image_array_and_tensor_give_the_same(tmp_path):
    expected = noise(6, 4, 3)
    content = save(Image.fromarray(expected), "PNG")
    (tmp_path / "photo.png").write_bytes(content)
    sources = [content, tmp_path / "photo.png", str(tmp_path / "photo.png"), Image.open(io.BytesIO(content))]
    for source in [*sources, expected, torch.from_numpy(expected)]:
        assert np.array_equal(pixels(source), expected)


def test_a_photograph_is_what_pillow_decodes():
    for name in ("rocket.jpg", "retina.jpg", "astronaut.png", "multipage.tif", "no_time_for_that_tiny.gif"):
        path = Path(skimage.__file__).parent / "data" / name
        with Image.open(path) as image:
            expected = np.asarray(image.convert("RGB"))
        assert np.array_equal(pixels(path), expected), name


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_16_bit_grey_is_scaled_and_rounded_not_clipped(kind):
    values = np.array([[0, 1, 128, 129, 256, 257, 385, 386, 32768, 65278, 65407, 65535]], dtype=np.uint16)
    expected = np.round(values / 257).astype(np.uint8)
    assert expected.tolist() == [[0, 0, 0, 1, 1, 1, 1, 2, 128, 254, 255, 255]]
    got = pixels(save(Image.fromarray(values), kind))
    assert np.array_equal(got, np.repeat(expected[..., None], 3, axis=2))
    everything = np.arange(2**16, dtype=np.uint16).reshape(256, 256)
    assert np.array_equal(pixels(save(Image.fromarray(everything), kind))[..., 0], np.round(everything / 257))


def test_cmyk_becomes_the_colours_it_stands_for():
    cyan, black = Image.new("CMYK", (8, 8), (255, 0, 0, 0)), Image.new("CMYK", (8, 8), (0, 0, 0, 255))
    assert np.abs(pixels(save(cyan, "JPEG", quality=100)).astype(int) - [0, 255, 255]).max() <= 2
    assert pixels(save(black, "JPEG", quality=100)).max() <= 2
    assert np.abs(pixels(save(cyan, "TIFF")).astype(int) - [0, 255, 255]).max() == 0


def test_transparency_is_laid_over_white():
    rgba = np.zeros((1, 3, 4), dtype=np.uint8)
    rgba[0, :, 3] = (0, 51, 255)  # black at 0, 20 and 100 %
    assert pixels(save(Image.fromarray(rgba, "RGBA"), "PNG"))[0, :, 0].tolist() == [255, 204, 0]
    grey = Image.merge("LA", (Image.new("L", (2, 1), 100), Image.fromarray(np.array([[0, 255]], dtype=np.uint8))))
    assert pixels(save(grey, "PNG"))[0, :, 1].tolist() == [255, 100]
    palette = Image.fromarray(np.array([[0, 1]], dtype=np.uint8), "P")
    palette.putpalette([10, 20, 30, 40, 50, 60])
    assert pixels(save(palette, "PNG", transparency=0))[0].tolist() == [[255, 255, 255], [40, 50, 60]]
    assert pixels(save(palette, "PNG"))[0].tolist() == [[10, 20, 30], [40, 50, 60]]


def test_grey_bilevel_and_one_pixel_images_are_valid():
    grey = noise(3, 4)
    assert np.array_equal(pixels(save(Image.fromarray(grey), "PNG"))[..., 2], grey)
    assert np.array_equal(pixels(grey[..., None])[..., 0], grey)
    assert pixels(save(Image.new("1", (2, 2), 1), "PNG")).min() == 255
    assert pixels(save(Image.new("RGB", (1, 1), (1, 2, 3)), "PNG")).tolist() == [[[1, 2, 3]]]


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied_once(orientation):
    expected = noise(4, 6, 3)
    exif = Image.Exif()
    exif[0x0112] = orientation
    content = save(Image.fromarray(expected), "PNG", exif=exif)
    with Image.open(io.BytesIO(content)) as image:
        upright = np.asarray(ImageOps.exif_transpose(image))
    decoded = decode_image(content)
    assert np.array_equal(np.asarray(decoded), upright)
    assert np.array_equal(np.asarray(ImageOps.exif_transpose(decoded)), upright)


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
def test_a_damaged_exif_block_does_not_cost_the_pixels():
    content = save(Image.fromarray(noise(4, 6, 3)), "JPEG", exif=b"Exif\0\0II*\0\xff\xff\xff\xff damaged")
    assert pixels(content).shape == (4, 6, 3)


def png_header(width: int, height: int) -> bytes:
    header = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = b"IDAT" + zlib.compress(b"\0" * 100)
    chunks = [struct.pack(">I", len(part) - 4) + part + struct.pack(">I", zlib.crc32(part)) for part in (header, body)]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def test_images_above_the_limit_are_refused_before_they_are_decoded(monkeypatch):
    photo = Image.fromarray(noise(20, 30, 3))
    contents = [save(photo, kind) for kind in ("PNG", "JPEG", "BMP", "TIFF", "GIF", "WEBP")]
    contents += [save(photo, "WEBP", lossless=True), save(photo.convert("RGBA"), "WEBP"), photo, noise(20, 30, 3)]
    monkeypatch.setattr(Image.Image, "load", lambda image: pytest.fail("pixels were decoded"))
    for content in contents:
        with pytest.raises(BrokenImageError, match="30 x 20 is 600 pixels, more than max_pixels=599; scale it down"):
            decode_image(content, max_pixels=599)
    with pytest.raises(BrokenImageError, match="9000 x 8000 is 72000000 pixels"):
        decode_image(png_header(9000, 8000))
    with pytest.raises(BrokenImageError, match="25000 x 20000 is 500000000 pixels, more than max_pixels=67108864"):
        decode_image(png_header(25_000, 20_000))


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "BMP", "TIFF", "GIF", "WEBP"])
def test_max_pixels_counts_whatever_pillows_own_limit_is(kind, monkeypatch):
    content = save(Image.fromarray(noise(20, 30, 3)), kind)
    for limit in (400, 200):  # 600 pixels: Pillow would warn, and refuse
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
        with pytest.raises(BrokenImageError, match="30 x 20 is 600 pixels, more than max_pixels=100;"):
            decode_image(content, max_pixels=100)
        if limit == 200 and kind in ("TIFF", "WEBP"):  # whose readers compare with twice Pillow's limit themselves
            with pytest.raises(
                BrokenImageError, match="Pillow refuses so many pixels .*: raise PIL.Image.MAX_IMAGE_PIXELS"
            ):
                decode_image(content, max_pixels=600)
        else:
            assert pixels(content, max_pixels=600).shape == (20, 30, 3)
        assert limit == Image.MAX_IMAGE_PIXELS  # a setting of the process, which is not ours


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "empty"),
        (b"this is a text", "not an image of a known format"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not an image of a known format"),
        (save(Image.fromarray(noise(40, 40, 3)), "JPEG")[:900], "pixels cannot be decoded"),
        (save(Image.fromarray(noise(40, 40, 3)), "PNG")[:900], "pixels cannot be decoded"),
        (save(Image.fromarray(noise(40, 40, 3)), "WEBP")[:600], "cannot be"),
        (save(Image.fromarray(np.ones((3, 3), np.float32)), "TIFF"), "32-bit floating point"),
        (save(Image.fromarray(np.ones((3, 3), np.int32)), "TIFF"), "32-bit integer"),
        (png_header(0, 5), "cannot be read|no pixels|not an image"),
    ],
)
def test_broken_content_raises_one_error_with_its_reason(content, reason, tmp_path):
    with pytest.raises(BrokenImageError, match=reason) as error:
        decode_image(content)
    assert error.value.reason == str(error.value)
    (tmp_path / "photo.jpg").write_bytes(content)
    with pytest.raises(BrokenImageError, match=reason) as error:
        decode_image(tmp_path / "photo.jpg")
    assert str(tmp_path) not in str(error.value)


def test_missing_files_folders_and_addresses_are_broken_images_without_their_path(tmp_path):
    for path in (tmp_path / "none.png", tmp_path, "https://example.org/a.png"):
        with pytest.raises(BrokenImageError, match="the file cannot be read") as error:
            decode_image(path)
        assert str(path) not in str(error.value)


def test_arrays_that_are_no_images_are_errors_of_the_program():
    for source in (np.zeros((4, 4, 3)), np.zeros((3, 8, 8), np.uint8), torch.zeros(3, 8, 8), [1, 2], None):
        with pytest.raises(TypeError, match=r"an image .*must be"):
            decode_image(source)


def test_the_callers_image_is_left_alone():
    image = Image.fromarray(noise(4, 4, 3))
    image.info["note"] = "mine"
    decoded = decode_image(image)
    decoded.putpixel((0, 0), (0, 0, 0))
    assert image.getpixel((0, 0)) == tuple(noise(4, 4, 3)[0, 0].tolist())
    assert image.info == {"note": "mine"}


def jpeg_kinds() -> dict[str, bytes]:
    """JPEG files of every kind that cameras and editors write, 97 x 61 pixels."""
    with Image.open(Path(skimage.__file__).parent / "data" / "rocket.jpg") as image:
        photo = image.convert("RGB").resize((97, 61))
    turned = Image.Exif()
    turned[274] = 6
    kinds = {
        f"{name} {subsampling}": save(
            photo, "JPEG", quality=85, subsampling=subsampling, progressive=name == "progressive"
        )
        for name in ("baseline", "progressive")
        for subsampling in (0, 1, 2)
    }
    return kinds | {
        "grey": save(photo.convert("L"), "JPEG"),
        "cmyk": save(photo.convert("CMYK"), "JPEG"),
        "turned": save(photo, "JPEG", exif=turned),
    }


@pytest.mark.parametrize("kind", jpeg_kinds())
def test_pixels_for_views_are_those_of_the_image_whatever_is_damaged(kind):
    content = jpeg_kinds()[kind]
    rng = np.random.default_rng(0)
    files = [content, content + b"more"]
    for _ in range(30):  # cut, overwritten, bytes lost
        cut, changed, lost = content[: rng.integers(2, len(content))], bytearray(content), bytearray(content)
        changed[rng.integers(len(content))] = rng.integers(256)
        start = int(rng.integers(len(content)))
        del lost[start : start + 20]
        files += [cut, bytes(changed), bytes(lost)]

    def outcome(decode, file):
        try:
            found = np.asarray(decode(file))
            return found.shape, found.tobytes()
        except BrokenImageError as error:
            return error.reason

    outcomes = [outcome(decode_image, file) for file in files]
    assert isinstance(outcomes[0], tuple)
    assert 5 < sum(isinstance(found, str) for found in outcomes) < 90
    assert [outcome(decode_pixels, file) for file in files] == outcomes


def test_pixels_for_views_take_the_short_way_where_there_is_one(monkeypatch, tmp_path):
    kinds = jpeg_kinds()
    (tmp_path / "photo").write_bytes(kinds["baseline 0"])
    monkeypatch.setattr(images, "decode_image", lambda *_: pytest.fail("decoded by Pillow"))
    for kind in kinds.keys() - {"grey", "cmyk", "turned"}:
        assert decode_pixels(kinds[kind]).shape == (61, 97, 3)
    assert decode_pixels(tmp_path / "photo").shape == decode_pixels(str(tmp_path / "photo")).shape == (61, 97, 3)


def test_pixels_for_views_are_the_same_without_torchvisions_decoder(monkeypatch):
    content = jpeg_kinds()["baseline 0"]
    expected = decode_pixels(content)
    monkeypatch.setattr(images, "decode_jpeg", None)
    assert torch.equal(decode_pixels(content), expected)


def test_pixels_for_views_are_bounded_and_taken_from_any_source(tmp_path):
    content = jpeg_kinds()["baseline 0"]
    with pytest.raises(BrokenImageError, match="max_pixels=5916"):
        decode_pixels(content, 97 * 61 - 1)
    (tmp_path / "photo.jpg").write_bytes(content)
    for source in (content, bytearray(content), tmp_path / "photo.jpg", decode_image(content)):
        assert np.array_equal(decode_pixels(source), decode_image(content))
    for source in (tmp_path / "missing.jpg", tmp_path):
        with pytest.raises(BrokenImageError, match="the file cannot be read"):
            decode_pixels(source)
