"""What Pillow reads: stored values kept, palettes expanded, metadata of any size left out."""

import io

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from hf_geossl.data.notes import collect_notes
from hf_geossl.data.rasters import BrokenImageError
from hf_geossl.data.readers.pillow import load, note_frames, open_image, to_raster, without_png_metadata
from tests.helpers.image_files import photo, saved


@pytest.mark.parametrize(
    ("mode", "channels", "dtype", "alpha"),
    [
        ("1", 1, "uint8", False),
        ("L", 1, "uint8", False),
        ("LA", 1, "uint8", True),
        ("P", 3, "uint8", False),
        ("RGB", 3, "uint8", False),
        ("RGBA", 3, "uint8", True),
        ("CMYK", 3, "uint8", False),
        ("YCbCr", 3, "uint8", False),
        ("I;16", 1, "uint16", False),
        ("I", 1, "int32", False),
        ("F", 1, "float32", False),
    ],
)
def test_every_mode_has_its_raster(mode: str, channels: int, dtype: str, alpha: bool) -> None:
    image = (
        Image.fromarray(photo()[..., 0].astype(np.uint16)) if mode == "I;16" else Image.fromarray(photo()).convert(mode)
    )
    raster = to_raster(image)
    assert (raster.num_channels, raster.dtype, raster.alpha) == (channels, dtype, alpha)
    if mode == "RGB":
        assert np.array_equal(raster.pixels, photo())
    if mode == "I;16":
        assert np.array_equal(raster.pixels[..., 0], photo()[..., 0])


def test_a_palette_with_transparency_keeps_it_apart() -> None:
    image = Image.fromarray(np.array([[0, 1]], dtype=np.uint8), "P")
    image.putpalette([10, 20, 30, 40, 50, 60])
    raster = to_raster(Image.open(io.BytesIO(saved(image, "PNG", transparency=0))))
    assert raster.pixels.tolist() == [[[10, 20, 30], [40, 50, 60]]]
    assert raster.transparency is not None
    assert raster.transparency.tolist() == [[0, 255]]


def test_only_the_chunks_of_the_pixels_are_left() -> None:
    info = PngImagePlugin.PngInfo()
    info.add_text("a", "b" * 500)
    info.add_itxt("c", "d" * 500)
    plain, rich = saved(photo(), "PNG"), saved(photo(), "PNG", pnginfo=info, icc_profile=b"x" * 999, dpi=(72, 72))
    assert without_png_metadata(io.BytesIO(rich)) == plain
    assert without_png_metadata(io.BytesIO(rich[:-30])) == plain[:-30]


def test_frames_are_noted_once_the_pixels_are_there() -> None:
    first, second = Image.fromarray(photo()), Image.fromarray(photo()[::-1].copy())
    for kind in ("GIF", "PNG", "WEBP", "TIFF", "MPO"):
        for more in ([], [second]):
            file = io.BytesIO(saved(first, kind, save_all=True, append_images=more))
            image = load(open_image(file), 10**6, file)
            pixels = np.asarray(image)
            with collect_notes() as notes:
                note_frames(image)
            assert [entry.kind for entry in notes] == ["frames"] * len(more), kind
            assert pixels.shape[:2] == (40, 48)
    smaller = io.BytesIO(saved(first, "TIFF", save_all=True, append_images=[second.resize((24, 20))]))  # a thumbnail
    with collect_notes() as notes:
        note_frames(load(open_image(smaller), 10**6))
    assert notes == []


def test_what_is_no_image_names_what_is() -> None:
    with pytest.raises(BrokenImageError, match="not an image of a known format .JPEG, PNG, .*DICOM, NPY, NPZ."):
        open_image(io.BytesIO(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic"))
