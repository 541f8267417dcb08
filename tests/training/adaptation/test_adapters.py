"""LoRA: the same model before, the merged one after, the teacher's adapters, and runs that go on from checkpoints."""

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModel

from hf_geossl import GTSAConfig, GTSAForPreTraining, LOCAForPreTraining
from hf_geossl.training.adaptation.adapters import ADAPTED, adapt_trunk, merge_state
from tests.helpers import equicoherent_run, gtsa_run, loca_run
from tests.helpers.exact_resume import different_weights, whole_and_resumed

RUNS = {"gtsa": gtsa_run, "loca": loca_run, "equicoherent": equicoherent_run}


def _randomize(model: Any) -> None:
    """Adapters that add something, the student's and, where it has one, the teacher's others."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".lora_B." in name:
                parameter.normal_(std=0.2)


def test_adapters_change_nothing_at_first_and_are_few() -> None:
    model = GTSAForPreTraining(gtsa_run.small_config()).eval()
    pixels = torch.randn(2, 3, 40, 24)
    before, of_teacher = model.gtsa(pixels).last_hidden_state, model.teacher.gtsa(pixels).last_hidden_state
    line = adapt_trunk(model, "all", 2, 16.0)
    assert torch.equal(model.gtsa(pixels).last_hidden_state, before)
    assert torch.equal(model.teacher.gtsa(pixels).last_hidden_state, of_teacher)
    trained = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    in_trunk = [name for name in trained if name.startswith("gtsa.")]
    # rank x (inputs + outputs) of qkv, projection, fc1 and fc2 in two layers 32 wide
    count = 2 * 2 * (32 + 96 + 32 + 32 + 32 + 128 + 128 + 32)
    assert sum(model.get_parameter(name).numel() for name in in_trunk) == count
    assert all(".lora_" in name for name in in_trunk)
    assert not any(name.startswith("teacher.") for name in trained)
    assert "projector.projection.weight" in trained
    assert line is not None
    assert line.startswith(f"LoRA of rank 2: {count:,} of the trunk's ")


def test_a_vit_b_of_rank_16_trains_under_a_tenth() -> None:
    with torch.device("meta"):
        model = GTSAForPreTraining(
            GTSAConfig(hidden_size=768, num_attention_heads=12, num_hidden_layers=12, intermediate_size=3072)
        )
    adapt_trunk(model, "all", 16, 16.0)
    sizes = [(p.numel(), p.requires_grad) for n, p in model.named_parameters() if n.startswith("gtsa.")]
    assert sum(size for size, trained in sizes if trained) / sum(size for size, _ in sizes) < 0.1


@pytest.mark.parametrize("method", sorted(RUNS))
def test_merged_export_equals_the_model_with_adapters(method: str, images: Any, tmp_path: Path) -> None:
    trainer = RUNS[method].make_trainer(tmp_path, images, lora_rank=2, lora_alpha=3.0, save_steps=2, max_steps=2)
    trainer.train()
    _randomize(trainer.model)
    pixels = torch.randn(2, 3, 40, 24)
    for weights, owner in (("student", trainer.model), ("teacher", trainer.model.teacher)):
        trainer.save_model(str(tmp_path / weights), weights=weights)
        exported = AutoModel.from_pretrained(tmp_path / weights)
        assert not any("lora" in name or "base_layer" in name for name in exported.state_dict())
        with torch.no_grad():
            expected = getattr(owner, method).eval()(pixels).last_hidden_state
            torch.testing.assert_close(exported(pixels).last_hidden_state, expected, rtol=0, atol=1e-5)
    assert "LoRA of rank 2" in (tmp_path / "teacher" / "README.md").read_text()


def test_the_teacher_follows_the_adapters() -> None:
    model = LOCAForPreTraining(loca_run.small_config())
    adapt_trunk(model, "all", 2, 16.0)
    name = "loca.encoder.layer.0.mlp.fc1.lora_{}.default.weight"
    before = {part: model.get_parameter(f"teacher.{name.format(part)}").clone() for part in "AB"}
    assert all(torch.equal(before[part], model.get_parameter(name.format(part))) for part in "AB")
    _randomize(model.loca)
    model.on_optimizer_step(0.75)
    moved = model.get_parameter(f"teacher.{name.format('B')}")
    torch.testing.assert_close(moved, 0.25 * (model.get_parameter(name.format("B"))))  # 0.75 x 0
    base = "loca.encoder.layer.0.mlp.fc1.base_layer.weight"
    assert torch.equal(model.get_parameter(f"teacher.{base}"), model.get_parameter(base))


def test_merging_is_the_formula() -> None:
    generator = torch.Generator().manual_seed(0)
    shapes = {"a.base_layer.weight": (3, 4), "a.base_layer.bias": (3,), "a.lora_A.default.weight": (2, 4)}
    shapes |= {"a.lora_B.default.weight": (3, 2), "b.weight": (2,)}
    state = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    merged = merge_state(state, 0.5)
    assert sorted(merged) == ["a.bias", "a.weight", "b.weight"]
    expected = state["a.base_layer.weight"] + 0.5 * state["a.lora_B.default.weight"] @ state["a.lora_A.default.weight"]
    torch.testing.assert_close(merged["a.weight"], expected)
    assert merge_state(state, None) is state


@pytest.mark.parametrize(
    ("method", "fields"),
    [
        ("gtsa", {"lora_rank": 2, "gradient_accumulation_steps": 2}),
        ("loca", {"lora_rank": 2, "train_layers": "last:1", "anchor_weight": 0.0}),
        ("equicoherent", {"lora_rank": 2, "freeze_trunk_steps": 4, "trunk_warmup_steps": 2, "layer_decay": 0.7}),
    ],
)
def test_resume_continues_bit_for_bit(method: str, fields: dict[str, Any], images: Any, tmp_path: Path) -> None:
    whole, resumed = whole_and_resumed(RUNS[method].make_trainer, tmp_path, images, **fields)
    assert different_weights(whole.model, resumed.model) == []


def test_a_checkpoint_opens_as_any_other_and_holds_what_a_resume_needs_beside_it(images: Any, tmp_path: Path) -> None:
    trainer = gtsa_run.make_trainer(tmp_path, images, lora_rank=2, save_steps=4)
    trainer.train()
    folder, pixels = tmp_path / "checkpoint-4", torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        expected = trainer.model.eval().gtsa(pixels).last_hidden_state
        found = GTSAForPreTraining.from_pretrained(folder).gtsa(pixels).last_hidden_state
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    beside = load_file(folder / ADAPTED)
    assert all(".lora_" in name or name.endswith("base_layer.weight") for name in beside)
    assert len(beside) == 2 * 2 * 4 * 3  # of student and teacher, of two layers, four matrices each: W, A and B


def test_the_best_checkpoint_without_adapters_is_loaded_merged(images: Any, tmp_path: Path) -> None:
    trainer = gtsa_run.make_trainer(tmp_path, images, lora_rank=2, save_steps=4, save_only_model=True)
    trainer.train()
    pixels = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        expected = trainer.model.eval().gtsa(pixels).last_hidden_state
        trainer._load_from_checkpoint(str(tmp_path / "checkpoint-4"))
        torch.testing.assert_close(trainer.model.gtsa(pixels).last_hidden_state, expected, rtol=0, atol=1e-5)


def test_another_rank_is_refused_at_a_resume(images: Any, tmp_path: Path) -> None:
    gtsa_run.make_trainer(tmp_path, images, save_steps=2, lora_rank=2).train()
    for fields, message in (
        ({"lora_rank": 4}, "adaptation.lora_rank was 2 and is 4"),
        ({}, "adaptation was .* and is None"),
    ):
        with pytest.raises(RuntimeError, match=message):
            gtsa_run.make_trainer(tmp_path, images, **fields).train(
                resume_from_checkpoint=str(tmp_path / "checkpoint-2")
            )


@pytest.mark.parametrize("fields", [{"lora_rank": 2}, {"train_layers": "last:1"}])
def test_recomputed_layers_have_the_same_gradients(fields: dict[str, Any], images: Any, tmp_path: Path) -> None:
    """Where no input of a layer asks for gradients, a recomputation of the old kind would give its weights none."""
    models = []
    for flag in (False, True):
        trainer = gtsa_run.make_trainer(
            tmp_path / str(flag), images, max_steps=2, gradient_checkpointing=flag, **fields
        )
        trainer.train()
        models.append(trainer.model)
    assert different_weights(*models) == []


def test_what_adapters_cannot_be_added_to_is_said(images: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = gtsa_run.make_trainer(tmp_path, images, lora_rank=2)
    with pytest.raises(ValueError, match="has adapters of an earlier trainer: make it anew"):
        type(trainer)(trainer.model, trainer.args, images, views=trainer.views)
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(ImportError, match="lora_rank needs peft: pip install peft"):
        gtsa_run.make_trainer(tmp_path, images, lora_rank=2)
