"""The anchor: its distance, which patches count, that it pulls, and that a resumed run has the same."""

from pathlib import Path
from typing import Any

import pytest
import torch

from hf_geossl import GTSAForPreTraining
from hf_geossl.training.adaptation.anchor import Anchor, patch_distance
from tests.helpers import equicoherent_run, gtsa_run, loca_run
from tests.helpers.exact_resume import different_weights, whole_and_resumed

RUNS = {"gtsa": gtsa_run, "loca": loca_run, "equicoherent": equicoherent_run}
CPU = torch.device("cpu")


def _make_trainer(run: Any, output_dir: Path, data: Any, **fields: Any) -> Any:
    """Of a model that names what it starts from."""
    plain = run.make_trainer(output_dir, data, **{**fields, "anchor_weight": 0.0, "lora_rank": 0})
    plain.model.config.init_from = "a trunk"
    args = run.small_arguments(output_dir, **{k: v for k, v in fields.items() if k != "config"})
    return type(plain)(plain.model, args, data, views=plain.views)


def test_distance_is_one_minus_the_cosine_of_patches_that_are_seen() -> None:
    tokens = torch.tensor([[[3.0, 0.0], [1.0, 1.0], [-2.0, 0.0]]])
    targets = torch.tensor([[[1.0, 0.0], [0.0, 5.0], [1.0, 0.0]]])
    cosines = torch.tensor([1.0, 0.5**0.5, -1.0])
    torch.testing.assert_close(patch_distance(tokens, targets), (1 - cosines).mean())
    masked = torch.tensor([[False, False, True]])
    torch.testing.assert_close(patch_distance(tokens, targets, masked), (1 - cosines[:2]).mean())
    assert patch_distance(tokens, targets, torch.ones(1, 3, dtype=torch.bool)) == 0


@pytest.mark.parametrize("method", sorted(RUNS))
def test_it_is_0_at_first_and_grows_less_with_more_weight(method: str, images: Any, tmp_path: Path) -> None:
    logged = []
    for weight in (1e-6, 20.0):
        fields = {"max_steps": 6, "logging_steps": 1, "save_strategy": "no", "warmup_steps": 0}
        trainer = _make_trainer(RUNS[method], tmp_path / str(weight), images, anchor_weight=weight, **fields)
        getattr(trainer.model, method).disable_drop_path()
        trainer.train()
        logged.append([entry["anchor_loss"] for entry in trainer.state.log_history if "anchor_loss" in entry])
    assert logged[0][0] == logged[1][0]
    if method != "equicoherent":  # whose unmasked patches see masked ones
        assert logged[0][0] < 1e-5
    assert 0 < logged[1][-1] < 0.5 * logged[0][-1]


def test_it_is_part_of_the_loss(images: Any, tmp_path: Path) -> None:
    trainer = _make_trainer(gtsa_run, tmp_path, images, anchor_weight=3.0, max_steps=3, logging_steps=1)
    trainer.train()
    entry = [entry for entry in trainer.state.log_history if "anchor_loss" in entry][-1]
    config = trainer.model.config
    parts = entry["crop_loss"] + config.correspondence_weight * entry["correspondence_loss"]
    parts += config.rotation_weight * entry["rotation_loss"]
    assert entry["loss"] == pytest.approx(parts + 3 * entry["anchor_loss"], rel=1e-5)
    assert not any("anchor" in name for name in trainer.model.state_dict())
    assert not (tmp_path / "checkpoint-3").exists() or not list((tmp_path / "checkpoint-3").glob("*anchor*"))


@pytest.mark.parametrize("fields", [{}, {"lora_rank": 2}])
def test_resume_continues_bit_for_bit(fields: dict[str, Any], images: Any, tmp_path: Path) -> None:
    def make_trainer(output_dir: Path, data: Any, **more: Any) -> Any:
        return _make_trainer(gtsa_run, output_dir, data, **more)

    whole, resumed = whole_and_resumed(make_trainer, tmp_path, images, anchor_weight=1.0, **fields)
    assert different_weights(whole.model, resumed.model) == []


def test_another_trunk_is_refused_at_a_resume(images: Any, tmp_path: Path) -> None:
    _make_trainer(gtsa_run, tmp_path, images, anchor_weight=1.0, save_steps=2).train()
    other = _make_trainer(gtsa_run, tmp_path, images, anchor_weight=1.0)
    with torch.no_grad():
        other.parts.anchor.trunk.layernorm.bias[0] += 1e-3
    with pytest.raises(RuntimeError, match="adaptation.anchor was '[0-9a-f]{16}' and is '[0-9a-f]{16}'"):
        other.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))


def test_random_weights_are_no_anchor() -> None:
    with pytest.raises(ValueError, match="anchor_weight needs a model that starts from a trunk: load_for_pretraining"):
        Anchor(GTSAForPreTraining(gtsa_run.small_config()), 1.0, CPU)
    assert Anchor(GTSAForPreTraining(gtsa_run.small_config()), 0.0, CPU).digest() is None
