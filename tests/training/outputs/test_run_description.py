"""What the record of a run says: the precision that it computed in, the step of its weights, and what was measured."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from hf_geossl.training.outputs.run_description import describe_run
from tests.helpers import equicoherent_run, gtsa_run, loca_run


@pytest.mark.parametrize(
    ("fields", "dtype", "expected"),
    [({}, None, "fp32"), ({"bf16": True}, None, "bf16"), ({"fp16": True}, None, "fp32"), ({}, torch.bfloat16, "bf16")],
    ids=["fp32", "bf16", "fp16 on a CPU", "weights in bf16"],
)
def test_the_precision_is_the_one_of_the_computation(
    fields: dict[str, Any], dtype: torch.dtype | None, expected: str, images: Any, tmp_path: Path
) -> None:
    """fp16 has no autocast on a CPU: weights and products stay float32, and the card must not say otherwise."""
    trainer = gtsa_run.make_trainer(tmp_path, images, **fields)
    if dtype is not None:
        trainer.model.to(dtype)
    assert describe_run(trainer)["precision"] == expected


def test_a_run_is_described_by_what_was_set_and_made(images: Any, tmp_path: Path) -> None:
    trainer = loca_run.make_trainer(
        tmp_path, images, max_steps=3, logging_steps=1, gradient_accumulation_steps=2, weight_decay=0.1,
        teacher_momentum=0.5, seed=4,
    )  # fmt: skip
    trainer.train()
    record = describe_run(trainer)
    assert {name: record[name] for name in ("steps", "weights_step", "images", "global_batch", "seed")} == {
        "steps": 3, "weights_step": 3, "images": 24, "global_batch": 8, "seed": 4,
    }  # fmt: skip
    assert record["weight_decay"] == "0.1"
    assert record["teacher_momentum"] == "0.5 to 1"
    assert record["learning_rate"] == f"{5e-2 * 8 / 256:.3g}"
    assert record["hardware"].startswith("CPU, ")
    assert (record["dataset_id"], record["base_model"], record["from_scratch"]) == (None, None, True)
    assert (record["held_out"], record["emissions"]) == (None, None)
    assert [line["step"] for line in record["losses"]] == [1, 2, 3]
    assert record["losses"][2]["location_accuracy"] == trainer.state.log_history[2]["location_accuracy"]
    assert 0 < record["seconds"] < 600


def test_held_out_numbers_stand_with_those_of_chance(smooth_images: Any, tmp_path: Path) -> None:
    """The last evaluation of the exported weights, where a later one was of others; the mean image is a baseline."""
    trainer = equicoherent_run.make_trainer(tmp_path, smooth_images, eval_dataset=smooth_images[:4])
    values = {"eval_loss": 1.0, "eval_class_loss": 2.0, "eval_reconstruction_loss": 0.5, "eval_mean_image_loss": 0.9}
    for step, images in ((2, 4), (4, 3)):
        trainer.state.log_history.append({**values, "eval_images": images, "eval_runtime": 1.0, "step": step})
    trainer.state.global_step, trainer.weights_step = 4, 2
    held_out = describe_run(trainer)["held_out"]
    assert (held_out["step"], held_out["images"]) == (2, 4)
    chance = trainer.chance_losses()["class_loss"]
    assert held_out["values"] == {
        "loss": {"measured": 1.0, "chance": None},
        "class_loss": {"measured": 2.0, "chance": chance},
        "reconstruction_loss": {"measured": 0.5, "chance": 0.9},
    }
    trainer.weights_step = None
    assert describe_run(trainer)["held_out"]["images"] == 3


def test_emissions_are_those_that_a_tracker_measured(images: Any, tmp_path: Path) -> None:
    trainer = gtsa_run.make_trainer(tmp_path, images)
    trainer.callback_handler.callbacks.append(SimpleNamespace(tracker=SimpleNamespace(final_emissions=0.0123)))
    assert describe_run(trainer)["emissions"] == pytest.approx(12.3)
