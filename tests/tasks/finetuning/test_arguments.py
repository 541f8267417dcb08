"""How long a run is, and values that make no sense."""

import pytest
import torch
from transformers import TrainingArguments

from hf_geossl import GTSAConfig, GTSAForSemanticSegmentation
from hf_geossl.tasks.finetuning.arguments import FineTuningArguments
from hf_geossl.tasks.finetuning.settings import DEFAULTS
from hf_geossl.training.arguments import TeacherStudentTrainingArguments


def test_a_run_is_as_long_as_was_said_and_otherwise_500_steps_or_5_passes() -> None:
    given = {"use_cpu": True, "per_device_train_batch_size": 10}
    assert FineTuningArguments("out", max_steps=7, **given).for_run(1000).max_steps == 7
    assert FineTuningArguments("out", **given).for_run(60).max_steps == 500
    assert FineTuningArguments("out", **given).for_run(2001).max_steps == 1001
    assert FineTuningArguments("out", num_train_epochs=2, **given).for_run(25).max_steps == 5
    assert FineTuningArguments("out", num_train_epochs=3, **given).for_run(25).max_steps == 8  # transformers' default
    twice = FineTuningArguments("out", num_train_epochs=2, gradient_accumulation_steps=2, **given)
    assert (twice.global_batch_size, twice.for_run(25).max_steps) == (20, 3)
    assert twice.max_steps == -1


def test_what_happens_every_epoch_happens_every_so_many_steps() -> None:
    """`load_best_model_at_end` wants checkpoints where it measures, and users of transformers write both by the epoch."""
    every = {"eval_strategy": "epoch", "save_strategy": "epoch", "load_best_model_at_end": True}
    args = FineTuningArguments("out", use_cpu=True, per_device_train_batch_size=10, num_train_epochs=2, **every)
    run = args.for_run(25)
    assert (run.eval_strategy, run.save_strategy, run.eval_steps, run.save_steps, run.max_steps) == ("steps",) * 2 + (
        3,
        3,
        5,
    )


def test_layers_are_computed_twice_without_a_warning_of_the_arguments_name(recwarn: pytest.WarningsRecorder) -> None:
    for kind in (FineTuningArguments, TeacherStudentTrainingArguments):
        args = kind("out", use_cpu=True, gradient_checkpointing=True, max_steps=1)
        assert args.gradient_checkpointing is getattr(args, "activation_checkpointing", True) is True
    assert not [warning for warning in recwarn if "checkpointing" in str(warning.message)]
    again = TeacherStudentTrainingArguments("out", use_cpu=True, max_steps=1)
    again.recompute_layers()
    kept = {name: value for name, value in again.to_dict().items() if name.endswith("_checkpointing")}
    assert TeacherStudentTrainingArguments("out", use_cpu=True, max_steps=1, **kept).gradient_checkpointing


def test_defaults_are_those_that_the_command_line_shows() -> None:
    args = FineTuningArguments("out", use_cpu=True)
    for name, value in DEFAULTS.items():
        shown = getattr(args, name)
        assert getattr(shown, "value", shown) == value, name
        assert name in TrainingArguments.__dataclass_fields__


def test_the_best_checkpoint_is_that_of_a_measured_number_whose_direction_is_known() -> None:
    def chosen(**given: object) -> tuple[str | None, bool | None]:
        given |= {"use_cpu": True, "load_best_model_at_end": True, "save_steps": 0.1}
        args = FineTuningArguments("out", **given).for_run(9, {"abs_rel": False, "delta1": True, "loss": False})
        return args.metric_for_best_model, args.greater_is_better

    assert chosen() == ("abs_rel", False)
    assert chosen(metric_for_best_model="abs_rel") == (
        "abs_rel",
        False,
    )  # transformers takes all but losses the other way
    assert chosen(metric_for_best_model="eval_delta1") == ("delta1", True)
    assert chosen(metric_for_best_model="loss") == ("loss", False)
    with pytest.raises(ValueError, match="metric_for_best_model must be one of abs_rel, delta1, loss, got 'iou'"):
        chosen(metric_for_best_model="iou")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"train_layers": "last:0"}, "train_layers must be 'all', 'head', 'norms' or such as 'last:4', got 'last:0'"),
        (
            {"lora_rank": 4, "train_layers": "head"},
            "lora_rank must be 0 or more, and 0 with train_layers 'head', got 4",
        ),
        ({"lora_alpha": 0}, "lora_alpha must be above 0, got 0"),
        ({"layer_decay": 1.5}, "layer_decay must be above 0 and at most 1, got 1.5"),
        ({"min_crop": 0.0}, "min_crop must be above 0 and at most 1, got 0.0"),
        ({"curve_images": 0}, "curve_images must be at least 1, got 0"),
        ({"num_train_epochs": 0}, "num_train_epochs must be above 0, or -1 for the default, got 0"),
        ({"max_steps": 0}, "max_steps must be above 0"),
        ({"ignore_data_skip": True}, "ignore_data_skip must stay off"),
        ({"remove_unused_columns": True}, "remove_unused_columns must stay off"),
    ],
)
def test_values_that_make_no_sense_are_refused(given: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        FineTuningArguments("out", use_cpu=True, **given)


def test_processes_do_not_wait_for_gradients_that_a_decoder_does_not_give() -> None:
    """UPerNet and DPT read layers before the final norm; transformers does not look for such weights where layers are recomputed."""
    config = GTSAConfig(
        hidden_size=16, num_hidden_layers=4, num_attention_heads=2, image_size=32, patch_size=8, decoder_type="upernet"
    )
    model = GTSAForSemanticSegmentation(config)
    model(torch.randn(2, 3, 32, 32), labels=torch.zeros(2, 32, 32, dtype=torch.long)).loss.backward()
    assert {name for name, value in model.named_parameters() if value.grad is None} >= {"gtsa.layernorm.weight"}
    assert FineTuningArguments("out", gradient_checkpointing=True, use_cpu=True).ddp_find_unused_parameters
