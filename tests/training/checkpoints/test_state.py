"""State of model and optimizer in a checkpoint: a run goes on from it with the same bits, and other models are refused."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

from hf_geossl.training.checkpoints.files import CheckpointError
from hf_geossl.training.checkpoints.state import read_optimizer, read_weights, write_json, write_optimizer


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
