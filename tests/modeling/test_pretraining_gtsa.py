"""GTSA computes what the authors' program computes: encoder, heads, losses, gradients, teacher and four steps."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import set_seed

from hf_geossl import GTSAConfig, GTSAForPreTraining
from hf_geossl.conversion import convert_gtsa_checkpoint
from hf_geossl.modeling.geometry import overlap_boxes
from tests.helpers.golden import SHARED, SHIPPED

needs_full_set = pytest.mark.skipif(
    not (SHARED / "gtsa" / "golden.safetensors").is_file(),
    reason="the full golden set (7 MB) is not shipped; test_shipped_encoder_and_heads and test_gtsa_objective run always",
)

Golden = tuple[dict[str, torch.Tensor], dict[str, Any]]


def _model(path: Path) -> GTSAForPreTraining:
    return convert_gtsa_checkpoint(path, GTSAConfig(num_attention_heads=3))


def _batch(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    views = [tensors[f"view.{index}"].float() for index in range(6)]
    return {
        "global_pixel_values": torch.stack(views[:2], dim=1),
        "local_pixel_values": torch.stack(views[2:], dim=1),
        "crop_boxes": tensors["abs_crop_boxes"],
        "quarter_turns": (tensors["angles"].T / 90).long(),
    }


def _original_name(name: str) -> str:
    """Our parameter name as the authors'."""
    for ours, theirs in (
        ("teacher.gtsa.", "momentum_encoder."),
        ("teacher.projector.", "momentum_projector."),
        ("gtsa.", "base_encoder."),
        ("projector.", "base_projector."),
        ("predictor.block.convolution.", "base_predictor.blocks.0.0."),
        ("predictor.projection.", "base_predictor.proj."),
    ):
        if name.startswith(ours):
            name = theirs + name.removeprefix(ours)
            break
    for ours, theirs in (
        ("embeddings.patch_embeddings.", "patch_embed.proj."),
        ("embeddings.position_embeddings", "pos_embed"),
        ("embeddings.cls_token", "cls_token"),
        ("encoder.layer.", "blocks."),
        ("attention.projection.", "attn.proj."),
        ("attention.qkv.", "attn.qkv."),
        ("layernorm.", "norm."),
        (".convolution.", ".0."),
        (".projection.", ".proj."),
        ("rotation_head.linears.0.", "rot_predictor.0."),
        ("rotation_head.norms.0.", "rot_predictor.1."),
        ("rotation_head.linears.1.", "rot_predictor.3."),
        ("rotation_head.norms.1.", "rot_predictor.4."),
        ("rotation_head.linears.2.", "rot_predictor.6."),
        ("rotation_head.norms.2.", "rot_predictor.7."),
        ("rotation_head.classifier.", "rot_predictor.8."),
    ):
        name = name.replace(ours, theirs)
    return name


def _close(ours: torch.Tensor, theirs: torch.Tensor, tolerance: float) -> None:
    torch.testing.assert_close(ours, theirs, rtol=0, atol=tolerance)


def test_shipped_encoder_and_heads(tmp_path: Path) -> None:
    tensors = load_file(SHIPPED / "gtsa" / "encoder.safetensors")
    state = {key.removeprefix("state."): value for key, value in tensors.items() if key.startswith("state.")}
    trunk = {k.removeprefix("base_encoder."): v for k, v in state.items() if k.startswith("base_encoder.")}
    torch.save(trunk, tmp_path / "flat.pth")
    config = GTSAConfig(num_attention_heads=3, projector_hidden_size=48, projection_size=96, predictor_hidden_size=80)
    model = convert_gtsa_checkpoint(tmp_path / "flat.pth", config)
    names = {_original_name(name): name for name in model.state_dict()}
    heads = {names[k]: v for k, v in state.items() if k.startswith(("base_projector.", "base_predictor."))}
    model.load_state_dict(heads, strict=False)
    pixels = tensors["view.2"].float()
    embedded = model.gtsa.embeddings(pixels[:1])
    _close(embedded, tensors["enc.96x96.embedded_tokens"], 1e-5)
    tokens = model.gtsa(pixels).last_hidden_state[:, 1:]
    _close(tokens, tensors["enc.96x96.patch_tokens"], 1e-5)
    projected = model.projector(tokens)
    _close(projected, tensors["proj.96x96"], 1e-5)
    _close(model.predictor(projected), tensors["pred.96x96"], 1e-5)


@needs_full_set
def test_encoder_at_224_96_and_160(golden: Golden, authors_file: Path) -> None:
    tensors, _ = golden
    model = _model(authors_file)
    for size, pixels in (("224x224", "view.0"), ("96x96", "view.2"), ("160x160", "enc.160x160.input")):
        tokens = model.gtsa(tensors[pixels].float()).last_hidden_state
        _close(tokens[:, 1:], tensors[f"enc.{size}.patch_tokens"], 1e-5)
    outputs = model.gtsa(tensors["view.2"].float()[:1], output_hidden_states=True)
    for index, hidden in enumerate(outputs.hidden_states[-2:]):
        _close(model.gtsa.layernorm(hidden), tensors[f"enc.96x96.intermediate_n2.{index}"], 1e-5)
    model.set_attn_implementation("eager")
    attentions = model.gtsa(tensors["view.2"].float()[:1], output_attentions=True).attentions
    _close(attentions[-1], tensors["enc.96x96.last_selfattention"], 1e-5)
    teacher = model.teacher.gtsa(tensors["view.2"].float()).last_hidden_state[:, 1:]
    _close(teacher, tensors["enc.96x96.teacher_patch_tokens"], 1e-5)


@needs_full_set
def test_heads(golden: Golden, authors_file: Path) -> None:
    tensors, _ = golden
    model = _model(authors_file)
    for size, rows in (("224x224", slice(0, 1)), ("96x96", slice(0, 2))):
        projected = model.projector(tensors[f"enc.{size}.patch_tokens"][rows])
        suffix = ".b0" if size == "224x224" else ""
        _close(projected, tensors[f"proj.{size}{suffix}"], 1e-5)
        _close(model.predictor(projected), tensors[f"pred.{size}{suffix}"], 1e-5)
    logits = model.rotation_head(tensors["enc.96x96.patch_tokens"].mean(1))
    _close(logits, tensors["rot_logits.96x96"], 1e-5)
    _close(model.teacher.projector(tensors["enc.96x96.teacher_patch_tokens"]), tensors["teacher_proj.96x96"], 1e-5)


@needs_full_set
def test_overlap_boxes_of_the_batch(golden: Golden) -> None:
    tensors, _ = golden
    batch = _batch(tensors)
    sizes = [224, 224, 96, 96, 96, 96]
    teacher, student = overlap_boxes(batch["crop_boxes"], batch["quarter_turns"], sizes, 2)
    _close(teacher, tensors["bbox.gc"], 1e-4)
    _close(student, tensors["bbox.all"], 1e-4)


@needs_full_set
def test_losses_gradients_and_teacher(golden: Golden, authors_file: Path) -> None:
    tensors, numbers = golden
    model = _model(authors_file)
    model.update_teacher(0.996)
    state = model.state_dict()
    names = {_original_name(name): name for name in state}
    for key, value in tensors.items():
        if key.startswith("teacher_after_ema."):
            _close(state[names[key.removeprefix("teacher_after_ema.")]], value, 2e-6)
    for key, value in numbers["teacher_after_ema_stats"].items():
        assert state[names[key]].double().norm().item() == pytest.approx(value["norm"], rel=1e-6)

    outputs = model(**_batch(tensors))
    for name, key in (
        ("crop_loss", "crop"),
        ("correspondence_loss", "pc"),
        ("rotation_loss", "rot"),
        ("loss", "total"),
    ):
        assert outputs[name].item() == pytest.approx(numbers["losses"][key], abs=2e-6), name
    outputs.loss.backward()
    squared = 0.0
    for name, parameter in model.named_parameters():
        key = _original_name(name)
        if key in numbers["params_without_grad"]:
            assert parameter.grad is None, name
            continue
        norm = parameter.grad.double().norm().item()
        squared += norm**2
        assert norm == pytest.approx(numbers["grad_norms_before_clip"][key], rel=1e-3), name
        if f"grad.{key}" in tensors:
            _close(parameter.grad, tensors[f"grad.{key}"], 1e-5)
    assert squared**0.5 == pytest.approx(numbers["grad_global_norm_before_clip"], rel=1e-3)


@needs_full_set
def test_other_pooling_sizes_and_matches(golden: Golden, authors_file: Path) -> None:
    tensors, numbers = golden
    model = _model(authors_file)
    model.update_teacher(0.996)
    for setting in numbers["alt"]:
        model.config.roi_output_sizes = tuple(setting["roi_out_size"])
        model.config.num_matches = tuple(setting["num_matches"])
        outputs = model(**_batch(tensors))
        assert outputs.crop_loss.item() == pytest.approx(setting["crop"], abs=2e-6)
        assert outputs.correspondence_loss.item() == pytest.approx(setting["pc"], abs=2e-6)


@needs_full_set
def test_four_steps_as_the_trainer_takes_them(golden: Golden, authors_file: Path, tmp_path: Path) -> None:
    """The trainer's own optimizer groups, clipping and teacher, with the schedules of the golden trajectory."""
    from hf_geossl import GTSATrainer, GTSATrainingArguments

    tensors, numbers = golden
    set_seed(0)
    model = _model(authors_file)
    args = GTSATrainingArguments(
        output_dir=str(tmp_path), max_steps=4, max_grad_norm=0.5, optim="adamw_torch", picture=False, use_cpu=True
    )
    trainer = GTSATrainer(model, args, train_dataset=[{"image": torch.zeros(4, 4, 3, dtype=torch.uint8)}])
    optimizer = trainer.create_optimizer()
    batch = _batch(tensors)
    for step in numbers["trajectory"]["steps"]:
        for group in optimizer.param_groups:
            group["lr"] = step["lr"]
            if group["decayed"]:
                group["weight_decay"] = step["weight_decay"]
        model.update_teacher(step["momentum"])
        outputs = model(**batch, correspondence_weight=step["pc_coef"])
        for name, key in (
            ("crop_loss", "crop"),
            ("correspondence_loss", "pc"),
            ("rotation_loss", "rot"),
            ("loss", "total"),
        ):
            assert outputs[name].item() == pytest.approx(step[key], rel=2e-5, abs=2e-6), (step["step"], name)
        optimizer.zero_grad()
        outputs.loss.backward()
        norm = trainer._clip_grad_norm(model).item()
        assert norm == pytest.approx(step["pre_clip_norm_of_norms"], rel=2e-5)
        optimizer.step()
    for name, parameter in model.named_parameters():
        expected = numbers["trajectory"]["final_param_norms"][_original_name(name)]
        if not name.endswith("qkv.bias"):
            assert parameter.double().norm().item() == pytest.approx(expected, rel=1e-6), name


def test_parameter_groups(tmp_path: Path) -> None:
    from hf_geossl import GTSATrainer, GTSATrainingArguments
    from tests.helpers.golden import golden_json

    expected = golden_json("param_groups.json")
    model = GTSAForPreTraining(GTSAConfig(hidden_size=48, num_attention_heads=3, num_hidden_layers=2))
    args = GTSATrainingArguments(output_dir=str(tmp_path), max_steps=1, picture=False, use_cpu=True)
    trainer = GTSATrainer(model, args, train_dataset=[{"image": torch.zeros(4, 4, 3, dtype=torch.uint8)}])
    names = {id(parameter): _original_name(name) for name, parameter in model.named_parameters()}
    for group in trainer.create_optimizer().param_groups:
        found = {names[id(parameter)] for parameter in group["params"]}
        assert found == set(expected["decayed" if group["decayed"] else "not_decayed"])
        assert group["weight_decay"] == (args.weight_decay if group["decayed"] else 0.0)
