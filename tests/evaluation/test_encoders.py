"""The tokens of an `Encoder`: class tokens, registers, pictures, attention."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from torch.nn import functional

from hf_geossl import GTSAConfig, GTSAModel
from hf_geossl.evaluation.encoders import Encoder, Tokens
from hf_geossl.evaluation.fitting import fit
from hf_geossl.evaluation.heads import detection as detection_head
from hf_geossl.evaluation.loading import load_encoder
from hf_geossl.evaluation.options import EvaluationData, EvaluationOptions
from hf_geossl.evaluation.protocols import detection, homography, keypoints
from hf_geossl.evaluation.protocols import position_loca as position
from tests.helpers.pixel_encoder import pixel_encoder
from tests.helpers.supervised import small_model
from tests.helpers.tiny_models import foreign_model, tiny_loca


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


OPTIONS = EvaluationOptions(batch_size=8, bootstrap=0, cache_dir=None, progress=False)
DETECTION = detection.DetectionSettings(steps=3, batch_size=2, channels=8, head_width=8)
KEYPOINTS = keypoints.KeypointsSettings(steps=3, images_per_step=2, channels=8)
HOMOGRAPHY = homography.HomographySettings(steps=3, batch_size=4, channels=8)


@contextmanager
def mixed_precision(device: torch.device) -> Iterator[None]:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        yield


def use_bfloat16(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (detection, detection_head, fit, homography, keypoints, position):
        if hasattr(module, "mixed_precision"):
            monkeypatch.setattr(module, "mixed_precision", mixed_precision)


@pytest.mark.parametrize(
    ("measure", "settings", "metric"),
    [
        (detection.measure_detection, DETECTION, detection.COCOAveragePrecision),
        (keypoints.measure_keypoints, KEYPOINTS, keypoints.KeypointAveragePrecision),
        (homography.measure_homography, HOMOGRAPHY, None),
    ],
    ids=["detection", "keypoints", "homography"],
)
def test_on_given_tokens_mixed_precision_changes_nothing(
    measure: Any, settings: Any, metric: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    autocast: list[bool] = []
    found: list[torch.Tensor] = []

    def tokens(encoder: Encoder, pixel_values: torch.Tensor) -> Tokens:
        """The pixels of patches in bfloat16, as a trunk gives them under autocast."""
        autocast.append(torch.is_autocast_enabled("cpu"))
        patches = (
            functional.unfold(pixel_values, 8, stride=8).transpose(1, 2).unflatten(1, (pixel_values.shape[-2] // 8, -1))
        )
        return Tokens(patches.bfloat16(), None, patches.mean(dim=(1, 2)))

    monkeypatch.setattr(Encoder, "tokens", tokens)
    if metric is not None:
        rows_of = metric.rows_of

        def watch(self: Any, predictions: list[dict[str, Any]], references: list[dict[str, Any]]) -> Any:
            found.extend(torch.as_tensor(value) for prediction in predictions for value in prediction.values())
            return rows_of(self, predictions, references)

        monkeypatch.setattr(metric, "rows_of", watch)
    encoder, data = pixel_encoder(8), EvaluationData(size=64, limit=8)
    plain = measure(encoder, data, OPTIONS, settings).metrics
    places = found.copy()
    assert not any(autocast)
    autocast.clear()
    found.clear()
    use_bfloat16(monkeypatch)
    mixed = measure(encoder, data, OPTIONS, settings).metrics
    assert all(autocast)  # the trunk alone
    assert str(mixed) == str(plain)
    assert metric is None or len(places) > 8
    for one, other in zip(found, places, strict=True):
        assert one.dtype == other.dtype
        assert torch.equal(one, other)


def test_positions_are_scored_in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    encoder, data = load_encoder(tiny_loca()), EvaluationData(size=40, limit=8)
    kinds: list[torch.dtype] = []
    score = position.score_positions

    def watch(logits: torch.Tensor, positions: torch.Tensor, columns: int) -> torch.Tensor:
        kinds.append(logits.dtype)
        return score(logits, positions, columns)

    monkeypatch.setattr(position, "score_positions", watch)
    use_bfloat16(monkeypatch)
    position.measure_position(encoder, data, OPTIONS, position.PositionSettings(focal_queries=1))
    assert set(kinds) == {torch.float32}


def test_the_random_twin_of_a_seed_is_drawn_once() -> None:
    encoder = load_encoder(small_model(seed=1))
    assert encoder.random_twin(3) is encoder.random_twin(3)
    assert encoder.random_twin(3).fingerprint != encoder.random_twin(4).fingerprint
