"""Runs that need less memory, or more than there is: what is logged, said and the same."""

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from transformers import TrainerCallback

from hf_geossl import GTSATrainer
from hf_geossl.cli.main import main
from hf_geossl.hub.run_record import ARGUMENTS
from hf_geossl.training.resources import describe_out_of_memory, explained_out_of_memory, peak_memory
from tests.helpers import equicoherent_run, gtsa_run, loca_run
from tests.helpers.exact_resume import different_weights
from tests.helpers.photographs import write_folder
from tests.helpers.small_recipes import SMALL

RUNS = {"gtsa": gtsa_run, "loca": loca_run, "equicoherent": equicoherent_run}
ADAPTED = {"all": {}, "lora": {"lora_rank": 2}, "frozen": {"freeze_trunk_steps": 2, "train_layers": "last:1"}}


def test_peak_memory_is_of_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: 3 * 2**30 + device.index)
    assert peak_memory(torch.device("cuda", 1)) == {"memory_mb": 3072}
    assert peak_memory(torch.device("cpu")) == {}


class Full(TrainerCallback):
    """A device that is full in step 3."""

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == 3:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has ...")


@pytest.mark.parametrize(
    ("method", "adapted"), [*((method, "all") for method in RUNS), ("loca", "lora"), ("equicoherent", "frozen")]
)
def test_a_run_that_did_not_fit_goes_on_with_layers_computed_again_to_the_bit(
    method: str, adapted: str, images: Any, tmp_path: Path
) -> None:
    make, fields = RUNS[method].make_trainer, {"save_steps": 2, "max_steps": 4, **ADAPTED[adapted]}
    undisturbed = make(tmp_path / "undisturbed", images, **fields)
    undisturbed.train()
    with pytest.raises(torch.OutOfMemoryError) as raised:
        make(tmp_path / "full", images, [Full()], **fields).train()
    assert str(raised.value) == (
        "a batch of 4 images does not fit the memory of cpu (checkpoint-2 is whole): --gradient_checkpointing true computes "
        "layers twice for the same result, and --resume_from_checkpoint true goes on from there; "
        "--per_device_train_batch_size 2 --gradient_accumulation_steps 2 starts a run of the same 4 images a step; "
        "smaller views or a smaller model take less too"
    )
    resumed = make(tmp_path / "full", images, gradient_checkpointing=True, **fields)
    resumed.train(resume_from_checkpoint=True)
    assert all(layer.gradient_checkpointing for layer in resumed.model.base_model.encoder.layer)
    assert different_weights(undisturbed.model, resumed.model) == []


class Small:
    """A device that is full wherever the last layer keeps what it has computed: in a forward pass, or in a backward one."""

    def __init__(self, trainer: Any, place: str, always: bool = False, full: bool = True) -> None:
        self.place, self.always, self.failed, self.passes = place, always, 0, 0
        if full:
            trainer.model.base_model.encoder.layer[-1].register_forward_hook(self._observe)

    def _observe(self, module: Any, args: Any, output: torch.Tensor) -> None:
        if not output.requires_grad or (module.gradient_checkpointing and not self.always):
            return
        torch.rand(3)  # a failed pass has drawn numbers
        self.passes += 1
        if self.place == "backward":
            output.register_hook(self._fail)
        elif self.passes == 2:
            self._fail()

    def _fail(self, gradient: torch.Tensor | None = None) -> None:
        self.failed += 1
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has ...")


@pytest.mark.parametrize(
    ("method", "place", "fields"),
    [
        ("gtsa", "forward", {"anchor_weight": 1.0}),
        ("loca", "forward", {"lora_rank": 2}),
        ("equicoherent", "backward", {"freeze_trunk_steps": 1, "train_layers": "last:1"}),
    ],
)
def test_a_step_that_does_not_fit_is_made_again_with_layers_computed_twice(
    method: str, place: str, fields: dict[str, Any], images: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    fields = {"max_steps": 3, "logging_steps": 1, "gradient_accumulation_steps": 2, "save_steps": 2, **fields}
    run, trainers = RUNS[method], []
    for name in ("large", "small"):
        made = run.make_trainer(tmp_path / name, images)
        made.model.config.init_from = "a trunk"  # which an anchor asks for
        args = run.small_arguments(tmp_path / name, **fields)
        trainers.append(type(made)(made.model, args, images, views=made.views))
        device = Small(trainers[-1], place, full=name == "small")
        trainers[-1].train()
    large, small = trainers
    assert device.failed == 1
    lines = [line for line in caplog.messages if "does not fit the memory" in line]
    assert lines == [
        "a batch of 4 images does not fit the memory of cpu: layers are computed twice from here on, for the same result in "
        "less memory and more time (gradient_checkpointing)"
    ]
    assert different_weights(large.model, small.model) == []
    losses = [[line["loss"] for line in trainer.state.log_history if "loss" in line] for trainer in trainers]
    assert losses[0] == losses[1]
    assert "gradient_checkpointing: true" in (tmp_path / "small" / "checkpoint-2" / ARGUMENTS).read_text()


def test_what_cannot_be_made_again_ends_with_the_sentence(images: Any, tmp_path: Path) -> None:
    trainer = gtsa_run.make_trainer(tmp_path / "always", images)
    device = Small(trainer, "backward", always=True)
    with pytest.raises(torch.OutOfMemoryError, match="saved.: --per_device_train_batch_size 2"):
        trainer.train()  # does not fit with layers computed twice either, which the sentence does not advise then
    assert device.failed == 2
    trainer = gtsa_run.make_trainer(tmp_path / "second", images, gradient_accumulation_steps=2)
    trainer.parts.feed.begin_step = lambda: setattr(trainer.feed, "micro_batch", 1)  # gradients are there already
    device = Small(trainer, "backward")
    with pytest.raises(torch.OutOfMemoryError, match="saved.: --gradient_checkpointing true computes layers twice"):
        trainer.train()
    assert device.failed == 1


def test_what_is_said_leaves_out_what_is_done(tmp_path: Path) -> None:
    args = gtsa_run.small_arguments(
        tmp_path, gradient_checkpointing=True, per_device_train_batch_size=9, gradient_accumulation_steps=2
    )
    assert describe_out_of_memory(args) == (
        "a batch of 9 images does not fit the memory of cpu (no checkpoint has been saved): --per_device_train_batch_size 3 "
        "--gradient_accumulation_steps 6 starts a run of the same 18 images a step; smaller views or a smaller model take "
        "less too"
    )
    args.per_device_train_batch_size = 1
    assert "--per_device" not in describe_out_of_memory(args)
    with pytest.raises(RuntimeError, match="^something else$"), explained_out_of_memory(args):
        raise RuntimeError("something else")
    message = (
        "[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes"
    )
    with pytest.raises(torch.OutOfMemoryError, match="does not fit the memory of cpu"), explained_out_of_memory(args):
        raise RuntimeError(message)


def test_the_command_ends_with_a_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = tmp_path / "small.yaml"
    recipe.write_text(yaml.safe_dump({**SMALL, "output_dir": str(tmp_path / "run")}))
    monkeypatch.setattr(GTSATrainer, "method_callbacks", lambda self: [Full()])
    data = ["--dataset", str(write_folder(tmp_path / "images", 30)), "--save_steps", "2", "--max_steps", "4"]
    assert main(["pretrain", str(recipe), *data, "--disable_tqdm", "false"]) == 2
    errors = capsys.readouterr().err
    assert "Traceback" not in errors
    assert "pretraining:" in errors  # the bar, whose line has ended
    assert "\ngeossl: a batch of 8 images does not fit the memory of cpu (checkpoint-2 is whole): --gradient" in errors
    monkeypatch.undo()
    again = ["--gradient_checkpointing", "true", "--resume_from_checkpoint", "true"]
    assert main(["pretrain", str(recipe), *data, *again]) == 0
    assert (tmp_path / "run" / "model.safetensors").is_file()
