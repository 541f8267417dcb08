"""Which files are maps of others, by the names of folders and files."""

import pytest

from hf_geossl.data.sources.pairing import pair_maps
from hf_geossl.data.wording import Place

FOLDERS = [  # images, maps, the column of the maps
    *(("images/{}.jpg", f"{word}/{{}}.png", "annotation") for word in (
        "masks", "mask", "labels", "labels_png", "annotations", "annot", "ann", "gt", "GT", "ground_truth", "groundTruth",
        "Ground-Truth", "1st_manual", "SegmentationClassPNG", "SegmentationClass", "segmentations", "semantic", "trimaps",
    )),
    *((f"{word}/{{}}.jpg", "masks/{}.png", "annotation") for word in (
        "image", "imgs", "JPEGImages", "inputs", "rgb", "leftImg8bit", "photos", "original", "images_8bit",
    )),
    ("imagesTr/{}.npy", "labelsTr/{}.npy", "annotation"),
    ("imagesTr/{}_0000.png", "labelsTr/{}.png", "annotation"),  # of nnU-Net
    ("train/{}.jpg", "train_masks/{}_mask.gif", "annotation"),  # of Carvana
    ("train/{}.png", "trainannot/{}.png", "annotation"),  # of CamVid
    ("images/{}.png", "labels/{}_L.png", "annotation"),  # of CamVid too
    ("data/CameraRGB/{}.png", "data/CameraSeg/{}.png", "annotation"),
    ("leftImg8bit/train/bonn/{}_leftImg8bit.png", "gtFine/train/bonn/{}_gtFine_labelIds.png", "annotation"),
    ("ISIC_Task1-2_Training_Input/{}.jpg", "ISIC_Task1_Training_GroundTruth/{}_segmentation.png", "annotation"),
    ("bottle/test/broken/{}.png", "bottle/ground_truth/broken/{}_mask.png", "annotation"),  # of MVTec
    ("images/{}.jpg", "annotations/trimaps/{}.png", "annotation"),  # of Oxford's pets
    ("VOC2012/JPEGImages/{}.jpg", "VOC2012/SegmentationClass/{}.png", "annotation"),
    ("rgb/{}.png", "depth/{}.png", "depth_map"),
    ("images/{}.png", "depth_maps/{}_depth.tif", "depth_map"),
]  # fmt: skip
FILES = [
    *(("{}.jpg", f"{{}}{ending}", "annotation") for ending in (
        "_mask.png", "_mask.npy", "_mask.npz", "_mask.tif", "-mask.png", ".mask.png", " mask.png", "_GT.png", "_gt.png",
        "_label.tif", "_labels.png", "_annot.png", "_ground_truth.png", "_groundtruth.png", "_seg.png", "_Segmentation.png",
        "_manual1.gif", "_gtFine_labelIds.png", "_mask.dcm",
    )),
    ("{}.jpg", "mask_{}.png", "annotation"),
    ("{}_sat.jpg", "{}_mask.png", "annotation"),  # of DeepGlobe
    ("img_{}.tif", "img_{}_label.tif", "annotation"),
    ("a/{}.jpg", "a/{}_depth.png", "depth_map"),
]  # fmt: skip


@pytest.mark.parametrize(("image", "truth", "column"), [*FOLDERS, *FILES])
def test_maps_are_no_images_and_go_with_the_image_of_their_name(
    image: str, truth: str, column: str, caplog: pytest.LogCaptureFixture
) -> None:
    """One image has no map; the line says how many files are maps."""
    numbers = [f"0{number}7" for number in range(5)]
    names = sorted([image.format(n) for n in numbers] + [truth.format(n) for n in numbers[1:]])
    found = pair_maps(names, Place(f"/{image}/{truth}"))
    assert found.maps == {truth.format(n) for n in numbers[1:]}
    assert found.truth == {image.format(n): {column: truth.format(n)} for n in numbers[1:]}
    assert ": 4 files " in caplog.text
    assert "no images to learn from" in caplog.text


@pytest.mark.parametrize(
    "names",
    [
        "with_mask/{}.jpg without_mask/{}.jpg",
        "seg_train/seg_train/sea/{}.jpg seg_test/seg_test/sea/{}.jpg",
        "train/colors/{}.jpg train/labels/{}.jpg",
        "photo/{}.jpg sketch/{}.jpg",
        "train/mask/{}.jpg test/mask/{}.jpg",
        "images/{}.jpg",
        "cat/{}.jpg dog/{}.jpg",
        "{}.jpg {}_1.jpg",
    ],
)
def test_words_of_truth_alone_mean_nothing(names: str, caplog: pytest.LogCaptureFixture) -> None:
    """Classes such as "with_mask" stay classes."""
    files = sorted(name.format(number) for name in names.split() for number in range(4))
    found = pair_maps(files, Place(f"/classes/{names}"))
    if "colors" in names:  # a folder of colour pictures beside labels: images and their truth
        assert len(found.truth) == 4
    else:
        assert not found.maps | found.truth.keys()
        assert not caplog.text


@pytest.mark.parametrize(
    "names", ["{0}.jpg {0}.png", "{0}.jpg {0}_L.png", "{0}.jpg {0}_alpha.png", "c/{0}.png c/{0}.npy"]
)
def test_names_that_may_mean_a_map_are_said(names: str, caplog: pytest.LogCaptureFixture) -> None:
    files = sorted(name.format(f"x{number}") for name in names.split() for number in range(5))
    assert not pair_maps(files, Place(f"/said/{names}")).maps
    assert "called after other images beside them" in caplog.text
    assert "if they are maps, put these into a folder masks beside a folder images" in caplog.text


def test_few_files_called_maps_are_images_and_said(caplog: pytest.LogCaptureFixture) -> None:
    files = [*(f"{number}.jpg" for number in range(9)), "0_mask.png", "1_mask.png"]
    assert not pair_maps(sorted(files), Place("/few")).maps
    assert "2 files called after the image beside (0_mask.png, 1_mask.png) taken as images of their own" in caplog.text


def test_a_map_beside_several_splits_is_of_the_one_image_of_its_name() -> None:
    found = pair_maps(["masks/0.png", "masks/1.png", "test/0.jpg", "train/0.jpg", "train/1.jpg"], Place("/alike"))
    assert found.maps == {"masks/0.png", "masks/1.png"}
    assert found.truth == {"train/1.jpg": {"annotation": "masks/1.png"}}


@pytest.mark.parametrize(
    ("names", "said"),
    [
        ("{}/{}_B01.tif {}/{}_B8A.tif", "called after the bands of 4 images"),
        ("{}_{}_red.png {}_{}_green.png {}_{}_blue.png", "called after the bands of 4 images"),
        ("{}_{}_0000.png {}_{}_0001.png", "called after the bands of 4 images"),
        ("{}_{}_VV.tif {}_{}_VH.tif", "called after the bands of 4 images"),
        ("{}/{}_1.png {}/{}_2.png", ""),
        ("red/{}{}.png blue/{}{}.png", ""),
    ],
)
def test_bands_in_files_of_their_own_are_said(names: str, said: str, caplog: pytest.LogCaptureFixture) -> None:
    files = sorted(name.format(*[f"t{n}"] * 2) for name in names.split() for n in range(4))
    assert not pair_maps(files, Place(f"/bands/{names}")).maps
    assert (said in caplog.text) if said else not caplog.text


def test_maps_beside_the_one_that_is_read_are_counted(caplog: pytest.LogCaptureFixture) -> None:
    """As SegmentationObject of Pascal VOC, and three of the four maps of Cityscapes."""
    folders = ("JPEGImages", "SegmentationClass", "SegmentationObject")
    found = pair_maps(sorted(f"{folder}/{n}.png" for folder in folders for n in range(4)), Place("voc"))
    assert found.truth["JPEGImages/2.png"] == {"annotation": "SegmentationClass/2.png"}
    assert "4 maps not read (SegmentationObject/0.png, " in caplog.text
    assert "such as SegmentationClass/0.png" in caplog.text
