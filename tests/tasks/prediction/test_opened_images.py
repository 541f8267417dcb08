"""Images are read in windows as they are decoded whole; previews are the means of blocks; pixels without a value are known."""

from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image

from hf_geossl.data.images import BrokenImageError, decode_pixels
from hf_geossl.data.notes import collect_notes
from hf_geossl.modeling.image_format import ImageFormat
from hf_geossl.tasks.prediction.opened_images import Preview, TiffImage, open_image
from tests.helpers.image_files import values
from tests.helpers.task_folders import picture

BANDS = ImageFormat((4, 1), ("infrared", "red"), "uint16", ((0.0, 4000.0),), "given", mean=(0.5, 0.5), std=(0.2, 0.2))


@pytest.mark.parametrize("image_format", [None, BANDS], ids=["rgb", "bands"])
def test_windows_are_parts_of_the_decoded_image(image_format: ImageFormat | None, tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    stored = picture(50, 60) if image_format is None else values(50, 60, 4, dtype=np.uint16)
    kind = "rgb" if image_format is None else "minisblack"
    tifffile.imwrite(path, stored, photometric=kind, planarconfig="contig", tile=(16, 16))
    whole = decode_pixels(path, image_format=image_format).numpy()
    with open_image(path, image_format, 100) as image:  # of which no more than 100 pixels would be read whole
        assert isinstance(image, TiffImage)
        np.testing.assert_array_equal(image.read((7, 11, 30, 21)), whole[7:37, 11:32])
        assert image.missing((7, 11, 30, 21)) is None


def test_pages_are_channels_where_the_model_wants_more_than_the_first_has(tmp_path: Path) -> None:
    stored = values(4, 20, 30, dtype=np.uint16)
    with tifffile.TiffWriter(tmp_path / "a.tif") as writer:
        for page in stored:
            writer.write(page, photometric="minisblack", metadata=None)
    with collect_notes() as notes, open_image(tmp_path / "a.tif", BANDS, 10**6) as image:
        np.testing.assert_allclose(image.read((0, 0, 20, 30))[..., 0], stored[3] / 4000, rtol=1e-6)
    assert not [note for note in notes if note.kind == "frames"]


def test_pages_that_are_not_read_are_said(tmp_path: Path) -> None:
    with tifffile.TiffWriter(tmp_path / "a.tif") as writer:
        for number in range(3):
            writer.write(picture(20, 30, number), photometric="rgb", metadata=None)
    with collect_notes() as notes, open_image(tmp_path / "a.tif", None, 10**6) as image:
        np.testing.assert_array_equal(image.read((0, 0, 20, 30)), picture(20, 30))
    assert [note.facts for note in notes] == ["only the first of several frames or pages read (3 images in this file)"]


@pytest.mark.parametrize(
    ("name", "world"), [("a.png", "a.pgw"), ("a.jpeg", "a.wld"), ("a.tif", "a.tfw"), ("a.jp2", None)]
)
def test_georeferences_that_are_not_kept_are_said(name: str, world: str | None, tmp_path: Path) -> None:
    """World files, and of JPEG 2000 the box of GeoJP2, which holds a TIFF file."""
    path = tmp_path / name
    Image.fromarray(picture(20, 30)).save(path)
    with collect_notes() as before, open_image(path, None, 10**6):
        pass
    if world is not None:
        (tmp_path / world).write_text("10\n0\n0\n-10\n500000\n4000000\n")
    else:
        content = b"\xb1\x4b\xf8\xbd\x08\x3d\x4b\x43\xa5\xae\x8c\xd7\xd5\xa6\xce\x03II*\0"
        stored, box = path.read_bytes(), (len(content) + 8).to_bytes(4, "big") + b"uuid" + content
        place = stored.index(b"jp2c") - 4
        path.write_bytes(stored[:place] + box + stored[place:])
    with collect_notes() as after, open_image(path, None, 10**6) as image:
        assert image.read((0, 0, 20, 30)).shape == (20, 30, 3)
    assert [[one.kind for one in notes] for notes in (before, after)] == [[], ["georeference"]]


def test_pixels_without_a_value_are_known(tmp_path: Path) -> None:
    stored = picture(40, 40)
    stored[5:9, 7:20] = 3
    stored[30, 30, 0] = 3  # one channel of three
    tags = [(42113, 2, 2, "3", True)]
    tifffile.imwrite(tmp_path / "a.tif", stored, photometric="rgb", metadata=None, extratags=tags)
    with open_image(tmp_path / "a.tif", None, 10**6) as image:
        missing = image.missing((0, 0, 40, 40))
    assert missing is not None
    expected = np.zeros((40, 40), bool)
    expected[5:9, 7:20] = True
    np.testing.assert_array_equal(missing, expected)


def test_a_preview_is_the_mean_of_blocks_whatever_the_windows() -> None:
    pixels = picture(1000, 3301)
    expected = np.asarray(Image.fromarray(pixels[:999, :3300]).reduce(3))
    preview = Preview(1000, 3301)
    assert (preview.step, preview.height, preview.width) == (3, 334, 1101)
    for top in range(0, 1000, 350):
        for left in range(0, 3301, 1000):
            part = pixels[top : top + 400, left : left + 1100]  # they overlap
            preview.add((top, left, *part.shape[:2]), part)
    found = np.asarray(preview.picture(None))[:333, :1100].astype(int)
    assert np.abs(found - expected).mean() < 0.6  # blocks at edges of windows count some pixels twice
    assert np.percentile(np.abs(found - expected), 98) <= 1
    rows, at = preview.centers(350, 400, rows=True)
    assert (rows[0], at[0], rows[-1], at[-1]) == (2, 117, 398, 249)


def test_a_large_image_of_another_format_is_refused_with_the_way_out(tmp_path: Path) -> None:
    Image.fromarray(picture(40, 50)).save(tmp_path / "a.png")
    with pytest.raises(
        BrokenImageError, match="40 .*max_pixels=1000: raise --max_pixels, or make it a TIFF file in tiles"
    ):
        open_image(tmp_path / "a.png", None, 1000).__enter__()
