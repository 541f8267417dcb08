"""Callbacks: what a step that is left out does not move, and signals."""

import itertools
import os
import signal
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import TrainerCallback

from hf_geossl.training import callbacks
from hf_geossl.training.callbacks import PreemptionCallback, ProcessSeedCallback
from tests.helpers.gtsa_run import make_trainer


def _state(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in model.state_dict().items()}


class Recorder(TrainerCallback):
    """Copies student and teacher after every optimizer step and before it."""

    def __init__(self) -> None:
        self.before: list[dict[str, torch.Tensor]] = []
        self.after: list[dict[str, torch.Tensor]] = []
        self.weight_decays: list[float] = []

    def on_step_begin(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        self.before.append(_state(model))

    def on_step_end(
        self, args: Any, state: Any, control: Any, model: Any = None, optimizer: Any = None, **kwargs: Any
    ) -> None:
        self.after.append(_state(model))
        self.weight_decays.append(optimizer.param_groups[0]["weight_decay"])


def test_teacher_stays_where_the_gradient_scaler_skips_the_step(images: Any, tmp_path: Path) -> None:
    class Skipping(TrainerCallback):
        """Makes accelerate say that the second step was skipped, and undoes it, as a scaler does."""

        def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            self.trainer.optimizer._is_overflow = state.global_step == 1

    recorder, skipping = Recorder(), Skipping()
    trainer = make_trainer(tmp_path, images, [recorder, skipping], teacher_momentum=0.5)
    skipping.trainer = trainer
    trainer.train()
    teachers = [{n: v for n, v in state.items() if n.startswith("teacher.")} for state in recorder.after]
    changed = [any(not torch.equal(a[n], b[n]) for n in a) for a, b in itertools.pairwise(teachers)]
    assert changed == [False, True, False]  # step 1 skipped, step 2 moved; the last momentum is 1


def test_stop_request_holds_for_one_training(images: Any, tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, images)

    class Stop(TrainerCallback):
        def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step == 1:
                os.kill(os.getpid(), signal.SIGTERM)

    stop = Stop()
    trainer.add_callback(stop)
    assert trainer.train().global_step == 2
    assert (tmp_path / "checkpoint-2" / "COMPLETE.json").is_file()
    trainer.remove_callback(stop)
    assert trainer.train(resume_from_checkpoint=True).global_step == 4


def test_what_a_launcher_passes_on_is_no_second_request(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(callbacks.time, "monotonic", lambda: now[0])
    preemption = PreemptionCallback()
    for number in (signal.SIGTERM, signal.SIGTERM, signal.SIGINT):
        preemption.receive(number, None)
    assert preemption.received_signal == signal.SIGTERM
    now[0] += 10
    preemption.receive(signal.SIGTERM, None)
    with pytest.raises(KeyboardInterrupt):
        preemption.receive(signal.SIGINT, None)


def test_the_first_process_draws_what_it_would_draw_alone() -> None:
    def drawn(rank: int, step: int = 0) -> list[float]:
        args = SimpleNamespace(process_index=rank, seed=7)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(3)
            ProcessSeedCallback().on_train_begin(args, SimpleNamespace(global_step=step), None)  # type: ignore[arg-type]
            return torch.rand(3).tolist()

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        alone = torch.rand(3).tolist()
    assert drawn(0) == alone
    assert drawn(1) == drawn(1)
    assert len({tuple(values) for values in (alone, drawn(1), drawn(2), drawn(1, step=5))}) == 4
