"""Positions: resampled tables, and rotations as transformers' DINOv3 makes them."""

import pytest
import torch
from torch.nn import functional as F
from transformers import DINOv3ViTConfig, DINOv3ViTModel

from hf_geossl.modeling.modeling_gtsa import GTSAModel
from hf_geossl.modeling.positions import CellPool, ViTRotaryPositions, resample_positions, rotate
from tests.helpers.methods import METHODS, images, randomise, triangle_weights

SIZES = [(32, 32), (40, 24), (8, 64)]


@pytest.mark.parametrize("grid", [(6, 6), (10, 10), (14, 7), (20, 9), (28, 28), (1, 1)])
def test_position_resampling_is_torchs_with_the_offset_in_the_scale(grid: tuple[int, int]) -> None:
    table = images(14, 14, 8)
    stacked = table.permute(2, 0, 1)[None]
    scale = ((grid[0] + 0.1) / 14, (grid[1] + 0.1) / 14)
    expected = F.interpolate(stacked, scale_factor=scale, mode="bicubic", align_corners=False, antialias=False)
    torch.testing.assert_close(resample_positions(table, *grid, 0.1), expected[0].permute(1, 2, 0), rtol=0, atol=0)
    exact = F.interpolate(stacked, size=grid, mode="bicubic", align_corners=False, antialias=False)
    torch.testing.assert_close(resample_positions(table, *grid), exact[0].permute(1, 2, 0), rtol=0, atol=0)
    assert (expected - exact).abs().max() > 1e-2, "the two ways must differ for this to say anything"


@pytest.mark.parametrize("grid", [(6, 6), (10, 18), (14, 7), (20, 9), (28, 28), (1, 1)])
def test_bilinear_position_resampling_widens_its_triangle_where_the_grid_shrinks(grid: tuple[int, int]) -> None:
    table = images(14, 14, 8)
    rows, columns = (triangle_weights(14, side) for side in grid)
    expected = torch.einsum("ik,jl,kld->ijd", rows, columns, table.double())
    found = resample_positions(table, *grid, mode="bilinear")
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=2e-6)
    plain = F.interpolate(table.permute(2, 0, 1)[None], size=grid, mode="bilinear", align_corners=False)
    differs = (plain[0].permute(1, 2, 0) - found).abs().max() > 1e-2
    assert differs == (min(grid) < 14), "antialiasing matters where a side shrinks, and only there"


def test_offset_never_changes_the_size_of_the_grid() -> None:
    for side in (1, 2, 3, 7, 14, 37):
        table = torch.zeros(side, side, 1)
        for offset in (0.0, 0.1, 0.5, 0.99):
            for new in range(1, 65):
                assert resample_positions(table, new, 65 - new, offset).shape == (new, 65 - new, 1)


def test_positions_are_resampled_in_float32_and_come_back_in_their_dtype() -> None:
    table = images(4, 4, 8).bfloat16()
    for options in ({"offset": 0.1}, {"mode": "bilinear"}, {"mode": "bicubic_antialias"}):
        found = resample_positions(table, 7, 3, **options)
        assert found.dtype == torch.bfloat16
        assert torch.equal(found, resample_positions(table.float(), 7, 3, **options).bfloat16())


@pytest.mark.parametrize("grid", [(6, 6), (10, 18), (28, 28)])
def test_bicubic_positions_with_antialiasing_are_torchs(grid: tuple[int, int]) -> None:
    table = images(14, 14, 8)
    stacked = table.permute(2, 0, 1)[None]
    expected = F.interpolate(stacked, size=grid, mode="bicubic", align_corners=False, antialias=True)
    found = resample_positions(table, *grid, mode="bicubic_antialias")
    torch.testing.assert_close(found, expected[0].permute(1, 2, 0), rtol=0, atol=0)
    plain = resample_positions(table, *grid)
    assert (found - plain).abs().max() > 1e-2, "torch's antialiased kernel is another (a = -0.5) on larger grids too"


def _dinov3(gated: bool) -> tuple[DINOv3ViTModel, GTSAModel]:
    """The same random trunk as transformers' class and as ours."""
    shape = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
    shape |= {
        "image_size": 32,
        "patch_size": 8,
        "num_register_tokens": 2,
        "layerscale_value": 0.5,
        "layer_norm_eps": 1e-5,
    }
    config = DINOv3ViTConfig(**shape, use_gated_mlp=gated, hidden_act="silu" if gated else "gelu")
    theirs = randomise(DINOv3ViTModel(config)).eval()
    ours = (
        METHODS["gtsa"]
        .kind("Model")(
            METHODS["gtsa"].config(
                **shape,
                hidden_act=config.hidden_act,
                gated_mlp=gated,
                key_bias=False,
                position_embedding_type="rope",
                reconstruction=None,
            )
        )
        .eval()
    )
    source = {key.removeprefix("model."): value for key, value in theirs.state_dict().items()}
    state = {f"embeddings.{key}": source[f"embeddings.{key}"] for key in ("cls_token", "register_tokens")}
    state |= {
        f"embeddings.patch_embeddings.{key}": source[f"embeddings.patch_embeddings.{key}"] for key in ("weight", "bias")
    }
    for index in range(2):
        old, new = f"layer.{index}.", f"encoder.layer.{index}."
        for key in ("norm1", "norm2"):
            state |= {f"{new}{key}.{part}": source[f"{old}{key}.{part}"] for part in ("weight", "bias")}
        state[f"{new}attention.qkv.weight"] = torch.cat([source[f"{old}attention.{k}_proj.weight"] for k in "qkv"])
        state[f"{new}attention.query_bias"] = source[f"{old}attention.q_proj.bias"]
        state[f"{new}attention.value_bias"] = source[f"{old}attention.v_proj.bias"]
        first = ("gate_proj", "up_proj") if gated else ("up_proj",)
        for part in ("weight", "bias"):
            state[f"{new}attention.projection.{part}"] = source[f"{old}attention.o_proj.{part}"]
            state[f"{new}mlp.fc1.{part}"] = torch.cat([source[f"{old}mlp.{name}.{part}"] for name in first])
            state[f"{new}mlp.fc2.{part}"] = source[f"{old}mlp.down_proj.{part}"]
        for branch in (1, 2):
            state[f"{new}layer_scale{branch}.weight"] = source[f"{old}layer_scale{branch}.lambda1"]
    state |= {f"layernorm.{part}": source[f"norm.{part}"] for part in ("weight", "bias")}
    ours.load_state_dict(state)
    return theirs, ours


@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("size", SIZES)
def test_a_trunk_with_rotary_positions_is_transformers_dinov3(gated: bool, size: tuple[int, int]) -> None:
    theirs, ours = _dinov3(gated)
    pixels = images(2, 3, *size)
    with torch.no_grad():
        expected = theirs(pixels).last_hidden_state
        torch.testing.assert_close(ours(pixels).last_hidden_state, expected, rtol=0, atol=1e-5)
        without = ours(pixels, use_positions=False).last_hidden_state
    assert (without - expected).abs().max() > 1e-3, "the positions must matter for this to say anything"


def test_kept_tokens_are_rotated_by_their_own_places() -> None:
    """All tokens in another order give the same features in that order."""
    _, ours = _dinov3(gated=True)
    pixels = images(2, 3, 40, 24)
    order = torch.randperm(15, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        whole, kept = (ours(pixels, kept_tokens=tokens).last_hidden_state for tokens in (None, order))
    torch.testing.assert_close(kept[:, 3:], whole[:, 3:][:, order], rtol=0, atol=1e-5)


def test_a_rotation_depends_on_the_difference_of_places_and_leaves_lengths() -> None:
    """Two tokens moved by the same step keep their product, which is what rotary positions are for."""
    cosines, sines = ViTRotaryPositions(METHODS["gtsa"].config(hidden_size=32, num_attention_heads=2))(4, 4)
    query, key = images(1, 1, 16, 16), images(1, 1, 16, 16, seed=1)
    query, key = (vector[:, :, :1].expand(-1, -1, 16, -1) for vector in (query, key))  # the same vector everywhere
    turned = [rotate(vector, (cosines, sines)) for vector in (query, key)]
    products = (turned[0] @ turned[1].transpose(2, 3))[0, 0]
    assert products[0, 5] == pytest.approx(products[5, 10].item(), abs=1e-5)  # a patch down and right, both times
    assert abs(products[0, 5] - products[0, 10]) > 1e-3
    torch.testing.assert_close(turned[0].norm(dim=-1), query.norm(dim=-1))


def test_heads_that_cannot_be_rotated_are_refused() -> None:
    with pytest.raises(Exception, match="multiple of 4 channels, got hidden_size 36 and num_attention_heads 6"):
        METHODS["gtsa"].config(hidden_size=36, num_attention_heads=6, position_embedding_type="rope")


@pytest.mark.parametrize("method", METHODS)
def test_every_method_trains_with_rotary_positions_gates_and_without_key_bias(method: str) -> None:
    options = {"position_embedding_type": "rope", "gated_mlp": True, "key_bias": False, "hidden_act": "silu"}
    options |= {"embedding_norm": True, "patch_bias": False}
    model = METHODS[method].kind("ForPreTraining")(METHODS[method].config(**options))
    missing = [name for name, _ in model.named_parameters() if name.endswith(("position_embeddings", "qkv.bias"))]
    assert not missing
    loss = model.train()(**METHODS[method].batch()).loss
    loss.backward()
    gradients = {name: value.grad for name, value in model.named_parameters() if value.requires_grad}
    own = [name for name in gradients if name.endswith(("query_bias", "value_bias", "embeddings.norm.weight"))]
    assert own
    assert all(gradients[name] is not None and gradients[name].abs().sum() > 0 for name in own)


@pytest.mark.parametrize("cells", [1, 2, 3, 6])
def test_cells_are_pooled_alike_while_they_are_traced(cells: int) -> None:
    """Sides below, above and at multiples of the cells; the traced function at sizes that it has not seen."""
    pool, free = CellPool(cells), torch.randn(2, 3, 7, 12)
    traced = torch.jit.trace(pool, free)
    for rows, columns in [(7, 12), (1, 6), (5, 17), (13, 3)]:
        maps = torch.randn(2, 3, rows, columns, generator=torch.Generator().manual_seed(rows))
        expected = torch.nn.functional.adaptive_avg_pool2d(maps, cells)
        torch.testing.assert_close(pool(maps), expected, rtol=0, atol=0)
        torch.testing.assert_close(traced(maps), expected)
