"""Folders open as what they are; their own processor makes the input; what is missing is one sentence."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoImageProcessor, SegformerConfig, SegformerForSemanticSegmentation

import hf_geossl
from hf_geossl.data.images import decode_pixels
from hf_geossl.hub.export import make_image_processor
from hf_geossl.modeling.image_format import ImageFormat
from hf_geossl.tasks.prediction.task_models import open_task_model
from tests.helpers.image_files import tiff, values
from tests.helpers.task_folders import KINDS, LABELS, TRUNK, picture

FolderOf = Callable[[str], Path]


@pytest.mark.parametrize("name", sorted(KINDS))
def test_a_folder_opens_as_what_its_architecture_says(name: str, folder_of: FolderOf) -> None:
    model = open_task_model(folder_of(name), device="cpu")
    assert model.kind == KINDS[name]
    assert model.names == (() if name in ("dpt", "depth") else ("road", "house", "tree"))
    assert model.sides == {"segformer": (64, 64), "yolos": (48, 48)}.get(name, (32, 32))
    expected = AutoImageProcessor.from_pretrained(folder_of(name))(
        Image.fromarray(picture(40, 50)), return_tensors="pt"
    )
    found = model.prepare(picture(40, 50))
    assert found.keys() == {key for key in expected if isinstance(expected[key], torch.Tensor)}
    torch.testing.assert_close(found["pixel_values"], expected["pixel_values"], atol=0, rtol=0)


def test_images_of_other_formats_are_made_as_the_processor_makes_them_of_stored_values(tmp_path: Path) -> None:
    described = ImageFormat(
        channels=(4, 2),
        names=("infrared", "green"),
        dtype="uint16",
        value_range=((100.0, 3000.0), (0.0, 4095.0)),
        range_source="given",
        mean=(0.4, 0.5),
        std=(0.2, 0.3),
    )
    fields = {"num_channels": 2, "image_format": described.to_dict()}
    model = hf_geossl.GTSAForSemanticSegmentation(hf_geossl.GTSAConfig(**TRUNK, **LABELS, **fields))
    model.save_pretrained(tmp_path)
    make_image_processor((32, 32), image_format=described).save_pretrained(tmp_path)
    stored = values(50, 40, 4, dtype=np.uint16) % 4096
    opened = open_task_model(tmp_path, device="cpu")
    assert opened.image_format == described
    content = tiff(stored, photometric="minisblack", planarconfig="contig")
    found = opened.prepare(decode_pixels(content, image_format=described).numpy())
    expected = AutoImageProcessor.from_pretrained(tmp_path)(stored, return_tensors="pt")
    torch.testing.assert_close(found["pixel_values"], expected["pixel_values"], atol=1e-5, rtol=0)


def test_what_is_no_model_for_this_is_one_sentence(folder_of: FolderOf, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="trunk holds GTSAModel, which predicts nothing .* ForImageClassification"):
        open_task_model(folder_of("dpt") / "trunk")
    with pytest.raises(ValueError, match="none is no model that transformers opens"):
        open_task_model(tmp_path / "none")
    copy = tmp_path / "copy"
    shutil.copytree(folder_of("linear"), copy)
    (copy / "preprocessor_config.json").unlink()
    (copy / "processor_config.json").unlink(missing_ok=True)
    with pytest.raises(ValueError, match="copy has no image processor that opens"):
        open_task_model(copy)
    shutil.rmtree(copy)
    shutil.copytree(folder_of("segformer"), copy)
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(config | {"depths": [1, 1, 1, 2]}))
    with pytest.raises(ValueError, match="copy lacks .* weights of SegformerForSemanticSegmentation"):
        open_task_model(copy)
    (copy / "config.json").write_text(json.dumps(config | {"num_channels": 5}))
    with pytest.raises(ValueError, match="the model in copy cannot be opened"):
        open_task_model(copy)
    fields = {"hidden_sizes": [8] * 4, "depths": [1] * 4, "num_attention_heads": [1] * 4, "decoder_hidden_size": 8}
    SegformerForSemanticSegmentation(SegformerConfig(**fields, num_channels=5)).save_pretrained(copy)
    with pytest.raises(ValueError, match="copy takes 5 channels, and nothing says what they are"):
        open_task_model(copy)


def test_other_weights_have_another_fingerprint(folder_of: FolderOf) -> None:
    model = open_task_model(folder_of("linear"), device="cpu")
    first = model.fingerprint()
    assert open_task_model(folder_of("linear"), device="cpu").fingerprint() == first
    next(model.module.parameters()).data.view(-1)[0] += 1e-6
    assert model.fingerprint() != first
