"""The GTSA classes keep their contract: shapes, sizes, initial values, attention, heads, backbone, and teacher."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
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

from hf_geossl import (
    GTSABackbone,
    GTSAConfig,
    GTSAForImageClassification,
    GTSAForPreTraining,
    GTSAForSemanticSegmentation,
    GTSAModel,
    load_backbone,
)
from hf_geossl.modeling.modeling_vit import ViTDropPath, resample_positions
from hf_geossl.training.export import export_model


def _config(**fields: Any) -> GTSAConfig:
    small = {
        "hidden_size": 32,
        "num_hidden_layers": 4,
        "num_attention_heads": 2,
        "image_size": 32,
        "patch_size": 8,
        "projector_hidden_size": 24,
        "projection_size": 20,
        "predictor_hidden_size": 28,
        "rotation_hidden_sizes": (16, 12),
        "roi_output_sizes": (4, 2),
        "num_matches": (6, 3),
        "drop_path_rate": 0.0,
    }
    return GTSAConfig(**{**small, **fields})


def _randomise(model: nn.Module, std: float = 0.2, seed: int = 0) -> Any:
    """Weights that no initialisation would give, so that every part matters."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        with torch.no_grad():
            parameter.normal_(std=std, generator=generator)
    return model.eval()


def _images(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def _batch(num_global: int = 2, num_local: int = 2, batch_size: int = 3) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(7)
    views = num_global + num_local
    low = torch.rand(batch_size, views, 2, generator=generator) * 40
    high = 60 + torch.rand(batch_size, views, 2, generator=generator) * 40
    return {
        "global_pixel_values": torch.randn(batch_size, num_global, 3, 32, 32, generator=generator),
        "local_pixel_values": torch.randn(batch_size, num_local, 3, 16, 16, generator=generator),
        "crop_boxes": torch.cat([low, high], dim=-1).round(),
        "quarter_turns": torch.randint(0, 4, (batch_size, views), generator=generator),
    }


# ---- the trunk


def _literal_trunk(model: GTSAModel, pixel_values: torch.Tensor) -> torch.Tensor:
    """Section 2.3 of the method written out in float64, from the weights alone."""
    config, state = model.config, {name: value.double() for name, value in model.state_dict().items()}
    width, heads, patch = config.hidden_size, config.num_attention_heads, config.patch_size

    def norm(x: torch.Tensor, name: str) -> torch.Tensor:
        return F.layer_norm(x, (width,), state[f"{name}.weight"], state[f"{name}.bias"], config.layer_norm_eps)

    def linear(x: torch.Tensor, name: str) -> torch.Tensor:
        return x @ state[f"{name}.weight"].T + state[f"{name}.bias"]

    kernel = state["embeddings.patch_embeddings.weight"]
    tokens = F.conv2d(pixel_values.double(), kernel, state["embeddings.patch_embeddings.bias"], stride=patch)
    rows, columns = tokens.shape[-2:]
    positions = state["embeddings.position_embeddings"]
    side = config.image_size // patch
    table = positions[:, 1:].reshape(1, side, side, width).permute(0, 3, 1, 2)
    if (rows, columns) != (side, side):
        factor = ((rows + 0.1) / side, (columns + 0.1) / side)
        table = F.interpolate(table, scale_factor=factor, mode="bicubic", align_corners=False)
    tokens = (tokens + table).flatten(2).transpose(1, 2)
    first = (state["embeddings.cls_token"] + positions[:, :1]).expand(len(tokens), -1, -1)
    x = torch.cat([first, tokens], dim=1)
    for index in range(config.num_hidden_layers):
        name = f"encoder.layer.{index}"
        q, k, v = linear(norm(x, f"{name}.norm1"), f"{name}.attention.qkv").split(width, dim=-1)
        heads_of = [t.unflatten(-1, (heads, width // heads)).transpose(1, 2) for t in (q, k, v)]
        weights = (heads_of[0] @ heads_of[1].mT * (width // heads) ** -0.5).softmax(-1)
        mixed = (weights @ heads_of[2]).transpose(1, 2).flatten(2)
        x = x + linear(mixed, f"{name}.attention.projection")
        hidden = linear(norm(x, f"{name}.norm2"), f"{name}.mlp.fc1")
        x = x + linear(hidden * 0.5 * (1 + torch.erf(hidden / 2**0.5)), f"{name}.mlp.fc2")
    return norm(x, "layernorm")


@pytest.mark.parametrize("size", [(32, 32), (64, 64), (16, 16), (24, 56), (8, 8), (16, 64)])
def test_trunk_equals_the_formulas_at_any_size_divisible_by_the_patch(size: tuple[int, int]) -> None:
    model, pixels = _randomise(GTSAModel(_config())), _images(2, 3, *size)
    outputs = model(pixels)
    expected = _literal_trunk(model, pixels)
    assert outputs.last_hidden_state.shape == (2, 1 + size[0] * size[1] // 64, 32)
    torch.testing.assert_close(outputs.last_hidden_state.double(), expected, rtol=0, atol=5e-5)
    torch.testing.assert_close(outputs.pooler_output.double(), expected[:, 1:].mean(1), rtol=0, atol=5e-5)


def test_other_channels_and_a_table_that_is_not_square() -> None:
    """A table made for 16 x 64 pixels is used as it is there, and turned into 4 x 4 positions at 32 x 32."""
    model = _randomise(GTSAModel(_config(num_channels=5, image_size=[16, 64], num_hidden_layers=1)))
    embedded = model.embeddings(torch.zeros(1, 5, 16, 64))[0, 1:]
    bias = model.embeddings.patch_embeddings.bias
    torch.testing.assert_close(embedded - bias, model.embeddings.position_embeddings[0, 1:], rtol=0, atol=1e-6)
    table = model.embeddings.position_embeddings[:, 1:].reshape(1, 2, 8, 32).permute(0, 3, 1, 2)
    table = F.interpolate(table, scale_factor=(4.1 / 2, 4.1 / 8), mode="bicubic")[0].flatten(1).T
    embedded = model.embeddings(torch.zeros(1, 5, 32, 32))[0, 1:]
    torch.testing.assert_close(embedded - bias, table, rtol=0, atol=1e-5)


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
def test_images_that_do_not_fit_are_refused(shape: tuple[int, ...], told: str) -> None:
    config = _config(num_labels=3, num_hidden_layers=1)
    for model in (GTSAModel(config), GTSABackbone(config), GTSAForSemanticSegmentation(config)):
        with pytest.raises(ValueError, match=told):
            model(torch.zeros(shape))


@pytest.mark.parametrize(
    "fields",
    [
        {"hidden_size": 0},
        {"patch_size": -8},
        {"image_size": 36},
        {"image_size": [32, 4]},
        {"drop_path_rate": 1.0},
        {"num_matches": (6,)},
        {"roi_output_sizes": (4, 0)},
        {"rotation_hidden_sizes": ()},
        {"rotation_hidden_sizes": (16, 0)},
        {"projection_size": 0},
        {"position_interpolation_offset": 1.0},
        {"position_interpolation_offset": -0.1},
    ],
)
def test_configurations_that_make_no_sense_are_refused_by_name(fields: dict[str, Any]) -> None:
    with pytest.raises(Exception, match=next(iter(fields))):
        _config(**fields)


def test_heads_that_do_not_divide_the_width_are_refused() -> None:
    with pytest.raises(ValueError, match="multiple of num_attention_heads, got 33 and 2"):
        GTSAModel(_config(hidden_size=33))


def test_parameter_counts_of_the_papers_small() -> None:
    with torch.device("meta"):
        model = GTSAForPreTraining(GTSAConfig())

    def count(module: nn.Module, trained: bool = False) -> int:
        return sum(p.numel() for p in module.parameters() if p.requires_grad or not trained)

    assert count(model.gtsa) == 21_665_664
    assert count(model.projector) == 2_950_656
    assert count(model.predictor) == 5_899_776
    assert count(model.rotation_head) == 988_548
    assert count(model, trained=True) == 31_504_644
    assert count(model) == 56_120_964


# ---- positions


@pytest.mark.parametrize("grid", [(6, 6), (10, 10), (14, 7), (20, 9), (28, 28), (1, 1)])
def test_position_resampling_is_torchs_with_the_offset_in_the_scale(grid: tuple[int, int]) -> None:
    table = _images(14, 14, 8)
    stacked = table.permute(2, 0, 1)[None]
    scale = ((grid[0] + 0.1) / 14, (grid[1] + 0.1) / 14)
    expected = F.interpolate(stacked, scale_factor=scale, mode="bicubic", align_corners=False, antialias=False)
    torch.testing.assert_close(resample_positions(table, *grid, 0.1), expected[0].permute(1, 2, 0), rtol=0, atol=0)
    exact = F.interpolate(stacked, size=grid, mode="bicubic", align_corners=False, antialias=False)
    torch.testing.assert_close(resample_positions(table, *grid), exact[0].permute(1, 2, 0), rtol=0, atol=0)
    assert (expected - exact).abs().max() > 1e-2, "the two ways must differ for this to say anything"


def test_offset_never_changes_the_size_of_the_grid() -> None:
    for side in (1, 2, 3, 7, 14, 37):
        table = torch.zeros(side, side, 1)
        for offset in (0.0, 0.1, 0.5, 0.99):
            for new in range(1, 65):
                assert resample_positions(table, new, 65 - new, offset).shape == (new, 65 - new, 1)


def test_positions_are_resampled_in_float32_and_come_back_in_their_dtype() -> None:
    table = _images(4, 4, 8).bfloat16()
    found = resample_positions(table, 7, 3, 0.1)
    assert found.dtype == torch.bfloat16
    assert torch.equal(found, resample_positions(table.float(), 7, 3, 0.1).bfloat16())


# ---- stochastic depth


def test_stochastic_depth_grows_linearly_in_the_student_and_is_off_in_the_teacher(tmp_path: Path) -> None:
    model = GTSAForPreTraining(_config(drop_path_rate=0.3))
    model.save_pretrained(tmp_path)
    for one in (model, GTSAForPreTraining.from_pretrained(tmp_path), copy.deepcopy(model)):
        rates = [layer.drop_path.rate for layer in one.gtsa.encoder.layer]
        assert rates == pytest.approx(torch.linspace(0, 0.3, 4).tolist())
        assert [layer.drop_path.rate for layer in one.teacher.gtsa.encoder.layer] == [0.0] * 4
    assert [layer.drop_path.rate for layer in GTSAModel(_config(num_hidden_layers=1)).encoder.layer] == [0.0]
    model.train()
    views = _images(2, 3, 32, 32)
    assert torch.equal(model.teacher.gtsa(views).last_hidden_state, model.teacher.gtsa(views).last_hidden_state)


def test_stochastic_depth_drops_whole_samples_and_keeps_the_mean() -> None:
    torch.manual_seed(0)
    drop = ViTDropPath(0.3)
    found = drop(torch.ones(20_000, 2, 3))
    assert found.unique().tolist() == pytest.approx([0.0, 1 / 0.7])
    assert torch.equal(found, found[:, :1, :1].expand(-1, 2, 3))
    assert found.mean().item() == pytest.approx(1.0, abs=4 * (0.3 / 0.7 / 20_000) ** 0.5)
    assert torch.equal(drop.eval()(torch.ones(5, 2, 3)), torch.ones(5, 2, 3))


def test_both_branches_of_a_layer_are_dropped_on_their_own() -> None:
    torch.manual_seed(0)
    layer = _randomise(GTSAModel(_config(drop_path_rate=0.5))).encoder.layer[-1].train()
    x = _images(1, 5, 32).expand(256, -1, -1)
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


# ---- initial values


def _check_initial_values(model: GTSAForPreTraining) -> None:
    std = 0.02
    for name, p in model.named_parameters():
        if name.startswith("teacher."):
            continue
        if "patch_embeddings" in name or ("rotation_head" in name and "norms" not in name):
            weight = p if p.ndim > 1 else model.get_parameter(name.removesuffix("bias") + "weight")
            bound = weight[0].numel() ** -0.5
            assert p.abs().max() <= bound, name
            if p.ndim > 1:
                assert p.std().item() == pytest.approx(bound / 3**0.5, rel=0.1), name
                assert p.abs().max() > 0.97 * bound, name
            else:
                assert p.abs().max() > 0.2 * bound, name
        elif "norm" in name:
            assert torch.equal(p, torch.ones_like(p) if name.endswith("weight") else torch.zeros_like(p)), name
        elif name.endswith("bias"):
            assert not p.any(), name
        else:
            share = 4 / (2 * p.numel()) ** 0.5  # four standard errors of a standard deviation
            assert p.std().item() == pytest.approx(std, rel=share), name
            assert abs(p.mean().item()) < 4 * std / p.numel() ** 0.5, name
            assert p.numel() < 5000 or p.abs().max() > 2.5 * std, f"{name} is normal, not cut at two deviations"


def test_every_kind_of_parameter_starts_as_specified() -> None:
    torch.manual_seed(0)
    model = GTSAForPreTraining(_config(hidden_size=96, rotation_hidden_sizes=(64, 48)))
    _check_initial_values(model)
    kinds = {name.rpartition(".")[2] for name, _ in model.named_parameters()}
    assert kinds == {"weight", "bias", "cls_token", "position_embeddings"}
    for ours, student in zip(*model._teacher_pairs(), strict=True):
        assert torch.equal(ours, student)
        assert ours.data_ptr() != student.data_ptr()
        assert not ours.requires_grad


def test_initializer_range_is_honoured() -> None:
    torch.manual_seed(0)
    model = GTSAForPreTraining(_config(hidden_size=96, initializer_range=0.3))
    for name in ("gtsa.encoder.layer.1.mlp.fc1.weight", "projector.blocks.0.convolution.weight"):
        assert model.get_parameter(name).std().item() == pytest.approx(0.3, rel=0.05), name


@pytest.mark.parametrize(
    "kind", [GTSAModel, GTSABackbone, GTSAForImageClassification, GTSAForSemanticSegmentation, GTSAForPreTraining]
)
def test_from_pretrained_loads_every_weight(kind: Any, tmp_path: Path) -> None:
    model = _randomise(kind(_config(num_labels=3, num_hidden_layers=3)), std=1.0)
    model.save_pretrained(tmp_path)
    loaded, info = kind.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert not loaded.training
    state = loaded.state_dict()
    assert state.keys() == model.state_dict().keys()
    for name, value in model.state_dict().items():
        assert torch.equal(state[name], value), name


def test_a_missing_weight_is_made_and_its_neighbours_are_loaded(tmp_path: Path) -> None:
    model = _randomise(GTSAForPreTraining(_config()), std=1.0)
    state = model.state_dict()
    missing = {
        "gtsa.encoder.layer.0.mlp.fc1.bias": 0.0,
        "gtsa.layernorm.weight": 1.0,
        "teacher.gtsa.layernorm.bias": 0.0,  # the rest of the teacher is not replaced by the student
        "projector.blocks.0.convolution.bias": 0.0,
    }
    model.save_pretrained(tmp_path, state_dict={name: value for name, value in state.items() if name not in missing})
    loaded, info = GTSAForPreTraining.from_pretrained(tmp_path, output_loading_info=True)
    assert info["missing_keys"] == set(missing)
    for name, value in loaded.state_dict().items():
        expected = torch.full_like(value, missing[name]) if name in missing else state[name]
        assert torch.equal(value, expected), name


def test_continuing_from_an_exported_trunk_starts_the_teacher_as_the_student(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = GTSAForPreTraining(_config(hidden_size=96, rotation_hidden_sizes=(64, 48)))
    _randomise(model.teacher, std=1.0, seed=1)
    _randomise(model.gtsa, std=1.0, seed=2)
    for weights, trunk in (("teacher", model.teacher.gtsa), ("student", model.gtsa)):
        export_model(model, tmp_path / weights, weights=weights)
        expected = trunk.state_dict()
        again = GTSAForPreTraining.from_pretrained(tmp_path / weights)
        for name, value in again.gtsa.state_dict().items():
            assert torch.equal(value, expected[name]), name
        for teacher, student in zip(*again._teacher_pairs(), strict=True):
            assert torch.equal(teacher, student)
        fresh = GTSAForPreTraining(again.config)  # the heads, which the folder does not hold, start as ever
        fresh.projector, fresh.predictor, fresh.rotation_head = again.projector, again.predictor, again.rotation_head
        _check_initial_values(fresh)


# ---- attention, outputs, memory, precision


@pytest.mark.filterwarnings("ignore:flex_attention called without")
def test_attention_implementations_agree() -> None:
    model, pixels = _randomise(GTSAModel(_config(num_hidden_layers=2)), std=0.1), _images(2, 3, 32, 40)
    found = {}
    for implementation in ("eager", "sdpa", "flex_attention"):
        model.set_attn_implementation(implementation)
        assert model.encoder.layer[0].attention.config._attn_implementation == implementation
        with torch.no_grad(), torch.compiler.set_stance("force_eager"):  # flex would compile itself, for 10 s
            found[implementation] = model(pixels).last_hidden_state.double()
    expected = _literal_trunk(model, pixels)
    for implementation, tokens in found.items():
        torch.testing.assert_close(tokens, expected, rtol=0, atol=2e-5, msg=implementation)


def test_hidden_states_and_attentions() -> None:
    model = _randomise(GTSAModel._from_config(_config(), attn_implementation="eager"))
    pixels = _images(2, 3, 16, 24)
    outputs = model(pixels, output_hidden_states=True, output_attentions=True)
    assert [tuple(hidden.shape) for hidden in outputs.hidden_states] == [(2, 7, 32)] * 5
    assert torch.equal(outputs.hidden_states[0], model.embeddings(pixels))
    assert torch.equal(model.layernorm(outputs.hidden_states[-1]), outputs.last_hidden_state)
    hidden = outputs.hidden_states[0]
    for layer, expected in zip(model.encoder.layer, outputs.hidden_states[1:], strict=True):
        hidden = layer(hidden)
        assert torch.equal(hidden, expected)
    assert [tuple(weights.shape) for weights in outputs.attentions] == [(2, 2, 7, 7)] * 4
    for weights in outputs.attentions:
        torch.testing.assert_close(weights.sum(-1), torch.ones(2, 2, 7))
    plain = model(pixels)
    assert plain.hidden_states is None
    assert plain.attentions is None
    assert torch.equal(plain.last_hidden_state, outputs.last_hidden_state)
    as_tuple = model(pixels, return_dict=False)
    assert torch.equal(as_tuple[0], plain.last_hidden_state)
    assert torch.equal(as_tuple[1], plain.pooler_output)


def test_gradient_checkpointing_gives_the_same_gradients() -> None:
    model = _randomise(GTSAForPreTraining(_config(drop_path_rate=0.5)), std=0.1).train()
    found = []
    for checkpointing in (False, True):
        if checkpointing:
            model.gradient_checkpointing_enable()
            assert model.gtsa.encoder.layer[0].gradient_checkpointing
        model.zero_grad()
        torch.manual_seed(3)  # the same samples are dropped, also when a layer is run again
        loss = model(**_batch()).loss
        loss.backward()
        found.append((loss.item(), {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}))
    assert found[0][0] == found[1][0]
    assert found[0][1].keys() == found[1][1].keys()
    for name, gradient in found[0][1].items():
        torch.testing.assert_close(found[1][1][name], gradient, rtol=1e-5, atol=1e-7, msg=name)


def test_bf16_trunk_is_near_float32() -> None:
    model, pixels = _randomise(GTSAModel(_config()), std=0.1), _images(2, 3, 48, 24)
    expected = model(pixels).last_hidden_state
    model = model.to(torch.bfloat16)
    for given in (pixels, pixels.bfloat16()):
        found = model(given).last_hidden_state
        assert found.dtype == torch.bfloat16
        assert F.cosine_similarity(found.float(), expected, dim=-1).min() > 0.999


def test_trunk_compiles_to_one_graph_equal_to_eager() -> None:
    torch._dynamo.reset()
    model = _randomise(GTSAModel(_config(num_hidden_layers=2)), std=0.1)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    for size in ((32, 32), (16, 40)):
        pixels = _images(2, 3, *size)
        torch.testing.assert_close(
            compiled(pixels).last_hidden_state, model(pixels).last_hidden_state, rtol=0, atol=1e-5
        )
    torch._dynamo.reset()


# ---- heads


def test_classification_is_mean_patch_norm_linear() -> None:
    model = _randomise(GTSAForImageClassification(_config(num_labels=5, layer_norm_eps=1e-3)))
    pixels, labels = _images(4, 3, 24, 32), torch.tensor([0, 4, 2, 2])
    outputs = model(pixels, labels=labels)
    mean = model.gtsa(pixels).last_hidden_state[:, 1:].mean(1)
    mean = (mean - mean.mean(-1, keepdim=True)) / (mean.var(-1, unbiased=False, keepdim=True) + 1e-3).sqrt()
    expected = (mean * model.norm.weight + model.norm.bias) @ model.classifier.weight.T + model.classifier.bias
    torch.testing.assert_close(outputs.logits, expected, rtol=0, atol=1e-5)
    nll = -expected.log_softmax(-1)[torch.arange(4), labels].mean()
    assert outputs.loss.item() == pytest.approx(nll.item(), abs=1e-5)
    assert model(pixels).loss is None


def test_segmentation_is_linear_on_patches_then_bilinear() -> None:
    model = _randomise(GTSAForSemanticSegmentation(_config(num_labels=5)))
    pixels = _images(2, 3, 24, 40)
    tokens = model.gtsa(pixels).last_hidden_state[:, 1:]
    scores = (tokens @ model.classifier.weight.T + model.classifier.bias).reshape(2, 3, 5, 5).permute(0, 3, 1, 2)
    rows = (torch.arange(24) + 0.5) / 8 - 0.5  # where each pixel lies between the patches, clamped at the edge
    columns = (torch.arange(40) + 0.5) / 8 - 0.5

    def hat(at: torch.Tensor, length: int) -> torch.Tensor:
        at = at.clamp(0, length - 1)
        return (1 - (at[:, None] - torch.arange(length)).abs()).clamp_min(0)

    expected = hat(rows, 3) @ scores @ hat(columns, 5).T
    torch.testing.assert_close(model(pixels).logits, expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("ignored", [255, 7, -1])
def test_segmentation_loss_leaves_the_ignored_label_out(ignored: int) -> None:
    model = _randomise(GTSAForSemanticSegmentation(_config(num_labels=5, semantic_loss_ignore_index=ignored)))
    pixels = _images(2, 3, 16, 24)
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
def test_segmentation_labels_of_another_size_are_refused(shape: tuple[int, ...]) -> None:
    model = GTSAForSemanticSegmentation(_config(num_labels=3, num_hidden_layers=1))
    with pytest.raises(ValueError, match=r"labels must have shape \(2, 16, 24\)"):
        model(torch.zeros(2, 3, 16, 24), labels=torch.zeros(shape, dtype=torch.long))


@pytest.mark.parametrize("kind", [GTSAForImageClassification, GTSAForSemanticSegmentation])
def test_accumulated_batches_move_the_weights_as_one_large_batch(kind: Any, tmp_path: Path) -> None:
    """transformers' Trainer does not divide the loss where it believes that the model does."""
    label = torch.tensor(1) if kind is GTSAForImageClassification else torch.arange(256).reshape(16, 16) % 3
    data = [{"pixel_values": _images(3, 16, 16, seed=i), "labels": (label + i) % 3} for i in range(4)]
    moved = []
    for batch_size, accumulation in ((4, 1), (1, 4)):
        model = _randomise(kind(_config(num_labels=3, num_hidden_layers=1)))
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


def test_backbone_gives_the_trunks_layers_as_maps_and_as_tokens() -> None:
    config = _config(out_indices=[0, 2, 4])
    trunk = _randomise(GTSAModel(config))
    pixels = _images(2, 3, 24, 40)
    hidden = trunk(pixels, output_hidden_states=True).hidden_states
    for normalised in (True, False):
        for reshaped in (True, False):
            config = _config(out_indices=[0, 2, 4], apply_layernorm=normalised, reshape_hidden_states=reshaped)
            backbone = GTSABackbone(config).eval()
            backbone.load_state_dict(trunk.state_dict())
            assert backbone.out_features == ["stem", "stage2", "stage4"]
            assert backbone.channels == [32, 32, 32]
            outputs = backbone(pixels)
            assert outputs.hidden_states is None
            for found, index in zip(outputs.feature_maps, (0, 2, 4), strict=True):
                expected = trunk.layernorm(hidden[index]) if normalised else hidden[index]
                if reshaped:
                    expected = torch.stack([expected[:, 1 + i].T.T for i in range(15)], dim=1)
                    expected = expected.reshape(2, 3, 5, 32).permute(0, 3, 1, 2)
                torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)
    assert len(backbone(pixels, output_hidden_states=True).hidden_states) == 5


def test_upernet_trains_saves_and_reloads(tmp_path: Path) -> None:
    trunk = _randomise(GTSAModel(_config()), std=0.1)
    trunk.save_pretrained(tmp_path / "trunk")
    config = UperNetConfig(
        backbone_config=_config(out_indices=[1, 2, 3, 4]),
        hidden_size=16,
        auxiliary_in_channels=32,
        auxiliary_channels=8,
        pool_scales=[1, 2],
        num_labels=3,
    )
    torch.manual_seed(0)
    model = UperNetForSemanticSegmentation(config).eval()
    _randomise(model)
    pretrained = load_backbone(str(tmp_path / "trunk"), out_indices=[1, 2, 3, 4])
    model.backbone.load_state_dict(pretrained.state_dict())
    pixels = _images(2, 3, 32, 48)
    maps = model.backbone(pixels).feature_maps
    expected = trunk(pixels).last_hidden_state[:, 1:].transpose(1, 2).reshape(2, 32, 4, 6)
    torch.testing.assert_close(maps[-1], expected, rtol=0, atol=1e-6)
    model.save_pretrained(tmp_path / "segmenter")
    again = UperNetForSemanticSegmentation.from_pretrained(tmp_path / "segmenter")
    logits = model(pixels).logits
    assert logits.shape == (2, 3, 32, 48)
    torch.testing.assert_close(again(pixels).logits, logits, rtol=0, atol=1e-5 * logits.abs().max().item())
    again.train()(pixels, labels=torch.zeros(2, 32, 48, dtype=torch.long)).loss.backward()
    assert again.backbone.embeddings.cls_token.grad.norm() > 0


def test_dpt_takes_the_backbones_tokens(tmp_path: Path) -> None:
    config = DPTConfig(
        backbone_config=_config(out_indices=[1, 2, 3, 4], reshape_hidden_states=False, apply_layernorm=False),
        neck_hidden_sizes=[8, 8, 16, 16],
        fusion_hidden_size=8,
        head_in_index=-1,
        readout_type="project",
        hidden_size=32,
        patch_size=8,
    )
    torch.manual_seed(0)
    model = DPTForDepthEstimation(config).eval()
    _randomise(model.backbone, std=0.1)
    pixels = _images(1, 3, 32, 32)
    tokens = model.backbone(pixels).feature_maps
    expected = model.backbone(pixels, output_hidden_states=True).hidden_states[1:]
    for found, wanted in zip(tokens, expected, strict=True):
        assert found.shape == (1, 17, 32)
        assert torch.equal(found, wanted)
    model.save_pretrained(tmp_path)
    depth = model(pixels).predicted_depth
    assert torch.equal(DPTForDepthEstimation.from_pretrained(tmp_path)(pixels).predicted_depth, depth)


def test_mask2former_takes_the_backbone(tmp_path: Path) -> None:
    config = Mask2FormerConfig(
        backbone_config=_config(out_indices=[1, 2, 3, 4]),
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
    backbone = model.model.pixel_level_module.encoder
    assert type(backbone) is GTSABackbone
    pixels = _images(1, 3, 64, 64)
    model.save_pretrained(tmp_path)
    again = Mask2FormerForUniversalSegmentation.from_pretrained(tmp_path)
    logits = model(pixels).class_queries_logits
    assert logits.shape == (1, 5, 4)
    assert torch.equal(again(pixels).class_queries_logits, logits)


# ---- pretraining


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"global_pixel_values": torch.zeros(3, 2, 3, 32, 24)}, "global_pixel_values must .* square"),
        ({"local_pixel_values": torch.zeros(3, 2, 3, 16, 8)}, "local_pixel_values must .* square"),
        ({"global_pixel_values": torch.zeros(3, 3, 32, 32)}, "global_pixel_values must have shape"),
        ({"global_pixel_values": torch.zeros(3, 0, 3, 32, 32)}, "at least one view"),
        ({"global_pixel_values": torch.zeros(3, 2, 3, 36, 36)}, "multiples of the patch size 8, got 36 x 36"),
        ({"local_pixel_values": torch.zeros(2, 2, 3, 16, 16)}, "same 3 images, got 2"),
        ({"local_pixel_values": torch.zeros(3, 2, 1, 16, 16)}, "pixel_values must have shape"),
        ({"crop_boxes": torch.zeros(3, 3, 4)}, r"crop_boxes must have shape \(3, 4, 4\)"),
        ({"crop_boxes": torch.zeros(12, 4)}, r"crop_boxes must have shape \(3, 4, 4\)"),
        ({"crop_boxes": None}, "crop_boxes and quarter_turns are needed"),
        ({"quarter_turns": torch.zeros(4, 3)}, r"quarter_turns must have shape \(3, 4\)"),
        ({"quarter_turns": None}, "crop_boxes and quarter_turns are needed"),
        ({"local_pixel_values": None}, r"crop_boxes must have shape \(3, 2, 4\)"),
    ],
)
def test_batches_that_do_not_fit_together_are_refused(change: dict[str, Any], told: str) -> None:
    model = GTSAForPreTraining(_config(num_hidden_layers=1))
    with pytest.raises(ValueError, match=told):
        model(**{**_batch(), **change})


@pytest.mark.parametrize("without", ["none", "empty"])
def test_one_global_view_alone_has_no_pair_losses(without: str) -> None:
    model, batch = _randomise(GTSAForPreTraining(_config())), _batch(1, 0)
    if without == "none":
        batch["local_pixel_values"] = None
    outputs = model(**batch)
    assert outputs.crop_loss.item() == 0.0
    assert outputs.correspondence_loss.item() == 0.0
    tokens = model.gtsa(batch["global_pixel_values"][:, 0]).last_hidden_state[:, 1:]
    logits = model.rotation_head(tokens.mean(1))
    expected = F.cross_entropy(logits, batch["quarter_turns"][:, 0])
    assert outputs.rotation_loss.item() == pytest.approx(expected.item(), abs=1e-6)
    assert outputs.loss.item() == pytest.approx(0.5 * expected.item(), abs=1e-6)
    outputs.loss.backward()
    assert model.gtsa.embeddings.cls_token.grad.isfinite().all()


def test_rotation_head_has_no_gelu_before_its_last_layer() -> None:
    model = _randomise(GTSAForPreTraining(_config()), std=0.5)
    head, x = model.rotation_head, _images(3, 32)
    for index, (linear, norm) in enumerate(zip(head.linears, head.norms, strict=True)):
        x = x @ linear.weight.T + linear.bias
        x = (x - x.mean(-1, keepdim=True)) / (x.var(-1, unbiased=False, keepdim=True) + 1e-5).sqrt()
        x = x * norm.weight + norm.bias
        x = x * 0.5 * (1 + torch.erf(x / 2**0.5)) if index == 0 else x
    expected = x @ head.classifier.weight.T + head.classifier.bias
    torch.testing.assert_close(head(_images(3, 32)), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_teacher_moves_by_the_formula_in_float32(dtype: torch.dtype, tmp_path: Path) -> None:
    model = _randomise(GTSAForPreTraining(_config()))
    _randomise(model.teacher, seed=5)
    model.save_pretrained(tmp_path)
    model = GTSAForPreTraining.from_pretrained(tmp_path, dtype=dtype)
    state = {name: value.clone() for name, value in model.state_dict().items()}
    model.update_teacher(0.996)
    for name, value in model.state_dict().items():
        if not name.startswith("teacher."):
            assert torch.equal(value, state[name]), name
            assert value.dtype == dtype
            continue
        student = state[name.removeprefix("teacher.")].double()
        expected = 0.996 * state[name].double() + 0.004 * student
        assert value.dtype == torch.float32
        torch.testing.assert_close(value.double(), expected, rtol=0, atol=1e-7, msg=name)
    model.update_teacher(1.0)
    model.update_teacher(0.0)
    for teacher, student in zip(*model._teacher_pairs(), strict=True):
        assert torch.equal(teacher, student.float())
    model.update_teacher(1.0)
    for teacher, student in zip(*model._teacher_pairs(), strict=True):
        assert torch.equal(teacher, student.float())


@pytest.mark.parametrize("momentum", [-0.1, 1.1, float("nan"), float("inf")])
def test_teacher_momentum_outside_0_to_1_is_refused(momentum: float) -> None:
    model = GTSAForPreTraining(_config(num_hidden_layers=1))
    with pytest.raises(ValueError, match=r"momentum must be in \[0, 1\]"):
        model.update_teacher(momentum)


def test_forward_changes_nothing_and_the_teacher_gets_no_gradient() -> None:
    model = _randomise(GTSAForPreTraining(_config(drop_path_rate=0.2))).train()
    _randomise(model.teacher, seed=5).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    assert [name for name, _ in model.named_buffers()] == []
    for _ in range(2):
        model(**_batch()).loss.backward()
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name
    for name, parameter in model.named_parameters():
        if name.startswith("teacher."):
            assert parameter.grad is None, name
            assert not parameter.requires_grad, name
        else:
            assert parameter.grad is not None, f"{name} is not trained"


def test_losses_are_float32_under_bf16_autocast() -> None:
    model, batch = _randomise(GTSAForPreTraining(_config()), std=0.1), _batch()
    expected = model(**batch)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = model(**batch)
    assert found.rotation_logits.dtype == torch.bfloat16, "autocast was on"
    for name in ("loss", "crop_loss", "correspondence_loss", "rotation_loss"):
        assert found[name].dtype == torch.float32, name
        assert found[name].item() == pytest.approx(expected[name].item(), abs=0.02), name
    with torch.autocast("cpu", dtype=torch.bfloat16):  # what the losses see, and then the losses without autocast
        groups = [model._encode(batch[f"{group}_pixel_values"])[0] for group in ("global", "local")]
        teacher = model._encode_teacher(batch["global_pixel_values"])
    crop, correspondence = model._pair_losses(
        groups, teacher, batch["crop_boxes"], batch["quarter_turns"], [32, 32, 16, 16], 2
    )
    rotation = F.cross_entropy(found.rotation_logits.float().flatten(0, 1), batch["quarter_turns"].flatten())
    assert found.crop_loss.item() == pytest.approx(crop.item(), abs=1e-6)
    assert found.correspondence_loss.item() == pytest.approx(correspondence.item(), abs=1e-6)
    assert found.rotation_loss.item() == pytest.approx(rotation.item(), abs=1e-6)
    assert found.loss.item() == pytest.approx((crop + 0.5 * correspondence + 0.5 * rotation).item(), abs=1e-6)


def test_hidden_states_of_pretraining_are_the_students_on_the_global_views() -> None:
    model, batch = _randomise(GTSAForPreTraining(_config())), _batch()
    outputs = model(**batch, output_hidden_states=True)
    expected = model.gtsa(batch["global_pixel_values"].flatten(0, 1), output_hidden_states=True).hidden_states
    for found, wanted in zip(outputs.hidden_states, expected, strict=True):
        assert torch.equal(found, wanted)
