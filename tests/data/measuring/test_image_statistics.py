"""Counting what images are."""

import numpy as np

from hf_geossl.data.measuring.image_statistics import Measurement
from hf_geossl.data.notes import Note
from hf_geossl.data.rasters import Raster


def test_what_files_say_is_counted():
    measured = Measurement()
    pixels = np.arange(60, dtype=np.uint16).reshape(4, 5, 3)
    measured.add("a.tif", Raster(pixels, "TIFF", names=("r", "g", "b"), bits=12, color=True, frames=7), [], sample=True)
    opaque = np.full((4, 5), 65535, np.uint16)
    measured.add(
        "b.png", Raster(pixels, "PNG", transparency=opaque), [Note("frames", "2 images"), Note("frames", "again")]
    )
    assert measured.images == 2
    assert dict(measured.sizes) == {(4, 5): 2}
    assert dict(measured.channels) == {3: 2}
    assert dict(measured.kinds) == {"TIFF": 1, "PNG": 1}
    assert dict(measured.bits) == {12: 1, None: 1}
    assert measured.color == 1
    assert dict(measured.pages) == {7: 1}
    assert dict(measured.transparent) == {4: 1}
    assert dict(measured.notes) == {"frames": 1}
    assert measured.note_examples == {"frames": ("b.png", "2 images")}
    assert [one.count for one in measured.values["uint16"]] == [40, 40, 40, 20]
    assert measured.values["uint16"][3].mean == 65535
    weights = np.array([0.299, 0.587, 0.114])
    assert abs(measured.luminance["uint16"].mean - (pixels @ weights).mean()) < 1e-3


def test_examples_and_sizes_are_bounded():
    measured = Measurement()
    for index in range(10):
        measured.add_broken(f"{index}.png", "the file is empty")
    assert measured.num_broken == 10
    assert measured.broken_examples["the file is empty"] == ["0.png", "1.png", "2.png"]
    assert measured.first_broken() == "0.png: the file is empty"
    for width in range(1, 4200):
        measured.sizes[1, width] = 1 if width <= 4096 else 0
    measured.sizes += type(measured.sizes)()
    measured.add("wide.png", Raster(np.zeros((1, 5000, 1), np.uint8), "PNG"), [], sample=True)
    assert measured.sizes[None] == 1
    assert len(measured.sizes) == 4097
