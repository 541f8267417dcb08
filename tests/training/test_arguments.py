"""Training arguments: their ranges, the learning rate for a batch, and the length of a run."""

from pathlib import Path
from typing import Any

import datasets
import pytest
from PIL import Image

from hf_geossl import GTSAForPreTraining, GTSATrainer, load_scenes, load_stream
from hf_geossl.hub.run_record import shared_arguments
from tests.helpers.gtsa_run import make_trainer, small_arguments, small_config, small_views


def test_length_from_epochs_of_a_dataset_with_a_length(images: Any, tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, images, max_steps=-1, num_train_epochs=2)
    assert trainer.args.max_steps == 2 * 24 // 4


def test_length_from_epochs_of_a_stream(images: Any, tmp_path: Path) -> None:
    """Two passes over 24 files in batches of 4; of rows that nobody has counted the length must be given."""
    (tmp_path / "photos").mkdir()
    for number, row in enumerate(images):
        Image.fromarray(row["image"]).save(tmp_path / "photos" / f"{number}.png")
    stream = load_stream(str(tmp_path / "photos"))
    assert stream.num_images == 24
    assert make_trainer(tmp_path / "a", stream, max_steps=-1, num_train_epochs=2).args.max_steps == 12
    assert load_stream("scenes").num_images == len(load_scenes("train"))
    uncounted = datasets.IterableDataset.from_generator(lambda: iter([{"image": Image.new("RGB", (8, 8))}]))
    with pytest.raises(ValueError, match="not known before they are read: set max_steps"):
        make_trainer(tmp_path / "b", uncounted, max_steps=-1)


def test_given_learning_rate_is_taken_as_it_is(images: Any, tmp_path: Path) -> None:
    from hf_geossl import GTSATrainingArguments

    for given, expected in (
        ({}, 5e-4 * 4 / 256),
        ({"learning_rate": 0.01}, 0.01),
        ({"base_learning_rate": 0.1}, 0.1 / 64),
    ):
        args = GTSATrainingArguments(
            str(tmp_path), max_steps=1, per_device_train_batch_size=4, use_cpu=True, picture=False, **given
        )
        trainer = GTSATrainer(GTSAForPreTraining(small_config()), args, images, views=small_views())
        assert trainer.create_optimizer().param_groups[0]["lr"] == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("teacher_momentum", 1.5, r"teacher_momentum must be in \[0, 1\], got 1.5"),
        ("clip_mode", "tensors", "clip_mode must be 'tensor' or 'global', got 'tensors'"),
        ("base_learning_rate", -1.0, "base_learning_rate must be above 0"),
        ("ignore_data_skip", False, "ignore_data_skip on"),
        ("auto_find_batch_size", True, "auto_find_batch_size must stay off: .* per_device_train_batch_size, "),
        ("learning_rate", 1e-2, "learning_rate=0.01 and base_learning_rate=0.05 .* were both given"),
        ("max_steps", 0, "max_steps must be above 0, or -1 for num_train_epochs, got 0"),
        ("num_train_epochs", 0, "num_train_epochs must be above 0, or left out, got 0"),
        ("num_train_epochs", float("nan"), "num_train_epochs must be a finite number, got nan"),
        ("gradient_accumulation_steps", 0, "gradient_accumulation_steps must be 1 or more, or left out, got 0"),
        ("per_device_train_batch_size", -1, "per_device_train_batch_size must be 1 or more"),
        ("weight_decay", -0.5, "weight_decay must be 0 or more, or left out, got -0.5"),
        ("weight_decay_end", float("nan"), "weight_decay_end must be a finite number, got nan"),
        ("learning_rate", float("inf"), "learning_rate must be a finite number, got inf"),
        ("warmup_steps", float("nan"), "warmup_steps must be a finite number, got nan"),
        ("max_grad_norm", -1.0, "max_grad_norm must be 0 or more"),
        ("logging_steps", -1, "logging_steps must be above 0, got -1; logging_strategy='no' turns it off"),
        ("save_steps", 0, "save_steps must be above 0, got 0; save_strategy='no' turns it off"),
        ("save_total_limit", 0, "save_total_limit must be 1 or more, or left out, got 0"),
        ("adam_beta2", 1.0, r"adam_beta2 must be in \[0, 1\), got 1.0"),
        ("seed", 2**32, r"seed must be below 2\^32"),
        ("dataloader_num_workers", -1, "dataloader_num_workers must be 0 or more"),
        ("label_smoothing_factor", 0.1, "label_smoothing_factor means nothing in pretraining without labels"),
        ("freeze_trunk_steps", -1, "freeze_trunk_steps must be 0 or more, got -1"),
        ("trunk_warmup_steps", float("nan"), "trunk_warmup_steps must be a finite number, got nan"),
        ("layer_decay", 0.0, "layer_decay must be above 0 and at most 1, got 0.0"),
        ("train_layers", "last:0", "train_layers must be 'all', 'norms' or such as 'last:4', got 'last:0'"),
        ("lora_rank", -2, "lora_rank must be 0 or more, got -2"),
        ("lora_alpha", 0.0, "lora_alpha must be above 0, got 0.0"),
        ("anchor_weight", float("inf"), "anchor_weight must be a finite number, got inf"),
        ("save_strategy", "epoch", "save_strategy must be 'steps' or 'no', got 'epoch'"),
    ],
)
def test_arguments_out_of_range_are_named(field: str, value: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        small_arguments(tmp_path, **{field: value})


def test_the_compiler_of_a_run_is_recorded_and_kept_from_accelerate(tmp_path: Path) -> None:
    args = small_arguments(tmp_path, torch_compile_backend="aot_eager").for_run(None)
    assert (args.torch_compile, args.torch_compile_backend) == (True, None)  # which accelerate reads
    assert shared_arguments(args)["torch_compile_backend"] == "aot_eager"
    assert "torch_compile_backend" not in shared_arguments(small_arguments(tmp_path, torch_compile=False))
