"""What is written of a batch: the chosen features in the chosen precision."""

import numpy as np
import pytest
import torch

from hf_geossl.evaluation.loading import load_encoder
from hf_geossl.tasks.embedding.arguments import EmbeddingArguments
from hf_geossl.tasks.embedding.features import columns_of, encode, row_bytes
from tests.helpers.tiny_models import timm_encoder, tiny_loca


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
    }


def test_a_trunk_without_a_class_token_says_so():
    encoder = load_encoder(tiny_loca(use_class_token=False).loca)
    with pytest.raises(ValueError, match="has no class token: ask for pooled"):
        columns_of(encoder, (3, 32, 32), EmbeddingArguments(features=("class_token",)))
