"""Files that are not read are named, with what to do."""

import pytest

from hf_geossl.data.sources.strays import advice_on, endings_of, say_strays
from hf_geossl.data.wording import Place


@pytest.mark.parametrize(
    ("names", "said"),
    [
        ("labels.csv", "a table of labels or truth is read where it is named itself"),
        ("annotations/instances_train2017.json", "a table of labels or truth is read where it is named itself"),
        ("a/0.xml a/1.xml", "boxes of Pascal VOC (.xml) are read from files called after their images"),
        ("labels/0.txt labels/1.txt", "boxes of YOLO (.txt) are read where each line has a class and four numbers"),
        ("nyu_depth_v2_labeled.mat", "images in files of arrays are read once saved as .npy or .tif"),
        ("x.NII.GZ", "images in files of arrays"),
        ("IMG_1.HEIC", "are read once saved as PNG"),
        ("clip.mp4", "of videos the frames are read"),
        ("README.md LICENSE classes.txt", ""),
    ],
)
def test_advice(names: str, said: str) -> None:
    advice = advice_on(names.split(), ["images/0.jpg", "images/1.jpg"])
    assert (said in advice) if said else not advice


def test_endings_and_numbers_are_said(caplog: pytest.LogCaptureFixture) -> None:
    assert endings_of(["a/x.nii.gz", "b.CSV", "LICENSE", "c.csv"]) == ".csv, .nii.gz, no ending"
    say_strays(["a.csv", "b.md"], ["0.png"], "1 image", Place("/strays/photos"))
    assert "photos: 2 files of other kinds (.csv, .md) left out; 1 image taken; a table of labels" in caplog.text
    say_strays([], ["0.png"], "1 image", Place("/strays/more"))
    assert len(caplog.messages) == 1
    say_strays(["train/_annotations.coco.json"], ["0.png"], "1 image", Place("/strays/a.zip"), packed=True)
    assert "1 image taken; boxes are read once the archive is unpacked" in caplog.text
