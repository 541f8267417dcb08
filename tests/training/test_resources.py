"""Threads of a run on a CPU: chosen by the Python API too, and given back; messages while a bar is shown; operations."""

import logging
import os
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader
from torch.utils.flop_counter import FlopCounterMode
from transformers import TrainerCallback

from hf_geossl import GTSAForPreTraining
from hf_geossl.training.execution.compilation import BlockCompilation
from hf_geossl.training.resources import MatrixRate, count_operations, cpu_threads, training_context
from tests.helpers import equicoherent_run, gtsa_run, loca_run
from tests.helpers.exact_resume import different_weights
from tests.helpers.gtsa_run import make_trainer, small_arguments, small_config, small_views
from tests.helpers.methods import METHODS, equicoherent_batch


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


def test_more_workers_than_cores_are_said_in_a_line_of_ours(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda process: {0, 1}, raising=False)
    for workers, said in (
        (2, []),
        (8, ["8 processes read images, and there are 2 cores: --dataloader_num_workers 2 is enough"]),
    ):
        caplog.clear()
        with warnings.catch_warnings(record=True) as seen:
            warnings.simplefilter("always")
            with training_context(small_arguments(tmp_path, dataloader_num_workers=workers)):
                DataLoader(range(4), num_workers=workers)
        assert [record.message for record in caplog.records] == said
        assert not seen


def _gtsa_batch(images: int) -> dict[str, torch.Tensor | None]:
    views, generator = small_views(), torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (images, 40, 40, 3), dtype=torch.uint8, generator=generator)
    return views.augment(views.collate([views(each.numpy(), seed=0) for each in pixels]), generator)


def _gtsa(**fields: Any) -> GTSAForPreTraining:
    torch.manual_seed(0)
    return GTSAForPreTraining(small_config(attn_implementation="eager", **fields)).train()


def test_operations_are_those_of_the_whole_step() -> None:
    model, batch = _gtsa(), _gtsa_batch(4)
    with FlopCounterMode(display=False) as counter:
        model(**batch).loss.backward()
    counted = count_operations(model, batch)
    assert counted == counter.get_total_flops() / 4
    assert counted == pytest.approx(count_operations(model, batch, images=2))


def test_masked_patches_of_images_that_are_left_out_are_none_of_the_others() -> None:
    model, batch = METHODS["equicoherent"].model("ForPreTraining", num_hidden_layers=1).train(), equicoherent_batch(4)
    few = {name: value[:2] for name, value in batch.items()}
    batch["masked_patches"] = batch["bool_masked_pos"].flatten().nonzero().flatten()
    assert count_operations(model, batch, images=2) == count_operations(model, few, images=2)


def test_counting_waits_for_no_other_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whose memory may have ended there: an exchange would wait for it, or take its next one for this one."""
    method = METHODS["loca"]  # exchanges in its forward and backward passes
    model, batch = method.model("ForPreTraining", num_hidden_layers=1).train(), method.batch()
    expected = count_operations(model, batch)
    exchanged: list[torch.Tensor] = []
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 1)
    monkeypatch.setattr(torch.distributed, "all_reduce", exchanged.append)
    assert count_operations(model, batch) == expected
    assert exchanged == []
    model(**batch)
    assert exchanged


def test_a_layer_has_the_operations_of_its_formula() -> None:
    """Products twice, three times with the backward pass, and once for the teacher, which sees the global views alone."""
    batch, (width, inner) = _gtsa_batch(2), (32, 4 * 32)

    def forward(tokens: int) -> int:
        products = 2 * tokens * (4 * width**2 + 2 * width * inner)  # queries, keys, values, projection; MLP
        return products + 2 * 2 * tokens**2 * width  # scores, and sums of values

    views, patches = {"global": 2, "local": 2}, {"global": 16, "local": 4}
    student = sum(views[kind] * forward(patches[kind] + 1) for kind in views)
    teacher = views["global"] * forward(patches["global"] + 1)
    two, three = (count_operations(_gtsa(num_hidden_layers=layers), batch) for layers in (2, 3))
    assert three - two == 3 * student + teacher


def test_operations_are_counted_once_and_eagerly() -> None:
    """With layers that are computed twice, compiled, or whose attention is a kernel of its own."""
    model, batch = _gtsa(), _gtsa_batch(2)
    expected = count_operations(model, batch)
    again = _gtsa()
    again.gradient_checkpointing_enable()
    assert count_operations(again, batch) == expected
    assert all(layer.training and layer.gradient_checkpointing for layer in again.gtsa.encoder.layer)
    compiled = _gtsa()
    with BlockCompilation("aot_eager").compiled(compiled):
        assert count_operations(compiled, batch) == expected
    torch.manual_seed(0)
    assert count_operations(GTSAForPreTraining(small_config(attn_implementation="sdpa")).train(), batch) == expected


@pytest.mark.parametrize("run", [gtsa_run, loca_run, equicoherent_run])
def test_counting_changes_nothing_of_a_run(
    run: Any, images: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The anchor too, which takes what the student encodes first."""

    def train(name: str) -> Any:
        made = run.make_trainer(tmp_path / name, images)
        made.model.config.init_from = "a trunk"  # which an anchor asks for
        args = run.small_arguments(tmp_path / name, max_steps=3, logging_steps=1, anchor_weight=1.0)
        trainer = type(made)(made.model, args, images, views=made.views)
        trainer.train()
        return trainer

    plain = train("plain")
    assert not [line for line in plain.state.log_history if "matrix_rate_share" in line]  # of a CPU
    monkeypatch.setattr(MatrixRate, "reset", lambda self: setattr(self, "pending", True))
    monkeypatch.setattr("hf_geossl.training.resources.square_product_rate", lambda device, side: 1e12)
    counted = train("counted")
    assert different_weights(plain.model, counted.model) == []
    for before, line in zip(plain.state.log_history[:3], counted.state.log_history[:3], strict=True):
        assert line["anchor_loss"] == before["anchor_loss"]
        share = line["images_per_second"] * counted.parts.matrix_rate.operations / 1e12
        assert line["matrix_rate_share"] == share > 0


def test_what_cannot_be_counted_is_said_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fails(model: Any, inputs: Any) -> float:
        raise RuntimeError("no memory\nand more")

    monkeypatch.setattr("hf_geossl.training.resources.count_operations", fails)
    rate: Any = MatrixRate(small_arguments(tmp_path))
    rate.reset()
    assert not rate.pending  # a CPU
    rate.pending = True
    for _ in range(2):
        rate.observe(torch.nn.Linear(1, 1), {})
    assert rate.describe(100.0) == {}
    assert caplog.messages == ["the log has no share of the matrix rate: no memory"]
