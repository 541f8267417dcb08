"""Checkpoints are whole or absent, and hold whole tensors by name."""

import errno
import io
import json
import logging
import os
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

from hf_geossl.training.checkpoints.files import (
    CheckpointError,
    check_checkpoint,
    describe_space,
    is_lack_of_space,
    is_write_failure,
    list_checkpoints,
    newest_whole_checkpoint,
    publish_checkpoint,
    read_optimizer,
    read_weights,
    why_not_whole,
    write_json,
    write_optimizer,
)
from tests.helpers.gtsa_run import make_trainer


def test_truncated_newest_checkpoint_is_passed_over(
    images: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    make_trainer(tmp_path, images, save_steps=2).train()
    file = tmp_path / "checkpoint-4" / "optimizer.pt"
    file.write_bytes(file.read_bytes()[:-1])
    with caplog.at_level(logging.WARNING):
        assert newest_whole_checkpoint(tmp_path) == tmp_path / "checkpoint-2"
    assert "checkpoint-4 is passed over: optimizer.pt has" in caplog.text
    with pytest.raises(CheckpointError, match="checkpoint-4 is not whole: optimizer.pt"):
        make_trainer(tmp_path, images).train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))


def test_checkpoint_of_another_method_or_data_is_refused(images: Any, tmp_path: Path) -> None:
    make_trainer(tmp_path, images, save_steps=4).train()
    with pytest.raises(ValueError, match="rows"):
        make_trainer(tmp_path, images[:20], max_steps=8).train(resume_from_checkpoint=True)
    config = tmp_path / "checkpoint-4" / "config.json"
    text = config.read_text()
    config.write_text(text.replace('"model_type": "gtsa"', '"model_type": "loca"'))
    with pytest.raises(CheckpointError, match="checkpoint of 'loca', and the model to train is 'gtsa'"):
        make_trainer(tmp_path, images, max_steps=8).train(resume_from_checkpoint=True)
    with pytest.raises(CheckpointError, match="holds no whole checkpoint"):
        make_trainer(tmp_path / "empty", images).train(resume_from_checkpoint=True)


def test_checkpoint_of_weights_alone_is_not_resumed(images: Any, tmp_path: Path) -> None:
    make_trainer(tmp_path, images, save_steps=2, save_only_model=True).train()
    with pytest.raises(CheckpointError, match="checkpoint-2 holds no optimizer.*save_only_model"):
        make_trainer(tmp_path, images).train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))


# ---- Write failures ----


def _failure_of_torch(folder: Path) -> Exception:
    """What `torch.save` raises where the system refuses to write on."""
    try:
        torch.save({"a": torch.zeros(300_000)}, Full(folder / "file"))
    except Exception as error:
        return error
    raise AssertionError("torch.save wrote to a full disk")


class Full(io.FileIO):
    """A file on a disk that is full after the first bytes."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, "w")
        self.left = 1000

    def write(self, data: Any) -> int:
        self.left -= len(data)
        if self.left < 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        return super().write(data)


def test_write_failures_and_lack_of_space_are_told_apart(tmp_path: Path) -> None:
    space = [OSError(number, os.strerror(number)) for number in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)]
    space.append(SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"))
    space.append(RuntimeError("[enforce fail at inline_container.cc:664] . unexpected pos 64 vs 0"))
    space.append(_failure_of_torch(tmp_path))
    for error in space:
        assert is_write_failure(error), error
        assert is_lack_of_space(error), error
    for error in (PermissionError(errno.EACCES, "Permission denied"), SafetensorError("os error 13")):
        assert is_write_failure(error)
        assert not is_lack_of_space(error)
    for error in (KeyError("x"), RuntimeError("CUDA out of memory"), ValueError("28")):
        assert not is_write_failure(error)


def test_the_message_of_a_full_disk_says_how_much_a_checkpoint_takes(tmp_path: Path) -> None:
    assert re.fullmatch(r"\d+\.\d MB are free, and no checkpoint has been saved yet", describe_space(tmp_path))
    _publish(tmp_path, 2, {"model.safetensors": b"x" * 1_200_000, "run_state_0.json": b"{}"})
    assert describe_space(tmp_path).endswith(" MB are free, checkpoint-2, which is whole, takes 1.2 MB")


# ---- Whole or absent ----


def _publish(run_dir: Path, step: int, files: dict[str, bytes], world_size: int = 1) -> Path:
    staged = run_dir / ".staging" / f"checkpoint-{step}"
    staged.mkdir(parents=True)
    for name, content in files.items():
        (staged / name).write_bytes(content)
    publish_checkpoint(staged, run_dir / f"checkpoint-{step}", world_size)
    return run_dir / f"checkpoint-{step}"


def test_a_published_checkpoint_lists_its_files_and_replaces_one_that_lies_there(tmp_path: Path) -> None:
    folder = _publish(tmp_path, 2, {"run_state_0.json": b"{}", "old": b"1"})
    (tmp_path / ".staging-replaced-checkpoint-1").mkdir()  # of a save that was killed between two renames
    folder = _publish(tmp_path, 2, {"run_state_0.json": b"{}", "new": b"123"})
    manifest = json.loads((folder / "COMPLETE.json").read_text())
    assert manifest == {"world_size": 1, "files": {"new": 3, "run_state_0.json": 2}}
    assert sorted(path.name for path in folder.iterdir()) == ["COMPLETE.json", "new", "run_state_0.json"]
    assert not list(tmp_path.glob(".staging-replaced-*"))
    assert why_not_whole(folder) is None


def test_weights_are_as_readable_as_the_other_files(tmp_path: Path) -> None:
    def write(folder: Path) -> None:
        save_file({"a": torch.zeros(2)}, folder / "model.safetensors")
        (folder / "run_state_0.json").write_text("{}")

    staged = tmp_path / "staged"
    staged.mkdir()
    write(staged)
    os.chmod(staged / "model.safetensors", 0o600)
    publish_checkpoint(staged, tmp_path / "checkpoint-2", 1)
    modes = {path.stat().st_mode for path in (tmp_path / "checkpoint-2").iterdir()}
    assert len(modes) == 1


def test_files_of_a_process_that_did_not_arrive_are_named(tmp_path: Path) -> None:
    message = "checkpoint-3 was not saved: run_state_1.json, run_state_2.json did not arrive from their processes"
    with pytest.raises(CheckpointError, match=message):
        _publish(tmp_path, 3, {"run_state_0.json": b"{}"}, world_size=3)
    assert not (tmp_path / "checkpoint-3").exists()


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (lambda folder: (folder / "COMPLETE.json").unlink(), "it has no COMPLETE.json, so it was never finished"),
        (lambda folder: (folder / "COMPLETE.json").write_text("{"), "its COMPLETE.json is damaged"),
        (lambda folder: (folder / "COMPLETE.json").write_text("[]"), "its COMPLETE.json is damaged"),
        (lambda folder: (folder / "weights").unlink(), "weights has no bytes of 4"),
        (lambda folder: (folder / "weights").write_bytes(b"12345"), "weights has 5 bytes of 4"),
        (lambda folder: (folder / "more").write_bytes(b"a note of the user"), None),
    ],
    ids=["no list", "cut list", "other list", "gone", "longer", "more"],
)
def test_what_is_wrong_with_a_checkpoint_is_said(damage: Any, told: str | None, tmp_path: Path) -> None:
    folder = _publish(tmp_path, 2, {"run_state_0.json": b"{}", "weights": b"1234"})
    damage(folder)
    assert why_not_whole(folder) == told


def test_the_newest_is_the_one_of_the_most_steps(tmp_path: Path) -> None:
    for step in (9, 100, 20):
        _publish(tmp_path, step, {"run_state_0.json": b"{}"})
    for stranger in ("checkpoint-x", "checkpoint-", "runs"):
        (tmp_path / stranger).mkdir()
    assert [path.name for path in list_checkpoints(tmp_path)] == ["checkpoint-100", "checkpoint-20", "checkpoint-9"]
    assert newest_whole_checkpoint(tmp_path) == tmp_path / "checkpoint-100"
    assert list_checkpoints(tmp_path / "nowhere") == []


@pytest.mark.parametrize(
    ("saved", "told"),
    [
        ("{", "checkpoint-2 has no readable config.json"),
        ('{"model_type": "gtsa", "hidden_size": 48}', "is of another model: hidden_size was 48 and is 32; resume with"),
        ('{"model_type": "gtsa", "hidden_size": 32, "dtype": "bfloat16", "future": 1}', None),
    ],
)
def test_a_checkpoint_must_be_of_the_model(saved: str, told: str | None, tmp_path: Path) -> None:
    """Of the fields that both have; versions, names and dtypes are not the model."""
    files = dict.fromkeys(("run_state_0.json", "optimizer.pt", "scheduler.pt", "rng_state.pth"), b"{}")
    folder = _publish(tmp_path, 2, {**files, "config.json": saved.encode()})
    config = {"model_type": "gtsa", "hidden_size": 32, "dtype": "float32"}
    if told is None:
        assert check_checkpoint(folder, config) == folder
        return
    with pytest.raises(CheckpointError, match=told):
        check_checkpoint(folder, config)


def test_a_checkpoint_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(
        CheckpointError, match="there is no checkpoint 'checkpoint-7': give a checkpoint-N folder, or true"
    ):
        check_checkpoint(tmp_path / "checkpoint-7", {"model_type": "gtsa"})


def _parts(width: int = 4, two_groups: bool = True) -> tuple[nn.Module, torch.optim.AdamW, LambdaLR]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, width), nn.Tanh(), nn.Linear(width, 2))
    weights = [value for value in model.parameters() if value.ndim == 2]
    biases = [value for value in model.parameters() if value.ndim == 1]
    groups = [{"params": weights, "weight_decay": 0.1}, {"params": biases, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups if two_groups else [{"params": weights + biases}], lr=0.1)
    return model, optimizer, LambdaLR(optimizer, lambda step: 1 / (1 + step))


def _train(model: nn.Module, optimizer: torch.optim.AdamW, scheduler: LambdaLR, steps: range) -> None:
    for step in steps:
        optimizer.zero_grad()
        model(torch.full((2, 3), step / 7)).square().sum().backward()
        optimizer.step()
        scheduler.step()


def test_a_run_goes_on_with_the_same_bits(tmp_path: Path) -> None:
    whole = _parts()
    _train(*whole, range(3))
    write_optimizer(*whole, tmp_path, wanted=True)
    save_file(whole[0].state_dict(), tmp_path / "model.safetensors")
    resumed = _parts()
    read_weights(resumed[0], tmp_path)
    read_optimizer(*resumed, tmp_path)
    for parts in (whole, resumed):
        _train(*parts, range(3, 6))
    for ours, theirs in zip(resumed[0].parameters(), whole[0].parameters(), strict=True):
        assert torch.equal(ours, theirs)
    assert resumed[2].get_last_lr() == whole[2].get_last_lr() == pytest.approx([0.1 / 7] * 2)


def test_a_setting_that_the_checkpoint_replaces_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    whole = _parts()
    write_optimizer(*whole, tmp_path, wanted=True)
    read_optimizer(*_parts(), tmp_path)
    assert not caplog.messages
    model, optimizer, _ = _parts()
    for group in optimizer.param_groups:
        group["initial_lr"] = group["lr"] = 0.5
    read_optimizer(model, optimizer, LambdaLR(optimizer, lambda step: 1.0), tmp_path)
    assert [message.split(":")[0] for message in caplog.messages] == [
        f"the learning_rate stays that of {tmp_path.name}, 0.1, and 0.5 is left out"
    ]


def test_a_state_knows_parameters_by_name(tmp_path: Path) -> None:
    parts = _parts()
    _train(*parts, range(1))
    write_optimizer(*parts, tmp_path, wanted=True)
    saved = torch.load(tmp_path / "optimizer.pt", weights_only=True)
    assert [group["params"] for group in saved["param_groups"]] == [["0.weight", "2.weight"], ["0.bias", "2.bias"]]
    assert torch.equal(saved["state"]["2.bias"]["exp_avg"], parts[1].state[parts[0][2].bias]["exp_avg"])


def test_a_process_that_does_not_save_writes_nothing(tmp_path: Path) -> None:
    write_optimizer(*_parts(), tmp_path, wanted=False)
    assert list(tmp_path.iterdir()) == []


def test_weights_and_groups_of_another_model_are_refused(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoint-3"
    folder.mkdir()
    parts = _parts()
    write_optimizer(*parts, folder, wanted=True)
    save_file(parts[0].state_dict(), folder / "model.safetensors")
    with pytest.raises(
        CheckpointError, match=r"checkpoint-3 does not fit: 0.weight must have shape \(5, 3\), got \(4, 3\)"
    ):
        read_weights(_parts(width=5)[0], folder)
    with pytest.raises(
        CheckpointError, match="checkpoint-3 does not fit: the weights are of another model: 0.bias is on one"
    ):
        read_weights(nn.Sequential(nn.Tanh(), parts[0]), folder)
    with pytest.raises(
        CheckpointError, match="checkpoint-3 does not fit: the state of the optimizer has its parameters in"
    ):
        read_optimizer(*_parts(two_groups=False), folder)


def test_plain_values_are_written_as_json(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"seconds": 0.1, "keys": ["ü"], "none": None})
    assert json.loads((tmp_path / "a.json").read_text()) == {"seconds": 0.1, "keys": ["ü"], "none": None}
