"""Samples of rows: image, maps and boxes in the same frame, and truth that does not fit refused."""

from io import BytesIO
from typing import Any

import numpy as np
import pytest
from PIL import Image

from hf_geossl.evaluation.reading.sample_reader import CHANGED, Columns, SampleReader


@pytest.mark.parametrize(("value", "reduced"), [(256, False), (300, True), (65535, False)])
def test_classes_above_255_are_refused(value: int, reduced: bool) -> None:
    classes = np.full((16, 16), value, np.uint16)
    row = {"image": np.zeros((16, 16, 3), np.uint8), "annotation": Image.fromarray(classes)}
    reader = SampleReader(16, Columns(reduce_labels=reduced))
    with pytest.raises(ValueError, match=f"must hold classes from 0 to 255, .* got {value}"):
        reader(0, row)
    row["annotation"] = Image.fromarray(np.full((16, 16), 255, np.uint16))
    assert reader(0, row)["semantic"].unique().tolist() == [255]


def row_of(image: Image.Image, **further: Any) -> dict[str, Any]:
    return {"image": image, **further}


def test_the_middle_is_cut_as_if_the_whole_image_were_scaled() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (37, 90, 3), dtype=np.uint8)
    image, classes = Image.fromarray(pixels), Image.fromarray(pixels[..., 0] % 7)
    sample = SampleReader(32, Columns())(0, row_of(image, annotation=classes))
    height = round(32 * 8 / 7)
    width = round(90 * height / 37)
    frame = ((width - 32) // 2, (height - 32) // 2, (width - 32) // 2 + 32, (height - 32) // 2 + 32)
    whole = np.asarray(image.resize((width, height), Image.Resampling.BICUBIC).crop(frame)).astype(int)
    assert np.abs(sample["image"].permute(1, 2, 0).numpy().astype(int) - whole).max() <= 1
    nearest = np.asarray(classes.resize((width, height), Image.Resampling.NEAREST).crop(frame))
    assert np.array_equal(sample["semantic"].numpy(), nearest)


def test_a_long_thin_image_is_not_scaled_as_a_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[tuple[int, int]] = []
    resize = Image.Image.resize
    monkeypatch.setattr(
        Image.Image, "resize", lambda self, size, *a, **k: (made.append(size), resize(self, size, *a, **k))[1]
    )
    column = np.repeat(np.arange(60_000) % 256, 2).reshape(60_000, 2).astype(np.uint8)
    sample = SampleReader(64, Columns())(0, row_of(Image.fromarray(column)))  # 36 pixels of each, 2.2 million high
    assert made == [(64, 64)]
    middle = sample["image"].float().mean().item()
    assert abs(middle - 30_000 % 256) < 2


@pytest.mark.parametrize("kind", ["annotation", "depth_map"])
def test_a_map_of_another_frame_is_refused(kind: str) -> None:
    photo = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8))
    exif = photo.getexif()
    exif[0x0112] = 6  # to be turned by a quarter
    file = BytesIO()
    photo.save(file, "JPEG", exif=exif)
    reader = SampleReader(32, Columns())
    as_stored, as_seen = Image.new("L", (60, 40), 3), Image.new("L", (40, 60), 3)
    with pytest.raises(
        ValueError, match=rf"the map in '{kind}' of image 7 has 60 x 40 pixels, its image 40 x 60.*turn or cut"
    ):
        reader(7, {"image": {"bytes": file.getvalue(), "path": None}, kind: as_stored})
    reader(7, {"image": {"bytes": file.getvalue(), "path": None}, kind: as_seen})
    reader(7, {"image": {"bytes": file.getvalue(), "path": None}, kind: as_seen.resize((20, 30))})  # coarser


def test_classes_must_be_numbered() -> None:
    with pytest.raises(
        ValueError, match=r"the column 'label' must hold the numbers of classes, got the text 'cat': number"
    ):
        SampleReader(8, Columns())(0, row_of(Image.new("RGB", (8, 8)), label="cat"))


def test_what_decoding_did_to_an_image_is_among_what_was_changed() -> None:
    file = BytesIO()
    Image.new("CMYK", (32, 32), (255, 0, 0, 0)).save(file, "TIFF")
    reader = SampleReader(16, Columns())
    sample = reader(0, {"image": {"bytes": file.getvalue(), "path": None}, "label": 1})
    assert sample[CHANGED] == {"images with CMYK converted to RGB": 1}
