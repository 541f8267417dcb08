"""LOCA's cross-attention and prototypes, and checks of the views."""

from typing import Any

import pytest
import torch

from hf_geossl import LOCAForPreTraining
from hf_geossl.modeling.modeling_vit import ViTDropPath
from tests.helpers.literal_loca import literal_cross_attention
from tests.helpers.methods import METHODS, images, loca_batch, randomise

LOCA = METHODS["loca"]


_config = LOCA.config


State = dict[str, torch.Tensor]


def _model(std: float = 0.2, **fields: Any) -> Any:
    """Random weights; student and teacher differ."""
    model = LOCA.model("ForPreTraining", std, **fields)
    randomise(model.teacher, std, seed=5)
    return model


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
def test_cross_attention_is_each_query_over_the_reference_with_norms_of_their_own(implementation: str) -> None:
    model = _model(drop_path_rate=0.9).train()
    model.set_attn_implementation(implementation)
    block = model.cross_attention
    assert block.attention.config._attn_implementation == implementation
    assert not any(isinstance(module, ViTDropPath) for module in block.modules()), "no stochastic depth in this block"
    queries, references = images(2, 5, 32), images(2, 3, 32, seed=1)
    state = {name: value.double() for name, value in block.state_dict().items()}
    expected = torch.stack(
        [
            torch.stack([literal_cross_attention(model.config, state, one, seen) for one in several])
            for several, seen in zip(queries.double(), references.double(), strict=True)
        ]
    )
    torch.testing.assert_close(block(queries, references).double(), expected, rtol=0, atol=2e-5)


def test_prototypes_are_used_at_unit_length_whatever_is_stored() -> None:
    model, batch = _model(), loca_batch()
    given = {"kept_query_tokens": torch.arange(5), "visible_reference_tokens": torch.arange(3, 9)}
    expected = model(**batch, **given)
    expected.loss.backward()
    weight = model.cluster_head.prototypes.weight
    assert weight.grad.norm() > 1e-3
    along = (weight.grad * weight).sum(1) / weight.norm(dim=1)  # a longer prototype says the same
    assert along.abs().max() < 1e-4 * weight.grad.norm()
    for head in (model.cluster_head, model.teacher.cluster_head):
        with torch.no_grad():
            head.prototypes.weight.mul_(torch.linspace(0.1, 30, 20)[:, None])
    found = model(**batch, **given)
    for name in ("random_query_cluster_logits", "focal_query_cluster_logits", "reference_cluster_logits"):
        torch.testing.assert_close(found[name], expected[name], rtol=0, atol=1e-5, msg=name)
        assert found[name].abs().max() <= 1 + 1e-6
    assert found.loss.item() == pytest.approx(expected.loss.item(), abs=1e-5)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (
            {"reference_pixel_values": torch.zeros(3, 3, 40, 32)},
            r"reference_pixel_values must have shape \(batch, channels, 32, 32\), the image_size .* got \(3, 3, 40, 32\)",
        ),
        (
            {"reference_pixel_values": torch.zeros(3, 32, 32)},
            r"reference_pixel_values must have shape .* got \(3, 32, 32\)",
        ),
        (
            {"reference_pixel_values": torch.zeros(3, 1, 32, 32)},
            r"pixel_values must have shape \(batch, 3, height, width\), got \(3, 1, 32, 32\)",
        ),
        ({"random_query_pixel_values": None}, "random_query_pixel_values and random_query_positions are needed"),
        ({"random_query_positions": None}, "random_query_pixel_values and random_query_positions are needed"),
        (
            {"random_query_pixel_values": torch.zeros(2, 3, 32, 32)},
            r"random_query_pixel_values must have shape .* batch of 3, got \(2, 3, 32, 32\)",
        ),
        (
            {"random_query_pixel_values": torch.zeros(3, 36, 36)},
            r"random_query_pixel_values must have shape .* got \(3, 36, 36\)",
        ),
        ({"random_query_pixel_values": torch.zeros(3, 3, 36, 36)}, "multiples of the patch size 8, got 36 x 36"),
        (
            {"random_query_positions": torch.zeros(3, 7)},
            r"random_query_positions must have shape \(3, 16\), one for every token .* got \(3, 7\)",
        ),
        (
            {"random_query_positions": torch.full((3, 16), 16)},
            "random_query_positions must be raster indices into the reference's 16 tokens or -1, got 16 to 16",
        ),
        ({"random_query_positions": torch.full((3, 16), -2)}, "random_query_positions must be .* or -1, got -2 to -2"),
        ({"focal_query_pixel_values": None}, "focal_query_pixel_values and focal_query_positions come together"),
        ({"focal_query_positions": None}, "focal_query_pixel_values and focal_query_positions come together"),
        (
            {"focal_query_pixel_values": torch.zeros(6, 3, 16, 16)},
            r"focal_query_pixel_values must have shape \(batch, queries, .* got \(6, 3, 16, 16\)",
        ),
        ({"focal_query_pixel_values": torch.zeros(3)}, r"focal_query_pixel_values must have shape .* got \(3,\)"),
        (
            {"focal_query_positions": torch.zeros(3, 2, 16)},
            r"focal_query_positions must have shape \(3, 2, 4\), .* got \(3, 2, 16\)",
        ),
        ({"focal_query_positions": torch.full((3, 2, 4), 99)}, "focal_query_positions must be .* got 99 to 99"),
        (
            {"kept_query_tokens": torch.tensor([0, 16])},
            "kept_query_tokens must be raster indices from 0 to 15, got 0 to 16",
        ),
        (
            {"kept_query_tokens": torch.zeros(3, 2, dtype=torch.long)},
            r"kept_query_tokens must be integers of shape \(tokens,\), .* got torch.int64 of shape \(3, 2\)",
        ),
        (
            {"kept_query_tokens": torch.zeros(0, dtype=torch.long)},
            r"kept_query_tokens .* at least one, .* shape \(0,\)",
        ),
        (
            {"kept_query_tokens": torch.ones(16, dtype=torch.bool)},
            "kept_query_tokens must be integers .* got torch.bool",
        ),
        (
            {"visible_reference_tokens": torch.tensor([-1])},
            "visible_reference_tokens must be raster indices from 0 to 15, got -1 to -1",
        ),
        ({"visible_reference_tokens": torch.rand(3)}, "visible_reference_tokens must be integers .* got torch.float32"),
    ],
)
def test_batches_that_do_not_fit_together_are_refused(change: dict[str, Any], told: str) -> None:
    model = LOCAForPreTraining(_config(num_hidden_layers=1))
    with pytest.raises(ValueError, match=told):
        model(**{**loca_batch(), **change})
