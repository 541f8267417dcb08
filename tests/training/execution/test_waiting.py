"""Nothing of a step reads a value of the device, and what the host reads late changes no bit of a run."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import TrainerCallback

from hf_geossl.modeling import geometry, modeling_loca, pretraining_gtsa
from hf_geossl.training.callbacks import StepCallback
from hf_geossl.training.execution.waiting import ConditionalAdamW, HostCopy
from hf_geossl.training.monitors.nonfinite import NonFiniteLossError
from tests.helpers import equicoherent_run, gtsa_run, loca_run
from tests.helpers.exact_resume import different_weights, whole_and_resumed

READS = {"_local_scalar_dense", "item", "nonzero", "masked_select", "is_nonzero", "equal", "unique_dim", "_unique2"}
RUNS: dict[str, tuple[Any, dict[str, Any]]] = {
    "gtsa": (gtsa_run, {}),
    "loca": (loca_run, {}),
    **{host: (equicoherent_run, {"host": host}) for host in ("ibot", "dinov2", "dino", "vicreg", "simclr")},
}


class NoReads(TorchDispatchMode):
    """Refuses what a host would wait for its GPU for: values, and sizes that depend on values."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        indices = args[1] if name in ("index", "index_put", "index_put_") else ()
        by_mask = any(index is not None and index.dtype in (torch.bool, torch.uint8) for index in indices)
        assert name not in READS, f"{func} reads a value"
        assert not by_mask, f"{func} counts a mask"
        return func(*args, **(kwargs or {}))


class NoCalls(TorchFunctionMode):
    """Refuses what copies values of a CPU's tensor past the dispatcher."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        assert getattr(func, "__name__", "") not in ("tolist", "numpy", "__array__", "cpu"), f"{func} reads a value"
        return func(*args, **(kwargs or {}))


@contextmanager
def no_reads() -> Iterator[None]:
    with NoReads(), NoCalls():
        yield


class Guarded(TrainerCallback):
    """Refuses reads from the forward pass to the end of a step, in all steps but the first."""

    def __init__(self, trainer: Any) -> None:
        self.mode: Any = None
        self.steps = 0
        compute_loss = trainer.compute_loss

        def guarded(*args: Any, **kwargs: Any) -> Any:
            if trainer.state.global_step and self.mode is None:
                self.mode = no_reads()
                self.mode.__enter__()
            return compute_loss(*args, **kwargs)

        trainer.compute_loss = guarded
        trainer.callback_handler.callbacks.insert(0, self)  # before those that log

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.mode is not None:
            self.mode.__exit__(None, None, None)
            self.mode, self.steps = None, self.steps + 1


@pytest.fixture
def late(monkeypatch: pytest.MonkeyPatch) -> None:
    """The CPU plays the GPU that is not waited for, and whose values are not checked."""
    monkeypatch.setattr(StepCallback, "not_waited_for", ("cpu",))
    for module in (geometry, pretraining_gtsa, modeling_loca):
        monkeypatch.setattr(module, "can_check_values", lambda tensor: False)


class Asking(TrainerCallback):
    """Asks for a line, a checkpoint and an evaluation after the trainer's own callbacks, where nothing else is due."""

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        control.should_log |= state.global_step == 2
        control.should_save |= state.global_step == 4
        control.should_evaluate |= state.global_step == 5


def train(name: str, folder: Path, images: Any, **fields: Any) -> Any:
    """A run of six steps, whose loss is not a number in the second and the fourth."""
    run, config = RUNS[name]
    fields = {"eval_dataset": images[:4], "probe_every_steps": 0, **fields}
    settings = {"max_steps": 6, "logging_steps": 3, "gradient_accumulation_steps": 2, **fields}
    trainer = run.make_trainer(folder, images, **settings, **({"config": config} if config else {}))
    training_step = trainer.compute_loss

    def spoiled(*args: Any, **kwargs: Any) -> Any:
        return training_step(*args, **kwargs) * (math.nan if trainer.state.global_step in (1, 3) else 1.0)

    trainer.compute_loss = spoiled
    trainer.add_callback(Asking())
    trainer.train()
    return trainer


@pytest.mark.usefixtures("late")
@pytest.mark.parametrize("name", RUNS)
def test_no_step_reads_a_value_of_the_device(name: str, images: Any, tmp_path: Path) -> None:
    run, config = RUNS[name]
    settings = {"max_steps": 3, "probe_every_steps": 0, **({"config": config} if config else {})}
    trainer = run.make_trainer(tmp_path, images, **settings)
    guarded = Guarded(trainer)
    trainer.train()
    assert guarded.steps == 2
    assert isinstance(trainer.optimizer.optimizer, ConditionalAdamW)


def test_the_refusal_of_reads_refuses() -> None:
    mask = torch.tensor([True, False])
    for read in (mask.any().item, mask.nonzero, lambda: torch.ones(2)[mask], lambda: bool(mask[0]), mask.sum().tolist):
        with no_reads(), pytest.raises(AssertionError, match="reads a value|counts a mask"):
            read()


@pytest.mark.parametrize("name", ["gtsa", "ibot"])
def test_a_decision_that_is_read_late_changes_no_bit(
    name: str, images: Any, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    at_once = train(name, tmp_path / "at_once", images)
    request.getfixturevalue("late")
    late = train(name, tmp_path / "late", images)
    assert not different_weights(at_once.model, late.model)  # teacher and centers too
    for before, after in zip(*(t.optimizer.state_dict()["state"].values() for t in (at_once, late)), strict=True):
        assert all(torch.equal(before[key], after[key]) for key in before)  # counts of steps and moments
    lines = [
        [
            {k: v for k, v in line.items() if "second" not in k and "runtime" not in k and k != "data_wait"}
            for line in log
        ]
        for log in (at_once.state.log_history, late.state.log_history)
    ]
    assert lines[0] == lines[1]
    assert [line["step"] for line in lines[0] if "loss" in line or "eval_loss" in line] == [2, 3, 5, 6]
    assert late.parts.guard.skipped == at_once.parts.guard.skipped == 2
    names = [sorted(path.name for path in (tmp_path / kind).glob("nonfinite*")) for kind in ("at_once", "late")]
    assert names[0] == names[1] == ["nonfinite_step_1_rank_0.json", "nonfinite_step_3_rank_0.json"]
    assert (tmp_path / "at_once" / names[0][0]).read_text() == (tmp_path / "late" / names[0][0]).read_text()


@pytest.mark.usefixtures("late")
def test_late_decisions_end_a_run_before_its_next_step_and_resume_exactly(images: Any, tmp_path: Path) -> None:
    whole, resumed = whole_and_resumed(gtsa_run.make_trainer, tmp_path / "resumed", images, logging_steps=4)
    assert not different_weights(whole.model, resumed.model)
    with pytest.raises(NonFiniteLossError, match="the loss of step 1 or its gradient"):
        train("gtsa", tmp_path / "ended", images, max_nonfinite_steps=1)


@pytest.mark.usefixtures("late")
def test_a_decision_that_an_interrupted_call_left_is_none_of_the_next_one(images: Any, tmp_path: Path) -> None:
    class Interrupted(TrainerCallback):
        def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step == 3:
                raise KeyboardInterrupt

    fields = {"max_steps": 4, "save_steps": 2, "logging_steps": 4, "teacher_momentum": 0.5}
    whole = gtsa_run.make_trainer(tmp_path / "whole", images, **fields)
    whole.train()
    resumed = gtsa_run.make_trainer(tmp_path / "resumed", images, [interrupted := Interrupted()], **fields)
    with pytest.raises(KeyboardInterrupt):
        resumed.train()
    assert resumed.parts.guard.pending
    resumed.remove_callback(interrupted)
    resumed.train(resume_from_checkpoint=True)
    assert not different_weights(whole.model, resumed.model)


def test_values_on_a_host_are_read_as_they_are() -> None:
    assert HostCopy(torch.tensor([1, 0, 3])).tolist() == [1, 0, 3]
