"""The tokens of an `Encoder`: class tokens, registers, pictures, attention."""

from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image

from hf_geossl import GTSAConfig, GTSAModel
from hf_geossl.evaluation.encoders import Encoder
from hf_geossl.evaluation.loading import load_encoder
from tests.helpers.pixel_encoder import pixel_encoder
from tests.helpers.supervised import small_model
from tests.helpers.tiny_models import foreign_model


@pytest.mark.parametrize(
    ("class_token", "registers", "prefix"), [(True, 0, 1), (True, 2, 3), (False, 2, 2), (False, 0, 0)]
)
def test_a_register_is_not_taken_for_a_class_token(class_token: bool, registers: int, prefix: int) -> None:
    model = timm.models.VisionTransformer(
        img_size=32,
        patch_size=8,
        embed_dim=32,
        depth=2,
        num_heads=2,
        num_classes=0,
        class_token=class_token,
        reg_tokens=registers,
        global_pool="token" if class_token else "avg",
        final_norm=True,
        fc_norm=False,
    ).eval()
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        whole = model.forward_features(images)  # (2, prefix + 16, 32)
    encoder = load_encoder(model)
    tokens = encoder.tokens(images)
    torch.testing.assert_close(tokens.patches.flatten(1, 2), whole[:, prefix:])
    if class_token:
        torch.testing.assert_close(tokens.pooled, whole[:, 0])
        assert tokens.both.shape == (2, 64)
        torch.testing.assert_close(encoder.class_tokens(images, 1), whole[:, 0])
    else:
        assert tokens.class_token is None
        torch.testing.assert_close(tokens.pooled, whole[:, prefix:].mean(dim=1))
        assert tokens.both.shape == (2, 32)
        torch.testing.assert_close(encoder.class_tokens(images, 1), whole[:, prefix:].mean(dim=1))


def test_pictures_are_scaled_normalised_and_encoded() -> None:
    encoder = load_encoder(small_model())
    generator = np.random.default_rng(0)
    pictures = [Image.fromarray(generator.integers(0, 256, (50, 40, 3), dtype=np.uint8)) for _ in range(2)]
    pictures.append(pictures[0].convert("L"))
    images = encoder.resize(pictures)
    assert (images.dtype, tuple(images.shape)) == (torch.uint8, (3, 3, 64, 64))
    expected = np.asarray(pictures[1].resize((64, 64), Image.Resampling.BILINEAR))
    np.testing.assert_array_equal(images[1].permute(1, 2, 0), expected)
    assert torch.equal(images[2][0], images[2][2])
    mean, std = (torch.tensor(values)[:, None, None] for values in (encoder.mean, encoder.std))
    torch.testing.assert_close(encoder.normalize(images), (images / 255 - mean) / std)
    with torch.no_grad():
        outputs = encoder.module(encoder.normalize(encoder.resize(pictures, (32, 48))))
    tokens = encoder.encode(pictures, (32, 48))
    torch.testing.assert_close(tokens.patches.flatten(1, 2), outputs.last_hidden_state[:, 1:])
    torch.testing.assert_close(tokens.pooled, outputs.pooler_output)
    assert tokens.patches.shape == (3, 4, 6, 96)


def test_configuration_and_trained_size_are_the_models() -> None:
    encoder = load_encoder(small_model())
    assert encoder.config is encoder.module.config
    assert encoder.height_width == (64, 64)
    fields = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "patch_size": 8}
    wide = load_encoder(GTSAModel(GTSAConfig(image_size=(32, 48), **fields)))
    assert (wide.height_width, wide.image_size) == ((32, 48), 32)
    assert load_encoder(foreign_model("timm")).config is None
    assert load_encoder(foreign_model("transformers")).height_width == (64, 64)


def by_hand(query: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
    """Attention weights of queries and keys `(batch, heads, tokens, width)`, written out."""
    return (query @ key.transpose(-1, -2) / query.shape[-1] ** 0.5).softmax(dim=-1)


@pytest.mark.parametrize("kind", ["ours", "timm", "transformers"])
def test_attention_of_the_last_layer_is_that_of_its_queries_and_keys(kind: str) -> None:
    encoder = load_encoder(small_model() if kind == "ours" else foreign_model(kind))
    pixel_values = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    block: Any = encoder.blocks[-1]
    before = encoder.tokens(pixel_values).patches
    found = encoder.last_attention(pixel_values)
    states = encoder.hidden_states(pixel_values, [-2])[0]
    with torch.no_grad():
        if kind == "transformers":
            attention, normed = block.attention, block.layernorm_before(states)
            projections = [part for part in attention.modules() if isinstance(part, torch.nn.Linear)][:2]
            query, key = (part(normed).unflatten(2, (2, -1)).transpose(1, 2) for part in projections)
        else:
            normed = block.norm1(states)
            qkv = (block.attn if kind == "timm" else block.attention).qkv(normed)
            heads = 2 if kind == "timm" else 3
            query, key, _ = qkv.unflatten(2, (3, heads, -1)).permute(2, 0, 3, 1, 4)
        expected = by_hand(query, key)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)
    assert found.shape[-1] == (64 // encoder.patch_size) ** 2 + 1  # the class token comes first
    torch.testing.assert_close(encoder.tokens(pixel_values).patches, before)  # nothing is left changed


def test_attention_of_another_kind_is_refused() -> None:
    with pytest.raises(TypeError, match="Pixels has an attention whose weights cannot be read"):
        pixel_encoder(8).last_attention(torch.zeros(1, 3, 16, 16))


def test_the_fingerprint_follows_the_weights() -> None:
    encoder = load_encoder(small_model())
    first = encoder.fingerprint
    assert encoder.fingerprint == first == load_encoder(small_model()).fingerprint
    assert load_encoder(small_model(seed=1)).fingerprint != first
    other = Encoder(encoder.module, "other", (0.5,) * 3, encoder.std, 64)
    assert other.fingerprint != first  # another normalisation
    with torch.no_grad():
        next(encoder.module.parameters()).mul_(1.01)
    assert encoder.fingerprint != first
