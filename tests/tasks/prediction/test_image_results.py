"""The files of an image: masks of transformers' own post-processing at the image's size, depths, and what is remembered."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image
from transformers import (
    AutoImageProcessor,
    AutoModelForDepthEstimation,
    AutoModelForSemanticSegmentation,
    DPTImageProcessor,
)

from hf_geossl.tasks.prediction.image_results import predict_image
from hf_geossl.tasks.prediction.opened_images import open_image
from hf_geossl.tasks.prediction.records import Record, Records
from hf_geossl.tasks.prediction.settings import PredictionSettings
from hf_geossl.tasks.prediction.task_models import open_task_model
from tests.data.readers.test_tiff_windows import GEO
from tests.helpers.task_folders import picture

FolderOf = Callable[[str], Path]


def predicted(folder: Path, path: Path, out: Path, **given: int) -> Record:
    model, settings = open_task_model(folder, device="cpu"), PredictionSettings(**given)
    with open_image(path, None, 10**6) as image:
        tiling = settings.tiling(model, image)
        return predict_image(model, image, tiling, settings, path.name, Records(out, {}, overwrite=True), True)


@pytest.mark.parametrize("name", ["linear", "upernet", "segformer"])
def test_a_mask_is_that_of_transformers_at_the_size_of_the_image(
    name: str, folder_of: FolderOf, tmp_path: Path
) -> None:
    turned = Image.fromarray(picture(70, 50))
    exif = Image.Exif()
    exif[0x0112] = 6  # is shown turned by 90 degrees: 70 wide, 50 high
    turned.save(tmp_path / "a.png", exif=exif)
    record = predicted(folder_of(name), tmp_path / "a.png", tmp_path / "out")
    assert record["files"] == ["masks/a.png", "overlays/a.png"]
    with Image.open(tmp_path / "out/masks/a.png") as file:
        found = np.asarray(file)
    model = AutoModelForSemanticSegmentation.from_pretrained(folder_of(name)).eval()
    processor = AutoImageProcessor.from_pretrained(folder_of(name))
    upright = Image.fromarray(np.rot90(picture(70, 50), -1))
    with torch.no_grad():
        outputs = model(**processor(upright, return_tensors="pt"))
    expected = processor.post_process_semantic_segmentation(outputs, target_sizes=[(50, 70)])[0].numpy()
    assert found.shape == (50, 70)
    assert (found != expected).mean() < 0.002  # rounding where two classes are equal
    assert record["pixels"] == np.bincount(found.ravel(), minlength=3).tolist()
    assert len(np.unique(expected)) > 1


def test_a_depth_is_that_of_transformers_at_the_size_of_the_image(folder_of: FolderOf, tmp_path: Path) -> None:
    Image.fromarray(picture(50, 70)).save(tmp_path / "a.jpg")
    record = predicted(folder_of("dpt"), tmp_path / "a.jpg", tmp_path / "out")
    found = tifffile.imread(tmp_path / "out/depth/a.tif")
    model = AutoModelForDepthEstimation.from_pretrained(folder_of("dpt")).eval()
    processor = AutoImageProcessor.from_pretrained(folder_of("dpt"))
    with torch.no_grad():
        outputs = model(**processor(Image.open(tmp_path / "a.jpg"), return_tensors="pt"))
    expected = DPTImageProcessor().post_process_depth_estimation(outputs, [(50, 70)])[0]["predicted_depth"].numpy()
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    assert expected.std() > 0
    assert record["range"] == pytest.approx([expected.min(), expected.max()], rel=1e-5)


def test_a_map_of_a_geotiff_lies_where_the_image_lies_and_has_no_class_where_there_is_no_value(
    folder_of: FolderOf, tmp_path: Path
) -> None:
    stored = picture(100, 120)
    stored[:40, :50] = 0  # a tile and more
    options = {"photometric": "rgb", "tile": (16, 16), "compression": "deflate", "metadata": None}
    tags = [*GEO, (42113, 2, 2, "0", True)]
    tifffile.imwrite(tmp_path / "a.tif", stored, extratags=tags, **options)
    record = predicted(folder_of("linear"), tmp_path / "a.tif", tmp_path / "out", tile_size=32, batch_size=3)
    assert record["files"][0] == "masks/a.tif"
    with tifffile.TiffFile(tmp_path / "out/masks/a.tif") as file:
        page = file.pages.first
        mask = page.asarray()
        assert [page.tags[code].value for code, *_ in GEO] == [value for *_, value, _ in GEO]
        assert page.tags.valueof(42113) == "255"
    assert ((mask == 255) == (stored == 0).all(axis=2)).all()
    assert sum(record["pixels"]) == 100 * 120 - 40 * 50
    predicted(folder_of("dpt"), tmp_path / "a.tif", tmp_path / "deep", tile_size=32)
    depth = tifffile.imread(tmp_path / "deep/depth/a.tif")
    assert (np.isnan(depth) == (stored == 0).all(axis=2)).all()
