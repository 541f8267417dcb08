"""Threads of a run on a CPU: chosen by the Python API too, and given back; messages while a bar is shown."""

import logging
import os
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import TrainerCallback

from hf_geossl.training.resources import cpu_threads, training_context
from tests.helpers.gtsa_run import make_trainer, small_arguments


@pytest.fixture
def four_threads() -> Any:
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize(
    ("cores", "workers", "expected"), [(8, 0, 4), (4, 0, 4), (4, 1, 3), (4, 3, 1), (2, 8, 1), (None, 0, 1)]
)
def test_workers_get_a_core_each(
    cores: int | None, workers: int, expected: int, four_threads: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: cores)
    with cpu_threads(workers):
        assert torch.get_num_threads() == expected
    assert torch.get_num_threads() == 4


class Threads(TrainerCallback):
    """Notes the threads of each step; raises in step `fails_at`."""

    def __init__(self, fails_at: int = -1) -> None:
        self.fails_at = fails_at
        self.seen: list[int] = []

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.seen.append(torch.get_num_threads())
        if state.global_step == self.fails_at:
            raise RuntimeError("the step fails")


def test_a_run_from_python_has_the_threads_of_the_command_and_gives_them_back(
    four_threads: Any, images: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 3)
    threads = Threads()
    make_trainer(tmp_path / "a", images, [threads], max_steps=2, dataloader_num_workers=1, num_streams=1).train()
    assert threads.seen == [2, 2]
    assert torch.get_num_threads() == 4
    failing = Threads(fails_at=1)
    with pytest.raises(RuntimeError, match="the step fails"):
        make_trainer(tmp_path / "b", images, [failing], max_steps=2).train()
    assert failing.seen == [3, 3]
    assert torch.get_num_threads() == 4


def test_messages_go_through_the_bar_where_there_is_one(tmp_path: Path) -> None:
    root = logging.getLogger()
    before = list(root.handlers)
    console = logging.StreamHandler()
    root.addHandler(console)
    try:
        with training_context(small_arguments(tmp_path, disable_tqdm=False)):
            assert console not in root.handlers  # tqdm's handler stands for it, which clears the bar first
        assert console in root.handlers
        with training_context(small_arguments(tmp_path, disable_tqdm=True)):
            assert console in root.handlers
    finally:
        root.removeHandler(console)
    assert root.handlers == before


def test_warnings_are_filtered_within_a_run_alone(tmp_path: Path) -> None:
    message = "FSDP2-wrapped module Linear returned a view tensor"
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        with training_context(small_arguments(tmp_path)):
            warnings.warn(message, stacklevel=1)
            warnings.warn("something else", stacklevel=1)
        warnings.warn(message, stacklevel=1)
    assert [str(warning.message) for warning in seen] == ["something else", message]
