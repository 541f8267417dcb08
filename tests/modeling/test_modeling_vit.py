"""What every method makes of the trunk keeps its contract: sizes, attention, heads, backbones, loading, the teacher."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional as F
from transformers import (
    DPTConfig,
    DPTForDepthEstimation,
    Mask2FormerConfig,
    Mask2FormerForUniversalSegmentation,
    Trainer,
    TrainingArguments,
    UperNetConfig,
    UperNetForSemanticSegmentation,
)

from hf_geossl import load_backbone
from hf_geossl.hub.export import export_model
from hf_geossl.modeling.modeling_vit import ViTDropPath, resample_positions
from tests.helpers.methods import (
    KINDS,
    METHODS,
    Method,
    images,
    literal_positions,
    literal_trunk,
    randomise,
    triangle_weights,
)


@pytest.fixture(params=METHODS)
def method(request: pytest.FixtureRequest) -> Method:
    return METHODS[request.param]


def _patches(model: Any, tokens: torch.Tensor) -> torch.Tensor:
    """Without the class token, where there is one."""
    return tokens[:, 1:] if model.config.use_class_token else tokens


# ---- the trunk


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


@pytest.mark.parametrize(
    "fields",
    [
        {"hidden_size": 0},
        {"patch_size": -8},
        {"image_size": 36},
        {"image_size": [32, 4]},
        {"drop_path_rate": 1.0},
        {"position_interpolation": "nearest"},
    ],
)
def test_configurations_that_make_no_sense_are_refused_by_name(method: Method, fields: dict[str, Any]) -> None:
    with pytest.raises(Exception, match=next(iter(fields))):
        method.config(**fields)


def test_heads_that_do_not_divide_the_width_are_refused(method: Method) -> None:
    with pytest.raises(ValueError, match="multiple of num_attention_heads, got 33 and 2"):
        method.kind("Model")(method.config(hidden_size=33))


# ---- positions


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
    for options in ({"offset": 0.1}, {"mode": "bilinear"}):
        found = resample_positions(table, 7, 3, **options)
        assert found.dtype == torch.bfloat16
        assert torch.equal(found, resample_positions(table.float(), 7, 3, **options).bfloat16())


# ---- stochastic depth


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
    found = drop(torch.ones(20_000, 2, 3))
    assert found.unique().tolist() == pytest.approx([0.0, 1 / 0.7])
    assert torch.equal(found, found[:, :1, :1].expand(-1, 2, 3))
    assert found.mean().item() == pytest.approx(1.0, abs=4 * (0.3 / 0.7 / 20_000) ** 0.5)
    assert torch.equal(drop.eval()(torch.ones(5, 2, 3)), torch.ones(5, 2, 3))


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


# ---- loading


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


def test_continuing_from_an_exported_trunk_starts_the_teacher_as_the_student(method: Method, tmp_path: Path) -> None:
    model = method.model("ForPreTraining", std=1.0)
    for seed, (weights, trunk) in enumerate(
        (("teacher", method.trunk(model.teacher)), ("student", method.trunk(model)))
    ):
        randomise(trunk, std=1.0, seed=seed)
        export_model(model, tmp_path / weights, weights=weights)
        again = type(model).from_pretrained(tmp_path / weights)
        for name, value in method.trunk(again).state_dict().items():
            if name != "embeddings.mask_token":  # pretraining's own, not exported
                assert torch.equal(value, trunk.state_dict()[name]), name
        for teacher, student in zip(*again.teacher_pairs(), strict=True):
            assert torch.equal(teacher, student)
            assert teacher.data_ptr() != student.data_ptr()


# ---- attention, outputs, memory, precision


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


# ---- heads


def test_classification_is_pool_norm_linear(method: Method) -> None:
    model = method.model("ForImageClassification", num_labels=5, layer_norm_eps=1e-3)
    pixels, labels = images(4, 3, 24, 32), torch.tensor([0, 4, 2, 2])
    outputs = model(pixels, labels=labels)
    pooled = method.pooled(model, method.trunk(model)(pixels).last_hidden_state)
    pooled = (pooled - pooled.mean(-1, keepdim=True)) / (pooled.var(-1, unbiased=False, keepdim=True) + 1e-3).sqrt()
    expected = (pooled * model.norm.weight + model.norm.bias) @ model.classifier.weight.T + model.classifier.bias
    torch.testing.assert_close(outputs.logits, expected, rtol=0, atol=1e-5)
    nll = -expected.log_softmax(-1)[torch.arange(4), labels].mean()
    assert outputs.loss.item() == pytest.approx(nll.item(), abs=1e-5)
    assert model(pixels).loss is None


def test_segmentation_is_linear_on_patches_then_bilinear(method: Method) -> None:
    model = method.model("ForSemanticSegmentation", num_labels=5)
    pixels = images(2, 3, 24, 40)
    tokens = _patches(model, method.trunk(model)(pixels).last_hidden_state)
    scores = (tokens @ model.classifier.weight.T + model.classifier.bias).reshape(2, 3, 5, 5).permute(0, 3, 1, 2)
    rows = (torch.arange(24) + 0.5) / 8 - 0.5  # where each pixel lies between the patches, clamped at the edge
    columns = (torch.arange(40) + 0.5) / 8 - 0.5

    def hat(at: torch.Tensor, length: int) -> torch.Tensor:
        at = at.clamp(0, length - 1)
        return (1 - (at[:, None] - torch.arange(length)).abs()).clamp_min(0)

    expected = hat(rows, 3) @ scores @ hat(columns, 5).T
    torch.testing.assert_close(model(pixels).logits, expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("ignored", [255, 7, -1])
def test_segmentation_loss_leaves_the_ignored_label_out(method: Method, ignored: int) -> None:
    model = method.model("ForSemanticSegmentation", num_labels=5, semantic_loss_ignore_index=ignored)
    pixels = images(2, 3, 16, 24)
    labels = torch.randint(0, 5, (2, 16, 24), generator=torch.Generator().manual_seed(0))
    labels[0, :10] = ignored
    outputs = model(pixels, labels=labels)
    terms = [
        -outputs.logits[b, :, y, x].log_softmax(0)[labels[b, y, x]]
        for b in range(2)
        for y in range(16)
        for x in range(24)
        if labels[b, y, x] != ignored
    ]
    assert len(terms) == 2 * 16 * 24 - 10 * 24
    assert outputs.loss.item() == pytest.approx(torch.stack(terms).mean().item(), abs=1e-5)


@pytest.mark.parametrize("shape", [(2, 24, 16), (2, 2, 3), (1, 16, 24), (2, 1, 16, 24)])
def test_segmentation_labels_of_another_size_are_refused(method: Method, shape: tuple[int, ...]) -> None:
    model = method.kind("ForSemanticSegmentation")(method.config(num_labels=3, num_hidden_layers=1))
    with pytest.raises(ValueError, match=r"labels must have shape \(2, 16, 24\)"):
        model(torch.zeros(2, 3, 16, 24), labels=torch.zeros(shape, dtype=torch.long))


@pytest.mark.parametrize("kind", ["ForImageClassification", "ForSemanticSegmentation"])
def test_accumulated_batches_move_the_weights_as_one_large_batch(method: Method, kind: str, tmp_path: Path) -> None:
    """transformers' Trainer does not divide the loss where it believes that the model does."""
    label = torch.tensor(1) if kind == "ForImageClassification" else torch.arange(256).reshape(16, 16) % 3
    data = [{"pixel_values": images(3, 16, 16, seed=i), "labels": (label + i) % 3} for i in range(4)]
    moved = []
    for batch_size, accumulation in ((4, 1), (1, 4)):
        model = method.model(kind, num_labels=3, num_hidden_layers=1)
        args = TrainingArguments(
            str(tmp_path),
            max_steps=1,
            per_device_train_batch_size=batch_size,
            gradient_accumulation_steps=accumulation,
            optim="sgd",
            learning_rate=1.0,
            lr_scheduler_type="constant",
            max_grad_norm=0.0,
            save_strategy="no",
            report_to=[],
            use_cpu=True,
            disable_tqdm=True,
            logging_strategy="no",
        )
        before = model.classifier.weight.detach().clone()
        Trainer(model, args, train_dataset=data).train()
        moved.append(model.classifier.weight.detach() - before)
    assert moved[0].norm() > 1e-2
    torch.testing.assert_close(moved[1], moved[0], rtol=1e-4, atol=1e-6)


# ---- backbone


def test_backbone_gives_the_trunks_layers_as_maps_and_as_tokens(method: Method) -> None:
    trunk = method.model("Model", out_indices=[0, 2, 4])
    pixels = images(2, 3, 24, 40)
    hidden = trunk(pixels, output_hidden_states=True).hidden_states
    for normalised in (True, False):
        for reshaped in (True, False):
            config = method.config(out_indices=[0, 2, 4], apply_layernorm=normalised, reshape_hidden_states=reshaped)
            backbone = method.kind("Backbone")(config).eval()
            backbone.load_state_dict(trunk.state_dict())
            assert backbone.out_features == ["stem", "stage2", "stage4"]
            assert backbone.channels == [32, 32, 32]
            outputs = backbone(pixels)
            assert outputs.hidden_states is None
            for found, index in zip(outputs.feature_maps, (0, 2, 4), strict=True):
                expected = trunk.layernorm(hidden[index]) if normalised else hidden[index]
                patches = _patches(trunk, expected)
                if reshaped:
                    expected = torch.stack([patches[:, i].T.T for i in range(15)], dim=1)
                    expected = expected.reshape(2, 3, 5, 32).permute(0, 3, 1, 2)
                elif not config.use_class_token:  # who takes tokens expects one before them
                    expected = torch.cat([sum(patches.unbind(1))[:, None] / 15, patches], dim=1)
                torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)
    assert len(backbone(pixels, output_hidden_states=True).hidden_states) == 5


def test_upernet_trains_saves_and_reloads(method: Method, tmp_path: Path) -> None:
    trunk = method.model("Model", std=0.1)
    trunk.save_pretrained(tmp_path / "trunk")
    config = UperNetConfig(
        backbone_config=method.config(out_indices=[1, 2, 3, 4]),
        hidden_size=16,
        auxiliary_in_channels=32,
        auxiliary_channels=8,
        pool_scales=[1, 2],
        num_labels=3,
    )
    torch.manual_seed(0)
    model = UperNetForSemanticSegmentation(config).eval()
    randomise(model)
    pretrained = load_backbone(str(tmp_path / "trunk"), out_indices=[1, 2, 3, 4])
    assert type(pretrained) is method.kind("Backbone")
    model.backbone.load_state_dict(pretrained.state_dict())
    pixels = images(2, 3, 32, 48)
    maps = model.backbone(pixels).feature_maps
    expected = _patches(trunk, trunk(pixels).last_hidden_state).transpose(1, 2).reshape(2, 32, 4, 6)
    torch.testing.assert_close(maps[-1], expected, rtol=0, atol=1e-6)
    model.save_pretrained(tmp_path / "segmenter")
    again = UperNetForSemanticSegmentation.from_pretrained(tmp_path / "segmenter")
    logits = model(pixels).logits
    assert logits.shape == (2, 3, 32, 48)
    torch.testing.assert_close(again(pixels).logits, logits, rtol=0, atol=1e-5 * logits.abs().max().item())
    again.train()(pixels, labels=torch.zeros(2, 32, 48, dtype=torch.long)).loss.backward()
    assert again.backbone.embeddings.position_embeddings.grad.norm() > 0


def test_dpt_takes_the_backbones_tokens(method: Method, tmp_path: Path) -> None:
    """One token more than patches: the class token, or the mean of the patches in its place."""
    config = DPTConfig(
        backbone_config=method.config(out_indices=[1, 2, 3, 4], reshape_hidden_states=False, apply_layernorm=False),
        neck_hidden_sizes=[8, 8, 16, 16],
        fusion_hidden_size=8,
        head_in_index=-1,
        readout_type="project",
        hidden_size=32,
        patch_size=8,
    )
    torch.manual_seed(0)
    model = DPTForDepthEstimation(config).eval()
    randomise(model.backbone, std=0.1)
    pixels = images(1, 3, 32, 32)
    tokens = model.backbone(pixels).feature_maps
    expected = model.backbone(pixels, output_hidden_states=True).hidden_states[1:]
    for found, wanted in zip(tokens, expected, strict=True):
        assert found.shape == (1, 17, 32)
        if not model.backbone.config.use_class_token:
            wanted = torch.cat([wanted.mean(1, keepdim=True), wanted], dim=1)
        assert torch.equal(found, wanted)
    model.save_pretrained(tmp_path)
    depth = model(pixels).predicted_depth
    assert torch.equal(DPTForDepthEstimation.from_pretrained(tmp_path)(pixels).predicted_depth, depth)


def test_mask2former_takes_the_backbone(method: Method, tmp_path: Path) -> None:
    config = Mask2FormerConfig(
        backbone_config=method.config(out_indices=[1, 2, 3, 4]),
        feature_size=32,
        mask_feature_size=32,
        hidden_dim=32,
        encoder_feedforward_dim=32,
        dim_feedforward=32,
        encoder_layers=1,
        decoder_layers=2,
        num_attention_heads=2,
        num_queries=5,
        num_labels=3,
    )
    torch.manual_seed(0)
    model = Mask2FormerForUniversalSegmentation(config).eval()
    assert type(model.model.pixel_level_module.encoder) is method.kind("Backbone")
    pixels = images(1, 3, 64, 64)
    model.save_pretrained(tmp_path)
    again = Mask2FormerForUniversalSegmentation.from_pretrained(tmp_path)
    logits = model(pixels).class_queries_logits
    assert logits.shape == (1, 5, 4)
    assert torch.equal(again(pixels).class_queries_logits, logits)


# ---- pretraining


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_teacher_moves_by_the_formula_in_float32(method: Method, dtype: torch.dtype, tmp_path: Path) -> None:
    model = method.model("ForPreTraining")
    randomise(model.teacher, seed=5)
    model.save_pretrained(tmp_path)
    model = type(model).from_pretrained(tmp_path, dtype=dtype)
    state = {name: value.clone() for name, value in model.state_dict().items()}
    model.update_teacher(0.996)
    for name, value in model.state_dict().items():
        if not name.startswith("teacher."):
            assert torch.equal(value, state[name]), name
            assert value.dtype == (torch.float32 if name in method.centers else dtype)
            continue
        student = state[name.removeprefix("teacher.")].double()
        expected = 0.996 * state[name].double() + 0.004 * student
        assert value.dtype == torch.float32
        torch.testing.assert_close(value.double(), expected, rtol=0, atol=1e-7, msg=name)
    model.update_teacher(1.0)
    model.update_teacher(0.0)
    for teacher, student in zip(*model.teacher_pairs(), strict=True):
        assert torch.equal(teacher, student.float())
    model.update_teacher(1.0)
    for teacher, student in zip(*model.teacher_pairs(), strict=True):
        assert torch.equal(teacher, student.float())


@pytest.mark.parametrize("momentum", [-0.1, 1.1, float("nan"), float("inf")])
def test_teacher_momentum_outside_0_to_1_is_refused(method: Method, momentum: float) -> None:
    model = method.kind("ForPreTraining")(method.config(num_hidden_layers=1))
    with pytest.raises(ValueError, match=r"momentum must be in \[0, 1\]"):
        model.update_teacher(momentum)


def test_forward_changes_nothing_and_only_the_student_is_trained_all_of_it(method: Method) -> None:
    model = method.model("ForPreTraining", drop_path_rate=0.2).train()
    randomise(model.teacher, seed=5).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    assert tuple(name for name, _ in model.named_buffers()) == method.centers
    for _ in range(2):
        model(**method.batch()).loss.backward()
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name
    for name, parameter in model.named_parameters():
        if name.startswith("teacher."):
            assert parameter.grad is None, name
            assert not parameter.requires_grad, name
        else:
            assert parameter.grad is not None, f"{name} is not trained"


def test_losses_stay_float32_under_autocast_and_in_a_half_precision_student(method: Method, tmp_path: Path) -> None:
    model, batch = method.model("ForPreTraining", std=0.1), method.batch()
    model.save_pretrained(tmp_path)
    half = type(model).from_pretrained(tmp_path, dtype=torch.bfloat16)  # the teacher stays in float32
    found = {}
    for name, one, autocast in (("float32", model, False), ("autocast", model, True), ("half", half, False)):
        torch.manual_seed(0)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
            found[name] = one(**batch)
    names = [name for name, value in found["float32"].items() if name.endswith("loss") and value is not None]
    assert len(names) > 2
    for kind in ("autocast", "half"):
        for name in names:
            assert found[kind][name].dtype == torch.float32, name
            assert found[kind][name].item() == pytest.approx(found["float32"][name].item(), abs=0.03), name
    found["half"].loss.backward()
    assert all(p.grad.isfinite().all() for p in half.parameters() if p.requires_grad)


def test_hidden_states_of_pretraining_come_from_the_student(method: Method) -> None:
    model, batch = method.model("ForPreTraining"), method.batch()
    outputs = model(**batch, output_hidden_states=True)
    last = method.trunk(model).layernorm(outputs.hidden_states[-1])
    assert len(outputs.hidden_states) == 5
    assert last.grad_fn is not None
    assert model(**batch).hidden_states is None
