"""What is written of a batch: the chosen features in the chosen precision."""

import numpy as np
import pytest
import torch

from hf_geossl.evaluation.loading import load_encoder
from hf_geossl.tasks.embedding.arguments import EmbeddingArguments
from hf_geossl.tasks.embedding.features import columns_of, encode, row_bytes, thumbnails_of
from tests.helpers.tiny_models import timm_encoder, tiny_loca


def test_a_thumbnail_is_the_mean_of_areas_of_the_input():
    encoder = timm_encoder(16, 48)
    images = torch.randint(0, 256, (2, 3, 48, 48), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    made = thumbnails_of(encoder, encoder.normalize(images)).view(2, 3, 12, 12)
    expected = images.float().reshape(2, 3, 12, 4, 12, 4).mean(dim=(3, 5))
    assert (made - expected).abs().max() <= 0.51


def test_columns_have_the_lengths_of_the_features():
    encoder, arguments = timm_encoder(16, 48), EmbeddingArguments(features=("patches", "class_token"), dtype="float16")
    columns = columns_of(encoder, (3, 48, 48), arguments)
    assert (columns["patches"].length, columns["patches"].feature.length, columns["class_token"].length) == (
        9,
        192,
        192,
    )
    assert row_bytes(columns) == 64 + 4 + 4 + 2 * 192 * 10 + 432
    made = encode(encoder, torch.zeros(2, 3, 48, 48), arguments).arrays()
    assert {name: (array.shape, array.dtype) for name, array in made.items()} == {
        "patches": ((2, 9, 192), np.float16),
        "class_token": ((2, 192), np.float16),
        "thumbnail": ((2, 432), np.uint8),
    }


def test_a_trunk_without_a_class_token_says_so():
    encoder = load_encoder(tiny_loca(use_class_token=False).loca)
    with pytest.raises(ValueError, match="has no class token: ask for pooled"):
        columns_of(encoder, (3, 32, 32), EmbeddingArguments(features=("class_token",)))
