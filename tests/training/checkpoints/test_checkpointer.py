"""Checkpoints of a run: refused where settings differ, whole or absent, and not too many."""

import errno
import json
import logging
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from transformers import TrainerState

from hf_geossl import GTSAForPreTraining, GTSATrainer, GTSAViews
from hf_geossl.training import trainer as trainer_module
from hf_geossl.training.checkpoints.checkpointer import FORMAT, Checkpointer
from hf_geossl.training.checkpoints.files import CheckpointError, newest_whole_checkpoint
from hf_geossl.training.parts import views_settings
from tests.helpers import equicoherent_run, gtsa_run, loca_run
from tests.helpers.gtsa_run import make_trainer, small_arguments, small_config, small_views


def test_resume_with_another_model_views_or_accumulation_is_refused(images: Any, tmp_path: Path) -> None:
    make_trainer(tmp_path, images, save_steps=2).train()
    path = str(tmp_path / "checkpoint-2")
    with pytest.raises(CheckpointError, match="trained with other settings: batches of a step was 1 and is 2"):
        make_trainer(tmp_path, images, gradient_accumulation_steps=2).train(resume_from_checkpoint=path)
    with pytest.raises(CheckpointError, match="other settings: optim was 'adamw_torch' and is 'sgd'; resume"):
        make_trainer(tmp_path, images, optim="sgd").train(resume_from_checkpoint=path)
    with pytest.raises(CheckpointError, match="is of another model: rotation_weight was 0.5 and is 0.1"):
        make_trainer(tmp_path, images, rotation_weight=0.1).train(resume_from_checkpoint=path)
    other = GTSATrainer(
        GTSAForPreTraining(small_config()), small_arguments(tmp_path), images, views=small_views(num_local=1)
    )
    with pytest.raises(
        CheckpointError, match="trained with other settings: views.crops.num_local was 2 and is 1; resume"
    ):
        other.train(resume_from_checkpoint=path)


def test_other_words_of_the_views_are_no_other_settings(
    images: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_trainer(tmp_path, images, save_steps=2).train()
    monkeypatch.setattr(GTSAViews, "describe", lambda self: "other words")
    monkeypatch.setattr(GTSAViews, "__doc__", "Other words.")
    resumed = make_trainer(tmp_path, images)
    assert resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2")).global_step == 4


def test_interrupted_save_leaves_the_checkpoint_before(
    images: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = make_trainer(tmp_path, images, save_steps=2)
    original = trainer_module.write_optimizer

    def fail(*args: Any) -> None:
        if trainer.state.global_step == 4:
            raise OSError("no space left on device")
        original(*args)

    monkeypatch.setattr(trainer_module, "write_optimizer", fail)
    with pytest.raises(
        CheckpointError, match="checkpoint-4 could not be written .no space left on device.: see to the"
    ):
        trainer.train()
    assert newest_whole_checkpoint(tmp_path) == tmp_path / "checkpoint-2"
    assert not (tmp_path / "checkpoint-4").exists()


def test_old_checkpoints_go_and_the_newest_stay(images: Any, tmp_path: Path) -> None:
    make_trainer(tmp_path, images, max_steps=8, save_steps=2, save_total_limit=2).train()
    assert sorted(path.name for path in tmp_path.glob("checkpoint-*")) == ["checkpoint-6", "checkpoint-8"]
    assert not (tmp_path / ".staging").exists()


# ---- Settings ----


def _alone() -> Any:
    """An accelerator of one process."""
    return SimpleNamespace(wait_for_everyone=lambda: None, reduce=lambda tensor, how: tensor)


def _checkpointer(folder: Path, **fields: Any) -> Checkpointer:
    return Checkpointer(small_arguments(folder, **fields), _alone())


def _save(checkpointer: Checkpointer, step: int, settings: Any, form: Any = FORMAT) -> Path | None:
    """A checkpoint of the smallest files that a run can go on from."""

    def write(folder: Path) -> None:
        for name in ("model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth"):
            (folder / name).write_bytes(b"x")
        (folder / "config.json").write_text(json.dumps({"model_type": "gtsa"}))
        state = {"settings": settings, **({} if form is None else {"format": form})}
        (folder / "run_state_0.json").write_text(json.dumps(state))

    return checkpointer.write(TrainerState(global_step=step), [write], last=False)


def _leaves(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    if isinstance(value, dict):
        return [leaf for key, inner in value.items() for leaf in _leaves(inner, (*path, key))]
    return [path]


def _changed(value: Any, path: tuple[Any, ...]) -> Any:
    """`value` with another leaf at `path`."""
    if path:
        return {**value, path[0]: _changed(value[path[0]], path[1:])}
    return (
        "another" if value is None or isinstance(value, str | bool) else [9] if isinstance(value, list | tuple) else 9
    )


VIEWS = {
    "gtsa": gtsa_run.small_views(),
    "loca": loca_run.small_views(),
    "equicoherent": equicoherent_run.small_views(equicoherent_run.small_config()),
}


@pytest.mark.parametrize("method", VIEWS)
def test_every_setting_of_the_views_alone_makes_a_resume_refuse(method: str, tmp_path: Path) -> None:
    settings = {"views": views_settings(VIEWS[method]), "batches of a step": 1}
    checkpointer = _checkpointer(tmp_path)
    _save(checkpointer, 2, settings)
    found = checkpointer.find(True, {"model_type": "gtsa"}, settings)
    assert found is not None
    assert found.folder == tmp_path / "checkpoint-2"
    leaves = _leaves(settings)
    named = {leaf[-1] for leaf in leaves}  # what a sentence about the views left out or rounded
    assert {"mean", "std", "aspect_ratio", "exact_resize", "max_translation", "padding_mode"} <= named
    assert len(leaves) > 30
    for leaf in leaves:
        name = ".".join(leaf).replace("[", r"\[")
        with pytest.raises(
            CheckpointError, match=rf"checkpoint-2 was trained with other settings: {name} was .* and is"
        ):
            checkpointer.find(True, {"model_type": "gtsa"}, _changed(settings, leaf))


def test_a_setting_that_one_side_does_not_have_is_another_setting(tmp_path: Path) -> None:
    checkpointer = _checkpointer(tmp_path)
    _save(checkpointer, 2, {"views": {"crops": {"size": 32}}})
    for settings, told in (
        ({"views": {"crops": {"size": 32, "scale": [0.2, 1.0]}}}, r"views.crops.scale was None and is \[0.2, 1.0\]"),
        ({"views": {"crops": {}}}, "views.crops.size was 32 and is None"),
        ({"views": {"crops": None}}, r"views.crops was \{'size': 32\} and is None"),
    ):
        with pytest.raises(CheckpointError, match=told):
            checkpointer.find(True, {"model_type": "gtsa"}, settings)
    same = {"views": {"crops": {"size": 32}}}
    assert checkpointer.find(str(tmp_path / "checkpoint-2"), {"model_type": "gtsa"}, same) is not None
    assert checkpointer.find(None, {"model_type": "gtsa"}, {"views": "of no matter"}) is None


def test_views_from_before_there_were_other_images_are_of_rgb_of_8_bits(tmp_path: Path) -> None:
    now = asdict(GTSAViews(global_size=32))
    before = {name: value for name, value in now.items() if name not in ("image", "channel_jitter")}
    checkpointer = _checkpointer(tmp_path)
    _save(checkpointer, 2, {"views": {"class": "GTSAViews", **before}})
    same = {"views": {"class": "GTSAViews", **now}}
    assert checkpointer.find(True, {"model_type": "gtsa"}, same) is not None
    deeper = asdict(GTSAViews(global_size=32, dtype="uint16"))
    with pytest.raises(CheckpointError, match="views.image.dtype was 'uint8' and is 'uint16'"):
        checkpointer.find(True, {"model_type": "gtsa"}, {"views": {"class": "GTSAViews", **deeper}})


def test_tuples_of_the_views_are_the_lists_of_a_file(tmp_path: Path) -> None:
    checkpointer = _checkpointer(tmp_path)
    _save(checkpointer, 2, {"views": {"mean": (0.1, 1 / 3, 0.25)}})
    assert checkpointer.find(True, {"model_type": "gtsa"}, {"views": {"mean": (0.1, 1 / 3, 0.25)}}) is not None
    with pytest.raises(CheckpointError, match="views.mean was"):  # not rounded
        checkpointer.find(True, {"model_type": "gtsa"}, {"views": {"mean": (0.1, 0.33333333333, 0.25)}})


@pytest.mark.parametrize(("form", "named"), [(None, 1), (1, 1), (FORMAT + 1, FORMAT + 1)])
def test_a_checkpoint_of_another_format_gets_one_sentence(form: int | None, named: int, tmp_path: Path) -> None:
    checkpointer = _checkpointer(tmp_path)
    _save(checkpointer, 2, {"views": {}}, form)
    with pytest.raises(CheckpointError) as error:
        checkpointer.find(True, {"model_type": "gtsa"}, {"views": {}})
    assert str(error.value) == (
        f"checkpoint-2 was written by another version of hf_geossl (format {named}, this one reads {FORMAT}): finish the "
        "run with that version, or start a new one from its weights with model_name_or_path"
    )


def test_a_checkpoint_of_the_format_before_is_refused_by_the_trainer(images: Any, tmp_path: Path) -> None:
    """What 0.13 wrote: the views as a sentence, no format."""
    make_trainer(tmp_path, images, save_steps=2).train()
    path = tmp_path / "checkpoint-4" / "run_state_0.json"
    saved = json.loads(path.read_text())
    old = {"stream": saved["stream"], "views": "2 global views of 32 pixels", "batches_of_a_step": 1}
    path.write_text(json.dumps(old).ljust(path.stat().st_size))
    with pytest.raises(CheckpointError, match=r"another version of hf_geossl \(format 1, this one reads"):
        make_trainer(tmp_path, images, max_steps=8).train(resume_from_checkpoint=True)


# ---- Writing ----


def test_what_is_not_a_write_failure_is_raised_as_it_is(tmp_path: Path) -> None:
    def fail(folder: Path) -> None:
        raise KeyError("a defect of ours")

    with pytest.raises(KeyError, match="a defect of ours"):
        _checkpointer(tmp_path).write(TrainerState(global_step=2), [fail], last=False)
    assert newest_whole_checkpoint(tmp_path) is None


def test_a_full_disk_is_counted_and_the_best_stays_the_one_before(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    checkpointer = _checkpointer(tmp_path)
    _save(checkpointer, 2, {})
    later: list[Path] = []

    def fail(folder: Path) -> None:
        (folder / "half").write_text("x")
        raise OSError(errno.ENOSPC, "No space left on device")

    state = TrainerState(global_step=4)
    state.best_global_step, state.best_model_checkpoint = 4, str(tmp_path / "checkpoint-2")
    with caplog.at_level(logging.WARNING):
        assert checkpointer.write(state, [fail, later.append], last=False) is None
    assert later == [tmp_path / ".staging" / "checkpoint-4"], "all processes come through all parts"
    assert checkpointer.failed == 1
    assert state.best_model_checkpoint == str(tmp_path / "checkpoint-2")
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-2"]
    assert caplog.messages == [
        message
        for message in caplog.messages
        if message.startswith("checkpoint-4 was not saved, the disk of the output folder is full: ")
    ]
    assert len(caplog.messages) == 1
    with pytest.raises(CheckpointError, match="checkpoint-4 was not saved.*Make room, then resume from the checkpoint"):
        checkpointer.write(state, [fail], last=True)
    assert checkpointer.failed == 2


def test_the_record_of_the_run_is_written_last_and_knows_the_best(tmp_path: Path) -> None:
    checkpointer = _checkpointer(tmp_path)
    before: list[list[str]] = []
    state = TrainerState(global_step=3)
    state.best_global_step = 3

    def part(folder: Path) -> None:
        before.append(sorted(path.name for path in folder.iterdir()))
        (folder / "run_state_0.json").write_text("{}")

    assert checkpointer.write(state, [part], last=False) == tmp_path / "checkpoint-3"
    assert before == [[]]
    assert state.best_model_checkpoint == str(tmp_path / "checkpoint-3")
    saved = TrainerState.load_from_json(str(tmp_path / "checkpoint-3" / "trainer_state.json"))
    assert (saved.global_step, saved.best_model_checkpoint) == (3, str(tmp_path / "checkpoint-3"))
