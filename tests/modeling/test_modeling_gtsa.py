"""GTSA's models and pretraining: initial values, teacher, batches that do not fit, precision."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from hf_geossl import GTSAConfig, GTSAForPreTraining
from hf_geossl.hub.export import export_model
from tests.helpers.methods import METHODS, images, randomise
from tests.helpers.methods import gtsa_batch as _batch

_config = METHODS["gtsa"].config


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


def test_the_teacher_has_no_stochastic_depth(tmp_path: Path) -> None:
    model = GTSAForPreTraining(_config(drop_path_rate=0.3))
    model.save_pretrained(tmp_path)
    for one in (model, GTSAForPreTraining.from_pretrained(tmp_path), copy.deepcopy(model)):
        assert [layer.drop_path.rate for layer in one.teacher.gtsa.encoder.layer] == [0.0] * 4
    model.train()
    views = images(2, 3, 32, 32)
    assert torch.equal(model.teacher.gtsa(views).last_hidden_state, model.teacher.gtsa(views).last_hidden_state)


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
    for ours, student in zip(*model.teacher_pairs(), strict=True):
        assert torch.equal(ours, student)
        assert ours.data_ptr() != student.data_ptr()
        assert not ours.requires_grad


def test_initializer_range_is_honoured() -> None:
    torch.manual_seed(0)
    model = GTSAForPreTraining(_config(hidden_size=96, initializer_range=0.3))
    for name in ("gtsa.encoder.layer.1.mlp.fc1.weight", "projector.blocks.0.convolution.weight"):
        assert model.get_parameter(name).std().item() == pytest.approx(0.3, rel=0.05), name


def test_heads_start_as_ever_beside_an_exported_trunk(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = GTSAForPreTraining(_config(hidden_size=96, rotation_hidden_sizes=(64, 48)))
    randomise(model.teacher, std=1.0, seed=1)
    export_model(model, tmp_path / "exported", weights="teacher")
    again = GTSAForPreTraining.from_pretrained(tmp_path / "exported")
    fresh = GTSAForPreTraining(again.config)
    fresh.projector, fresh.predictor, fresh.rotation_head = again.projector, again.predictor, again.rotation_head
    _check_initial_values(fresh)


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
    model, batch = randomise(GTSAForPreTraining(_config())), _batch(1, 0)
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
    model = randomise(GTSAForPreTraining(_config()), std=0.5)
    head, x = model.rotation_head, images(3, 32)
    for index, (linear, norm) in enumerate(zip(head.linears, head.norms, strict=True)):
        x = x @ linear.weight.T + linear.bias
        x = (x - x.mean(-1, keepdim=True)) / (x.var(-1, unbiased=False, keepdim=True) + 1e-5).sqrt()
        x = x * norm.weight + norm.bias
        x = x * 0.5 * (1 + torch.erf(x / 2**0.5)) if index == 0 else x
    expected = x @ head.classifier.weight.T + head.classifier.bias
    torch.testing.assert_close(head(images(3, 32)), expected, rtol=0, atol=1e-5)


def test_losses_are_float32_under_bf16_autocast() -> None:
    model, batch = randomise(GTSAForPreTraining(_config()), std=0.1), _batch()
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
    model, batch = randomise(GTSAForPreTraining(_config())), _batch()
    outputs = model(**batch, output_hidden_states=True)
    expected = model.gtsa(batch["global_pixel_values"].flatten(0, 1), output_hidden_states=True).hidden_states
    for found, wanted in zip(outputs.hidden_states, expected, strict=True):
        assert torch.equal(found, wanted)
