"""What of a trunk is trained: shares of the learning rate by layer, frozen steps and the rise after them, layers and norms."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import TrainerCallback

from hf_geossl.training.adaptation.trunk import freeze_layers, layers_of, lr_multiplier, name_in_trunk
from tests.helpers import equicoherent_run, gtsa_run, loca_run
from tests.helpers.exact_resume import different_weights, whole_and_resumed

RUNS = {"gtsa": gtsa_run, "loca": loca_run, "equicoherent": equicoherent_run}


class Watch(TrainerCallback):
    """Notes after each optimizer step which of the trunk's weights have moved since the start, and the learning rates."""

    def __init__(self) -> None:
        self.start: dict[str, torch.Tensor] = {}
        self.moved: list[set[str]] = []
        self.rates: list[dict[bool, float]] = []
        self.with_state: list[int] = []

    def on_train_begin(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        self.start = {name: value.detach().clone() for name, value in model.named_parameters()}

    def on_optimizer_step(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        optimizer = kwargs["optimizer"]
        names = {id(value): name for name, value in model.named_parameters()}
        in_trunk = [name_in_trunk(names[id(parameter)], model) for parameter in optimizer.state]
        self.with_state.append(sum(name is not None for name in in_trunk))
        self.rates.append({bool(group.get("trunk")): group["lr"] for group in optimizer.param_groups})

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        now = dict(model.named_parameters())
        self.moved.append({name for name, value in self.start.items() if not torch.equal(value, now[name])})


def _is_trunk(name: str, prefix: str) -> bool:
    return f"{prefix}." in name and not name.endswith("mask_token")


@pytest.mark.parametrize("max_grad_norm", [0.0, 0.5])
@pytest.mark.parametrize("method", sorted(RUNS))
def test_a_frozen_trunk_stays_to_the_bit_and_its_teachers_too(
    method: str, max_grad_norm: float, images: Any, tmp_path: Path
) -> None:
    watch = Watch()
    trainer = RUNS[method].make_trainer(
        tmp_path, images, [watch], max_steps=4, freeze_trunk_steps=2, trunk_warmup_steps=2, warmup_steps=0,
        min_learning_rate=5e-2 * 4 / 256, teacher_momentum=0.5, max_grad_norm=max_grad_norm, save_strategy="no",
    )  # fmt: skip
    trainer.train()
    for step in (0, 1):
        assert not any(_is_trunk(name, method) for name in watch.moved[step])
        assert watch.with_state[step] == 0
    assert any(name.startswith("teacher.") for name in watch.moved[1])  # its heads follow
    trunk = {name for name in watch.start if name.startswith(f"{method}.") and watch.start[name].ndim > 1}
    assert trunk <= watch.moved[3]
    assert {name for name in watch.moved[3] if name.startswith(f"teacher.{method}.")}
    peak = trainer.args.learning_rate
    assert [rates[True] / peak for rates in watch.rates] == pytest.approx([0, 0, 0.5, 1])
    assert [rates[False] / peak for rates in watch.rates] == pytest.approx([1, 1, 1, 1])


def test_gradients_of_a_frozen_trunk_do_not_count_in_a_norm_of_all(images: Any, tmp_path: Path) -> None:
    trainer = loca_run.make_trainer(tmp_path, images, freeze_trunk_steps=1, clip_mode="global", max_grad_norm=0.5)
    heads = [p for n, p in trainer.model.named_parameters() if p.requires_grad and not n.startswith("loca.")]
    for parameter in trainer.model.parameters():
        if parameter.requires_grad:
            parameter.grad = torch.ones_like(parameter)
    expected = sum(parameter.numel() for parameter in heads) ** 0.5
    assert trainer._clip_grad_norm(trainer.model).item() == pytest.approx(expected, rel=1e-5)
    trainer.state.global_step = 1
    assert trainer._clip_grad_norm(trainer.model).item() == pytest.approx(0.5, rel=1e-3)  # clipped before


def test_layers_learn_by_their_depth(images: Any, tmp_path: Path) -> None:
    model = gtsa_run.make_trainer(tmp_path, images).model
    shares = {
        "gtsa.layernorm.weight": 1.0,
        "gtsa.encoder.layer.1.mlp.fc1.weight": 0.5,
        "gtsa.encoder.layer.0.norm1.bias": 0.25,
        "gtsa.encoder.layer.0.attention.qkv.lora_A.default.weight": 0.25,
        "gtsa.embeddings.cls_token": 0.125,
        "gtsa.embeddings.patch_embeddings.weight": 0.025,
        "projector.projection.weight": 1.0,
        "teacher.gtsa.encoder.layer.0.norm1.bias": 1.0,
    }
    assert {name: lr_multiplier(name, model, 0.5, 0.2) for name in shares} == pytest.approx(shares)


@pytest.mark.parametrize(
    ("train_layers", "trained"),
    [("norms", ("layernorm.", "norm1.", "norm2.")), ("last:1", ("layernorm.", "encoder.layer.1."))],
)
def test_only_chosen_layers_are_trained(train_layers: str, trained: Any, images: Any, tmp_path: Path) -> None:
    watch = Watch()
    trainer = equicoherent_run.make_trainer(tmp_path, images, [watch], train_layers=train_layers, save_strategy="no")
    trainer.train()
    student = {name for name in watch.start if name.startswith("equicoherent.") and not name.endswith("mask_token")}
    expected = {name for name in student if any(part in name for part in trained)}
    assert watch.moved[-1] & student == expected
    assert trainer.parts.trained_of_trunk.startswith(f"train_layers={train_layers}: ")
    assert "equicoherent.embeddings.mask_token" in watch.moved[-1]


def test_more_layers_than_there_are_are_refused(images: Any, tmp_path: Path) -> None:
    assert layers_of("all", 12) == range(12)
    assert layers_of("last:4", 12) == range(8, 12)
    model = gtsa_run.make_trainer(tmp_path, images).model
    with pytest.raises(
        ValueError, match="train_layers must name at most the 2 layers that the trunk has, got 'last:3'"
    ):
        freeze_layers(model, "last:3")


@pytest.mark.parametrize(
    ("method", "fields"),
    [
        ("gtsa", {"freeze_trunk_steps": 2, "trunk_warmup_steps": 3}),
        ("gtsa", {"freeze_trunk_steps": 0.7, "layer_decay": 0.7, "optim": "sgd"}),
        ("loca", {"train_layers": "norms", "trunk_warmup_steps": 4}),
        ("equicoherent", {"train_layers": "last:1", "layer_decay": 0.7, "patch_embed_learning_rate": 0.2}),
    ],
)
def test_resume_continues_bit_for_bit(method: str, fields: dict[str, Any], images: Any, tmp_path: Path) -> None:
    whole, resumed = whole_and_resumed(RUNS[method].make_trainer, tmp_path, images, **fields)
    assert different_weights(whole.model, resumed.model) == []


def test_other_layers_are_refused_at_a_resume(images: Any, tmp_path: Path) -> None:
    gtsa_run.make_trainer(tmp_path, images, save_steps=2, train_layers="norms").train()
    other = gtsa_run.make_trainer(tmp_path, images, train_layers="last:1")
    with pytest.raises(RuntimeError, match="adaptation.train_layers was 'norms' and is 'last:1'"):
        other.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
