"""The model's input is what its own processor makes, whoever wrote it."""

import numpy as np
import pytest
import timm.data
import torch
from PIL import Image
from transformers import BitImageProcessor

from hf_geossl.evaluation.loading import load_encoder
from hf_geossl.tasks.embedding.arguments import EmbeddingArguments
from hf_geossl.tasks.embedding.inputs import inputs_of, thumbnail_of
from tests.helpers.embedding_models import foreign_folder
from tests.helpers.tiny_models import timm_encoder

PICTURE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (90, 70, 3), dtype=np.uint8))


def test_timm_models_get_timms_transform():
    encoder = timm_encoder(16, 48)
    made = inputs_of(encoder, encoder, EmbeddingArguments()).pixel_values(PICTURE)
    config = timm.data.resolve_model_data_config(encoder.module)
    assert torch.equal(made, timm.data.create_transform(**config, is_training=False)(PICTURE))


def test_a_processor_that_crops_scales_whole_images_where_a_size_is_given(tmp_path):
    folder = foreign_folder(tmp_path / "model")
    BitImageProcessor(size={"shortest_edge": 80}, crop_size={"height": 64, "width": 64}).save_pretrained(folder)
    encoder = load_encoder(folder)
    own = inputs_of(folder, encoder, EmbeddingArguments()).pixel_values(PICTURE)
    assert tuple(own.shape) == (3, 64, 64)
    sized = inputs_of(folder, encoder, EmbeddingArguments(image_size=48)).pixel_values(PICTURE)
    assert tuple(sized.shape) == (3, 48, 48)
    grey = Image.new("RGB", (90, 70))
    grey.paste((255, 255, 255), (0, 0, 90, 5))  # cropped away, unless the whole is scaled
    values = inputs_of(folder, encoder, EmbeddingArguments(image_size=48)).pixel_values(grey)
    assert values[0, 0, 24] > values[0, 40, 24] + 1


def test_a_model_of_other_channels_that_does_not_say_which_is_refused(tmp_path):
    encoder = load_encoder(foreign_folder(tmp_path / "model"))
    encoder.module.config.num_channels = 5
    with pytest.raises(ValueError, match="takes images of 5 channels and does not say which"):
        inputs_of(tmp_path, encoder, EmbeddingArguments())


def test_a_folder_without_a_processor_is_scaled_as_the_model_and_says_so(tmp_path, caplog):
    folder = foreign_folder(tmp_path / "model")
    (folder / "preprocessor_config.json").unlink()
    inputs = inputs_of(folder, load_encoder(folder), EmbeddingArguments())
    assert "has no image processor: images are scaled to 64 x 64" in caplog.text
    assert tuple(inputs.pixel_values(PICTURE).shape) == (3, 64, 64)


@pytest.mark.parametrize("side", [96, 960])
def test_a_thumbnail_is_the_mean_of_areas_of_the_whole_image(side):
    coarse = Image.fromarray(np.random.default_rng(0).integers(0, 256, (24, 24, 3), dtype=np.uint8))
    pixels = np.asarray(coarse.resize((side, side), Image.Resampling.BILINEAR))
    expected = pixels.reshape(12, side // 12, 12, side // 12, 3).mean(axis=(1, 3)).transpose(2, 0, 1).reshape(-1)
    units = torch.from_numpy(pixels.copy()).permute(2, 0, 1).float() / 255
    for picture in (Image.fromarray(pixels), units):
        made = thumbnail_of(picture)
        assert made.dtype == np.uint8
        assert np.abs(made - expected).max() <= 1
