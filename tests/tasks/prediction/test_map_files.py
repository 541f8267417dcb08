"""Maps as files: Pillow, tifffile and transformers' readers find the values, colours and places that were written."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image

from hf_geossl.tasks.prediction.map_files import MapKind, class_colors, whole_file, write_map, write_tiff_map
from tests.data.readers.test_tiff_windows import GEO


def parts(values: np.ndarray) -> Iterator[tuple[tuple[int, int, int, int], np.ndarray]]:
    for top in range(0, len(values), 70):
        for left in range(0, values.shape[1], 130):
            part = values[top : top + 70, left : left + 130]
            yield (top, left, *part.shape), part


def test_a_png_of_classes_holds_their_numbers_and_colours(tmp_path: Path) -> None:
    classes = np.random.default_rng(0).integers(0, 5, (150, 300)).astype(np.uint8)
    write_map(parts(classes), classes.shape, MapKind.of_classes(5), tmp_path / "masks" / "a.png")
    with Image.open(tmp_path / "masks" / "a.png") as picture:
        np.testing.assert_array_equal(np.asarray(picture), classes)
        np.testing.assert_array_equal(np.asarray(picture.convert("RGB")), class_colors(5)[classes])
    many = np.random.default_rng(0).integers(0, 1000, (150, 300)).astype(np.uint16)
    write_map(parts(many), many.shape, MapKind.of_classes(1000), tmp_path / "b.png")
    with Image.open(tmp_path / "b.png") as picture:
        np.testing.assert_array_equal(np.asarray(picture), many)


@pytest.mark.parametrize("size", [(150, 300), (256, 512), (600, 257), (1, 1)])
def test_a_tiff_written_in_parts_holds_values_colours_and_place(size: tuple[int, int], tmp_path: Path) -> None:
    classes = np.random.default_rng(0).integers(0, 5, size).astype(np.uint8)
    write_tiff_map(parts(classes), size, MapKind.of_classes(5), tmp_path / "a.tif", GEO, with_nodata=True)
    with tifffile.TiffFile(tmp_path / "a.tif") as file:
        page = file.pages.first
        assert page.is_tiled
        np.testing.assert_array_equal(page.asarray(), classes)
        assert (class_colors(5) == page.colormap[:, :5].T // 257).all()
        assert page.tags.valueof(42113) == "255"
        assert [page.tags[code].value for code, *_ in GEO] == [value for *_, value, _ in GEO]
    with Image.open(tmp_path / "a.tif") as picture:
        np.testing.assert_array_equal(np.asarray(picture), classes)


def test_depths_keep_every_bit(tmp_path: Path) -> None:
    depths = np.random.default_rng(0).normal(size=(150, 300)).astype(np.float32)
    write_map(parts(depths), depths.shape, MapKind.of_depths(), tmp_path / "a.tif")
    write_tiff_map(parts(depths), depths.shape, MapKind.of_depths(), tmp_path / "b.tif", GEO, with_nodata=True)
    for name in ("a.tif", "b.tif"):
        np.testing.assert_array_equal(tifffile.imread(tmp_path / name), depths)
    with tifffile.TiffFile(tmp_path / "b.tif") as file:
        assert file.pages.first.tags.valueof(42113) == "nan"


def test_a_file_is_whole_or_not_there(tmp_path: Path) -> None:
    (tmp_path / "a.tif").write_text("before")

    def broken() -> Iterator[tuple[tuple[int, int, int, int], np.ndarray]]:
        yield from list(parts(np.zeros((600, 300), np.uint8)))[:6]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_tiff_map(broken(), (600, 300), MapKind.of_classes(2), tmp_path / "a.tif")
    assert (tmp_path / "a.tif").read_text() == "before"
    with whole_file(tmp_path / "b.txt") as file:
        file.write_text("b")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.tif", "b.txt"]
