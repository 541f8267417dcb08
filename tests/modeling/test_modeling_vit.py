"""The trunk of every method: the formulas, positions, stochastic depth, loading, attention, precision."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from hf_geossl.modeling.modeling_vit import ViTDropPath, drop_samples
from tests.helpers.methods import (
    KINDS,
    METHODS,
    Method,
    images,
    literal_positions,
    literal_trunk,
    randomise,
)


@pytest.fixture(params=METHODS)
def method(request: pytest.FixtureRequest) -> Method:
    return METHODS[request.param]


def _patches(model: Any, tokens: torch.Tensor) -> torch.Tensor:
    """Without the class token, where there is one."""
    return tokens[:, 1:] if model.config.use_class_token else tokens


@pytest.mark.parametrize("size", [(32, 32), (64, 64), (16, 16), (24, 56), (8, 8), (16, 64)])
def test_trunk_equals_the_formulas_at_any_size_divisible_by_the_patch(method: Method, size: tuple[int, int]) -> None:
    model, pixels = method.model("Model"), images(2, 3, *size)
    outputs = model(pixels)
    expected = literal_trunk(model.config, model.state_dict(), pixels)
    assert outputs.last_hidden_state.shape == expected.shape
    assert expected.shape == (2, model.config.use_class_token + size[0] * size[1] // 64, 32)
    torch.testing.assert_close(outputs.last_hidden_state.double(), expected, rtol=0, atol=5e-5)
    pooled = method.pooled(model, expected)
    torch.testing.assert_close(outputs.pooler_output.double(), pooled, rtol=0, atol=5e-5)


@pytest.mark.parametrize("use_positions", [True, False])
def test_kept_tokens_enter_alone_and_in_their_order_and_positions_can_be_left_out(
    method: Method, use_positions: bool
) -> None:
    model, pixels = method.model("Model"), images(2, 3, 40, 24)
    for kept in ([11, 0, 7, 3], [5], None):
        given = None if kept is None else torch.tensor(kept)
        found = model(pixels, kept_tokens=given, use_positions=use_positions).last_hidden_state
        expected = literal_trunk(model.config, model.state_dict(), pixels, kept, use_positions)
        torch.testing.assert_close(found.double(), expected, rtol=0, atol=5e-5)


def test_other_channels_and_a_table_that_is_not_square(method: Method) -> None:
    """A table made for 16 x 64 pixels is used as it is there, and turned into 4 x 4 positions at 32 x 32."""
    model = method.model("Model", num_channels=5, image_size=[16, 64], num_hidden_layers=1)
    table = _patches(model, model.embeddings.position_embeddings).reshape(2, 8, 32)
    bias = model.embeddings.patch_embeddings.bias
    for size, rows, columns in (((16, 64), 2, 8), ((32, 32), 4, 4)):
        embedded = _patches(model, model.embeddings(torch.zeros(1, 5, *size)))[0]
        expected = literal_positions(model.config, table, rows, columns).flatten(0, 1)
        torch.testing.assert_close(embedded - bias, expected, rtol=0, atol=1e-5)
    pixels = images(1, 5, 16, 64)
    expected = literal_trunk(model.config, model.state_dict(), pixels)
    torch.testing.assert_close(model(pixels).last_hidden_state.double(), expected, rtol=0, atol=5e-5)


@pytest.mark.parametrize(
    ("shape", "told"),
    [
        ((1, 4, 32, 32), r"\(batch, 3, height, width\), got \(1, 4, 32, 32\)"),
        ((3, 32, 32), r"\(batch, 3, height, width\), got \(3, 32, 32\)"),
        ((1, 2, 3, 32, 32), r"\(batch, 3, height, width\)"),
        ((1, 3, 33, 32), "multiples of the patch size 8, got 33 x 32"),
        ((1, 3, 32, 4), "multiples of the patch size 8, got 32 x 4"),
        ((1, 3, 0, 32), "multiples of the patch size 8, got 0 x 32"),
    ],
)
def test_images_that_do_not_fit_are_refused(method: Method, shape: tuple[int, ...], told: str) -> None:
    config = method.config(num_labels=3, num_hidden_layers=1)
    for kind in ("Model", "Backbone", "ForSemanticSegmentation"):
        with pytest.raises(ValueError, match=told):
            method.kind(kind)(config)(torch.zeros(shape))


def test_stochastic_depth_grows_linearly_and_survives_saving(method: Method, tmp_path: Path) -> None:
    model = method.kind("ForPreTraining")(method.config(drop_path_rate=0.3))
    model.save_pretrained(tmp_path)
    for one in (model, type(model).from_pretrained(tmp_path), copy.deepcopy(model)):
        rates = [layer.drop_path.rate for layer in method.trunk(one).encoder.layer]
        assert rates == pytest.approx(torch.linspace(0, 0.3, 4).tolist())
    single = method.kind("Model")(method.config(num_hidden_layers=1, drop_path_rate=0.3))
    assert [layer.drop_path.rate for layer in single.encoder.layer] == [0.0]


def test_stochastic_depth_drops_whole_samples_and_keeps_the_mean() -> None:
    torch.manual_seed(0)
    drop = ViTDropPath(0.3)
    ones = torch.ones(20_000, 2, 3)
    found = drop_samples(ones, drop.draw(ones))
    assert found.unique().tolist() == pytest.approx([0.0, 1 / 0.7])
    assert torch.equal(found, found[:, :1, :1].expand(-1, 2, 3))
    assert found.mean().item() == pytest.approx(1.0, abs=4 * (0.3 / 0.7 / 20_000) ** 0.5)
    assert drop.eval().draw(ones) is None
    assert drop_samples(ones, None) is ones
    beside_others = ViTDropPath(0.0, others_drop=True)
    assert torch.equal(beside_others.draw(ones), torch.ones(20_000, 1, 1))
    beside_others.disable()
    assert beside_others.draw(ones) is None


def test_both_branches_of_a_layer_are_dropped_on_their_own(method: Method) -> None:
    torch.manual_seed(0)
    layer = method.model("Model", drop_path_rate=0.5).encoder.layer[-1].train()
    x = images(1, 5, 32).expand(256, -1, -1)
    with torch.no_grad():
        found = layer(x)
        attended = layer.attention(layer.norm1(x[:1]))[0]
        outcomes = []
        for a in (0.0, 2.0):
            for b in (0.0, 2.0):
                middle = x[:1] + a * attended
                outcomes.append(middle + b * layer.mlp(layer.norm2(middle)))
    near = torch.stack([(found - outcome).abs().amax(dim=(1, 2)) for outcome in outcomes])
    assert near.amin(dim=0).max() < 1e-4
    counts = torch.bincount(near.argmin(dim=0), minlength=4)
    assert counts.min() > 40, "all four outcomes come up, 64 times each on average"


@pytest.mark.parametrize("kind", KINDS)
def test_from_pretrained_loads_every_weight(method: Method, kind: str, tmp_path: Path) -> None:
    model = method.model(kind, std=1.0, num_labels=3, num_hidden_layers=3)
    model.save_pretrained(tmp_path)
    loaded, info = type(model).from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert not loaded.training
    state = loaded.state_dict()
    assert state.keys() == model.state_dict().keys()
    for name, value in model.state_dict().items():
        assert torch.equal(state[name], value), name
    trained = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    assert {name: parameter.requires_grad for name, parameter in loaded.named_parameters()} == trained


def test_a_missing_weight_is_made_and_its_neighbours_are_loaded(method: Method, tmp_path: Path) -> None:
    model = method.model("ForPreTraining", std=1.0)
    state, trunk = model.state_dict(), method.prefix
    head = next(name for name in state if not name.startswith((trunk, "teacher.")) and name.endswith(".bias"))
    missing = {
        f"{trunk}.encoder.layer.0.attention.qkv.bias": 0.0,
        f"{trunk}.layernorm.weight": 1.0,
        f"teacher.{trunk}.layernorm.bias": 0.0,  # the rest of the teacher is not replaced by the student
        head: 0.0,
    }
    model.save_pretrained(tmp_path, state_dict={name: value for name, value in state.items() if name not in missing})
    loaded, info = type(model).from_pretrained(tmp_path, output_loading_info=True)
    assert info["missing_keys"] == set(missing)
    for name, value in loaded.state_dict().items():
        expected = torch.full_like(value, missing[name]) if name in missing else state[name]
        assert torch.equal(value, expected), name


@pytest.mark.filterwarnings("ignore:flex_attention called without")
def test_attention_implementations_agree(method: Method) -> None:
    model, pixels = method.model("Model", std=0.1, num_hidden_layers=2), images(2, 3, 32, 40)
    found = {}
    for implementation in ("eager", "sdpa", "flex_attention"):
        model.set_attn_implementation(implementation)
        assert model.encoder.layer[0].attention.config._attn_implementation == implementation
        with torch.no_grad(), torch.compiler.set_stance("force_eager"):  # flex would compile itself, for 10 s
            found[implementation] = model(pixels).last_hidden_state.double()
    expected = literal_trunk(model.config, model.state_dict(), pixels)
    for implementation, tokens in found.items():
        torch.testing.assert_close(tokens, expected, rtol=0, atol=2e-5, msg=implementation)


def test_hidden_states_and_attentions(method: Method) -> None:
    kind = method.kind("Model")
    model = randomise(kind._from_config(method.config(), attn_implementation="eager"))
    pixels, tokens = images(2, 3, 16, 24), 6 + model.config.use_class_token
    outputs = model(pixels, output_hidden_states=True, output_attentions=True)
    assert [tuple(hidden.shape) for hidden in outputs.hidden_states] == [(2, tokens, 32)] * 5
    assert torch.equal(outputs.hidden_states[0], model.embeddings(pixels))
    assert torch.equal(model.layernorm(outputs.hidden_states[-1]), outputs.last_hidden_state)
    hidden = outputs.hidden_states[0]
    for layer, expected in zip(model.encoder.layer, outputs.hidden_states[1:], strict=True):
        hidden = layer(hidden)
        assert torch.equal(hidden, expected)
    assert [tuple(weights.shape) for weights in outputs.attentions] == [(2, 2, tokens, tokens)] * 4
    for weights in outputs.attentions:
        torch.testing.assert_close(weights.sum(-1), torch.ones(2, 2, tokens))
    some = model(pixels, output_hidden_states=[0, -1]).hidden_states
    assert [number for number, state in enumerate(some) if state is not None] == [0, 4]
    assert torch.equal(some[4], outputs.hidden_states[4])
    plain = model(pixels)
    assert plain.hidden_states is None
    assert plain.attentions is None
    assert torch.equal(plain.last_hidden_state, outputs.last_hidden_state)
    as_tuple = model(pixels, return_dict=False)
    assert torch.equal(as_tuple[0], plain.last_hidden_state)
    assert torch.equal(as_tuple[1], plain.pooler_output)


def test_gradient_checkpointing_gives_the_same_gradients(method: Method) -> None:
    model = method.model("ForPreTraining", std=0.1, drop_path_rate=0.5).train()
    found = []
    for checkpointing in (False, True):
        if checkpointing:
            model.gradient_checkpointing_enable()
            assert method.trunk(model).encoder.layer[0].gradient_checkpointing
        model.zero_grad()
        torch.manual_seed(3)  # the same samples are dropped, also when a layer is run again
        loss = model(**method.batch()).loss
        loss.backward()
        found.append((loss.item(), {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}))
    assert found[0][0] == found[1][0]
    assert found[0][1].keys() == found[1][1].keys()
    for name, gradient in found[0][1].items():
        torch.testing.assert_close(found[1][1][name], gradient, rtol=1e-5, atol=1e-7, msg=name)


def test_bf16_trunk_is_near_float32(method: Method) -> None:
    model, pixels = method.model("Model", std=0.1), images(2, 3, 48, 24)
    expected = model(pixels).last_hidden_state
    model = model.to(torch.bfloat16)
    for given in (pixels, pixels.bfloat16()):
        found = model(given).last_hidden_state
        assert found.dtype == torch.bfloat16
        assert F.cosine_similarity(found.float(), expected, dim=-1).min() > 0.999


def test_trunk_compiles_to_one_graph_equal_to_eager(method: Method) -> None:
    torch._dynamo.reset()
    model = method.model("Model", std=0.1, num_hidden_layers=2)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    for size in ((32, 32), (16, 40)):
        pixels = images(2, 3, *size)
        torch.testing.assert_close(
            compiled(pixels).last_hidden_state, model(pixels).last_hidden_state, rtol=0, atol=1e-5
        )
    torch._dynamo.reset()
