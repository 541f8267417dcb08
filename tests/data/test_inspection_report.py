"""What is said of an inspection."""

import numpy as np
import pytest

from hf_geossl.data.inspection import DatasetArguments, Inspection, SplitReport
from hf_geossl.data.inspection_report import advice, as_lines, as_values, choose_for, total_of
from hf_geossl.data.measuring.image_statistics import Measurement
from hf_geossl.data.notes import Note
from hf_geossl.data.rasters import Raster


def inspection_of(tmp_path, **splits: Measurement) -> Inspection:
    inspection = Inspection(DatasetArguments("data"), tmp_path / "state")
    inspection.reports = {split: SplitReport(measured) for split, measured in splits.items()}
    inspection.duplicates = {"copies": 0, "across_splits": 0, "groups": []}
    return inspection


def images(*pixels: np.ndarray, **known: object) -> Measurement:
    measured = Measurement()
    for index, one in enumerate(pixels):
        measured.add(f"{index}.tif", Raster(one, "TIFF", **known), [Note("frames", "several images")])  # type: ignore[arg-type]
    return measured


RAMP = np.arange(60, dtype=np.uint16).reshape(4, 5, 3)


def test_splits_are_added_up(tmp_path):
    values = as_values(inspection_of(tmp_path, train=images(RAMP, RAMP), test=images(RAMP * 2)))
    assert values["images"] == 3
    both = np.concatenate([RAMP, RAMP, RAMP * 2])[..., 1].astype(float)
    assert values["values"]["uint16"][1]["mean"] == pytest.approx(both.mean())
    assert values["values"]["uint16"][1]["std"] == pytest.approx(both.std())
    assert values["values"]["uint16"][1]["percentiles"]["75"] == np.percentile(both, 75)
    assert values["notes"][0] | {"what": ""} == {
        "kind": "frames", "what": "", "images": 3, "first": "0.tif", "detail": "several images"
    }  # fmt: skip
    lines = "\n".join(as_lines(values))
    for part in (
        "train: 2 images",
        "test: 1 image",
        "size: 4 x 5 (height x width)",
        "type: uint16",
        "note: 3 images: only the first",
    ):
        assert part in lines


@pytest.mark.parametrize(
    ("pixels", "channels"),
    [
        ([RAMP[..., :1].astype(np.uint8)], "rgb"),  # 8-bit grey is read by RGB models as ever
        ([RAMP[..., :1]], "gray"),
        ([RAMP], "rgb"),
        ([np.concatenate([RAMP, RAMP], 2)], (1, 2, 3, 4, 5, 6)),
        ([RAMP, RAMP[..., :1]], "rgb"),
        ([], "rgb"),
    ],
)
def test_all_channels_are_offered_where_they_are_no_colours(pixels, channels):
    assert choose_for(images(*pixels))[0].channels == channels


def test_stains_that_files_name_are_no_colours(tmp_path):
    """Microscopes' programs store three stains as planes of a colour image; one odd file does not change what all are."""
    named = images(*[RAMP] * 4, names=("dna", "er", "actin"), color=True)
    named.add("other.tif", Raster(RAMP[..., :1], "TIFF"), [])
    chosen, _ = choose_for(named)
    assert (chosen.channels, chosen.names) == ((1, 2, 3), ("dna", "er", "actin"))
    lines = as_lines(as_values(inspection_of(tmp_path, train=named)))
    assert "channels, as 4 of 5 files name them: dna, er, actin" in lines
    assert any("1 (1: other.tif), 3 (4: 0.tif, ...)" in line for line in lines)
    colours = images(*[RAMP] * 4, names=("Channel:0:0", "Channel:0:1", "Channel:0:2"), color=True)
    assert choose_for(colours)[0].channels == "rgb"


def test_what_can_go_wrong_is_said(tmp_path):
    measured = images(RAMP, RAMP[..., :1].astype(np.uint8))
    measured.add_broken("bad.png", "the file is empty")
    inspection = inspection_of(tmp_path, train=measured)
    inspection.duplicates = {"copies": 3, "across_splits": 1, "groups": [["train: a", "test: b"]]}
    inspection.broken = [{"split": "train", "image": "bad.png", "reason": "the file is empty"}]
    said = advice(inspection, total_of(inspection))
    for part in (
        "1 image of one split is in another one too",
        "33% of the images are broken",
        "different numbers of channels: 1 (1: 1.tif), 3 (1: 0.tif)",
        "several types: uint16 (1), uint8 (1)",
    ):
        assert any(part in line for line in said), part
    lines = as_lines(as_values(inspection))
    assert any(line.startswith("broken: 1 image, such as bad.png: the file is empty") for line in lines)
    assert any(line.startswith("duplicates: 3 images") for line in lines)


def test_values_that_hide_behind_a_few_large_ones_are_said(tmp_path):
    pixels = np.full((100, 100, 1), 40, np.uint16)
    pixels[:50] = 7
    pixels[0, 0] = 65535
    said = advice(inspection_of(tmp_path), images(pixels))
    assert said == [
        "channel 1 of uint16: 99.9 % of the values lie below 40, the largest is 65535: --value_range percentiles:0.1,99.9 uses "
        "the range better"
    ]
    said = advice(inspection_of(tmp_path), images(np.full((4, 4, 1), 3, np.uint16)))
    assert said == ["channel 1 of uint16 has the same value everywhere (3)"]
