"""Decoding: exact numbers for what is converted, one clear error for what is not."""

import io
import struct
import sys
import zlib
from pathlib import Path

import imagecodecs
import numpy as np
import pytest
import skimage
import torch
from PIL import Image, ImageOps, PngImagePlugin

from hf_geossl.data import images
from hf_geossl.data.images import BrokenImageError, decode_image, decode_pixels, read_raster
from hf_geossl.data.notes import collect_notes
from hf_geossl.modeling.image_format import ImageFormat
from tests.helpers.image_files import good_files, npy, photo, tiff


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
        if limit == 200 and kind == "WEBP":  # whose reader compares with twice Pillow's limit itself
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
        (
            b"version https://git-lfs.github.com/spec/v1\noid sha256:0",
            "a pointer of Git LFS: `git lfs pull` fetches the file",
        ),
        (b"\n<!DOCTYPE html><html>404</html>", "a page of a web site, as a failed download leaves it"),
        (b"this is a text", "not an image of a known format"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not an image of a known format"),
        (save(Image.fromarray(noise(40, 40, 3)), "JPEG")[:900], "pixels cannot be decoded"),
        (save(Image.fromarray(noise(40, 40, 3)), "PNG")[:900], "pixels cannot be decoded"),
        (save(Image.fromarray(noise(40, 40, 3)), "WEBP")[:600], "cannot be"),
        (
            save(Image.fromarray(np.full((3, 3), 1.5, np.float32)), "TIFF"),
            "32-bit floating point .* --value_range 1.5,1.5",
        ),
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


def test_what_is_no_image_is_an_error_of_the_program():
    for source in ([1, 2], ["a"], {"bytes": b""}, None, 3):
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


EVERY = good_files()


@pytest.mark.parametrize("kind", EVERY)
def test_every_format_gives_the_picture_that_was_written(kind):
    if kind == "npz":  # floats from 0 to 235
        with pytest.raises(BrokenImageError, match="--value_range 0,235"):
            decode_image(EVERY[kind])
        return
    picture = pixels(EVERY[kind]).astype(int)
    expected = photo().astype(int)
    if kind in (
        "jpeg grey",
        "png 16 grey",
        "pgm ascii",
        "pfm",
        "tiff float",
        "dicom",
        "dicom jpeg 2000",
        "dicom jpeg-ls",
    ):
        expected = np.repeat(expected[..., :1], 3, axis=2)
    if kind in ("tiff planar", "tiff stack", "npy"):  # uint16 that holds 0 to 255: nearly black, and noted
        expected = np.round(expected / 257)
    if kind == "dicom":  # int16 times 8 less 1024, of 12 bits with a sign
        expected = (expected * 8 + 2048) * 255 / 4095
    lossy = kind in ("jpeg", "mpo", "jpeg grey", "webp", "avif", "tiff jpeg", "png palette", "gif")
    assert picture.shape == (40, 48, 3)
    assert np.abs(picture - expected).mean() < (14 if lossy else 0.6), np.abs(picture - expected).mean()
    assert np.array_equal(decode_pixels(EVERY[kind]), picture)


NOTED = {
    "mpo": {"frames"},
    "apng": {"frames"},
    "png 16 grey": {"depth"},
    "png 16 rgb": {"depth"},
    "ppm 16": {"depth"},
    "pgm ascii": {"depth"},
    "pfm": {"floats"},
    "tiff float": {"floats"},
    "jpeg 2000 five": {"channels"},
    "tiff five deflate": {"channels"},
    "tiff jpeg": {"channels"},
    "tiff ome": {"channels"},
    "tiff planar": {"channels", "depth", "dark"},
    "tiff stack": {"channels", "depth", "dark"},
    "npy": {"channels", "depth", "dark"},
    "tiff 16 zstd": {"depth"},
    "dicom": {"depth"},
}


@pytest.mark.parametrize("kind", [kind for kind in EVERY if kind != "npz"])
def test_what_was_done_to_the_values_is_noted_and_nothing_else(kind):
    for decode in (decode_image, decode_pixels):
        with collect_notes() as notes:
            decode(EVERY[kind])
        assert {entry.kind for entry in notes} == NOTED.get(kind, set())


def test_a_picture_that_comes_out_nearly_black_names_the_range_to_give():
    content = save(Image.fromarray((photo()[..., 0] * np.uint16(16)).astype(np.uint16)), "PNG")  # 0 to 3760 of 65535
    with collect_notes() as notes:
        assert pixels(content).max() == 15
    assert [str(entry) for entry in notes if entry.kind == "dark"] == [
        "nearly black, because the values fill little of the range of their type (the largest value is 3760 of 65535; "
        "give the range that is used, such as --value_range 0,4095)"
    ]


def test_infrared_tagged_as_transparency_leaves_the_colours_alone():
    rgb = photo()
    for tag in ("unassalpha", "assocalpha", "unspecified"):
        content = tiff(np.concatenate([rgb, rgb[..., :1] // 2], -1), photometric="rgb", extrasamples=[tag])
        with collect_notes() as notes:
            assert np.array_equal(pixels(content), rgb), tag
        assert [entry.kind for entry in notes] == ["alpha_band", "channels"][tag == "unspecified" :]
        assert read_raster(content).pixels.shape == (40, 48, 4)


def test_real_transparency_of_a_tiff_is_laid_over_white_as_ever():
    rgb = photo()
    alpha = np.where(np.arange(48) < 20, 0, 255).astype(np.uint8) * np.ones((40, 1, 1), np.uint8).reshape(40, 1)
    content = tiff(np.concatenate([rgb, alpha[..., None]], -1), photometric="rgb", extrasamples=["unassalpha"])
    with collect_notes() as notes:
        found = pixels(content)
    assert (found[:, :20] == 255).all()
    assert np.array_equal(found[:, 20:], rgb[:, 20:])
    assert [entry.kind for entry in notes] == ["transparency"]
    raster = read_raster(content)
    assert raster.alpha
    assert raster.pixels.shape == (40, 48, 3)


FOUR = ImageFormat(
    channels=(4, 3, 2, 1),
    names=("d", "c", "b", "a"),
    dtype="uint16",
    value_range=((100, 4195),),
    range_source="given",
    mean=(0.5,) * 4,
    std=(0.25,) * 4,
)


def test_pixels_of_a_format_are_units_of_its_channels_in_its_order(tmp_path):
    stored = noise(9, 7, 6, kind=np.uint16)
    expected = (stored[..., [3, 2, 1, 0]].astype(np.float64) - 100) / 4095
    (tmp_path / "a.npy").write_bytes(npy(stored))
    sources = [tmp_path / "a.npy", npy(stored), stored, torch.from_numpy(stored), stored.tolist()]
    sources.append(tiff(stored, photometric="minisblack", planarconfig="contig"))
    sources.append(tiff(np.moveaxis(stored, 2, 0), photometric="minisblack"))  # pages
    for source in sources:
        found = decode_pixels(source, image_format=FOUR)
        assert found.dtype == torch.float32
        np.testing.assert_allclose(found, expected, rtol=1e-6)
        assert found.max() > 10  # not clipped
    with pytest.raises(BrokenImageError, match="it has 3 channels, and channel 4 is asked for"):
        decode_pixels(stored[..., :3].copy(), image_format=FOUR)


def test_the_default_format_is_the_way_without_one(monkeypatch):
    content = jpeg_kinds()["baseline 0"]
    monkeypatch.setattr(images, "decode_image", lambda *_: pytest.fail("decoded by Pillow"))
    assert torch.equal(decode_pixels(content, image_format=ImageFormat()), decode_pixels(content))


def test_grey_formats_take_the_luminance_of_colours():
    rgb = photo()
    grey8 = ImageFormat(channels="gray", names=("gray",), mean=(0.5,), std=(0.2,))
    expected = np.asarray(Image.fromarray(rgb).convert("L"))
    assert np.array_equal(decode_pixels(save(Image.fromarray(rgb), "PNG"), image_format=grey8)[..., 0], expected)
    assert np.array_equal(decode_pixels(save(Image.fromarray(expected), "PNG"), image_format=grey8)[..., 0], expected)
    grey16 = ImageFormat.from_dict({**grey8.to_dict(), "dtype": "uint16", "value_range": [[0, 65535]]})
    found = decode_pixels(imagecodecs.png_encode(rgb.astype(np.uint16) * 257), image_format=grey16)[..., 0]
    np.testing.assert_allclose(found, rgb @ np.array([0.299, 0.587, 0.114]) / 255, atol=2e-5)


def test_a_model_with_a_value_range_shows_pictures_by_it():
    stored = np.array([[[0, 100, 4195], [2147, 5000, 100]]], dtype=np.uint16)
    named = {"dtype": "uint16", "value_range": [[100, 4195]], "range_source": "given"}
    picture = decode_image(stored, image_format=ImageFormat.from_dict({**ImageFormat().to_dict(), **named}))
    assert np.asarray(picture).tolist() == [[[0, 0, 255], [127, 255, 0]]]


def test_a_png_with_large_texts_or_profile_is_read():
    rgb = photo()
    large = PngImagePlugin.PngInfo()
    large.add_text("one", "y" * 2_000_000, zip=True)
    many = PngImagePlugin.PngInfo()
    for number in range(70):
        many.add_text(f"text {number}", "y" * 1_000_000, zip=True)
    turned = Image.Exif()
    turned[274] = 3
    for options in ({"pnginfo": large}, {"pnginfo": many}, {"icc_profile": b"\0" * 3_000_000}):
        content = save(Image.fromarray(rgb), "PNG", **options)
        with pytest.raises(ValueError, match="large|memory"), Image.open(io.BytesIO(content)) as image:
            image.load()
        assert np.array_equal(pixels(content), rgb)
        assert np.array_equal(pixels(save(Image.fromarray(rgb), "PNG", exif=turned, **options)), rgb[::-1, ::-1])
        with pytest.raises(BrokenImageError):
            decode_image(content[:-40])


def test_files_that_need_an_extra_say_so(monkeypatch):
    for name in ("tifffile", "imagecodecs", "pydicom"):
        monkeypatch.setitem(sys.modules, name, None)  # importing it raises
    for kind in ("tiff five deflate", "jpeg 2000 five", "dicom"):
        with pytest.raises(BrokenImageError, match=r'pip install "hf_geossl\[images\]"'):
            decode_image(EVERY[kind])
    for kind in ("tiff", "tiff lzw", "png 16 rgb", "png 16 grey", "npy", "ppm 16", "jpeg 2000"):  # need none
        assert pixels(EVERY[kind]).shape == (40, 48, 3)
    grey16 = noise(5, 4, kind=np.uint16)
    assert np.array_equal(pixels(save(Image.fromarray(grey16), "TIFF"))[..., 0], np.round(grey16 / 257))
