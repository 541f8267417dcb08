"""Weights and optimizer states by name; what several processes do with them is in integration/test_distributed.py."""

import copy
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from hf_geossl.training.sharding import (
    LAYERS,
    fsdp_plugin_settings,
    full_tensor,
    gather_optimizer_state,
    gather_state,
    gradient_norms,
    is_sharded,
    load_optimizer_state,
    load_state,
    prepared_before,
    read_state,
    shard_like,
    whole_model,
)
from tests.helpers.gtsa_run import small_arguments


def _trained(seed: int) -> tuple[nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
    groups = [{"params": [p for p in model.parameters() if p.ndim > 1], "weight_decay": 0.1}]
    optimizer = torch.optim.AdamW([*groups, {"params": [p for p in model.parameters() if p.ndim == 1]}], lr=0.1)
    _step(model, optimizer)
    return model, optimizer


def _step(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    model(torch.arange(6.0).view(2, 3)).square().sum().backward()
    optimizer.step()
    optimizer.zero_grad()


def test_a_run_goes_on_from_gathered_states_as_if_nothing_had_been(tmp_path: Path) -> None:
    model, optimizer = _trained(0)
    weights = copy.deepcopy(gather_state(model, True))
    saved = copy.deepcopy(gather_optimizer_state(model, optimizer, True))
    assert sorted(saved["state"]) == ["0.bias", "0.weight", "2.bias", "2.weight"]
    assert [group["params"] for group in saved["param_groups"]] == [["0.weight", "2.weight"], ["0.bias", "2.bias"]]
    _step(model, optimizer)
    other, others = _trained(1)
    load_state(other, weights)
    load_optimizer_state(other, others, saved)
    _step(other, others)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True))
    assert gather_state(model, False) == {}
    assert gather_optimizer_state(model, optimizer, False)["state"] == {}


def test_weights_of_another_model_are_refused_by_name() -> None:
    model, optimizer = _trained(0)
    state = gather_state(model, True)
    with pytest.raises(ValueError, match=r"2.bias is on one side only \(1 such names\)"):
        load_state(model, {name: value for name, value in state.items() if name != "2.bias"})
    with pytest.raises(ValueError, match=r"0.weight must have shape \(4, 3\), got \(3, 4\)"):
        load_state(model, {**state, "0.weight": state["0.weight"].T})
    saved = gather_optimizer_state(model, optimizer, True)
    first, second = saved["param_groups"]
    moved = [{**first, "params": ["0.weight"]}, {**second, "params": [*second["params"], "2.weight"]}]
    with pytest.raises(ValueError, match=r"parameters in other groups \(2.weight\)"):
        load_optimizer_state(model, optimizer, {**saved, "param_groups": moved})


def test_weights_are_read_from_one_file_or_several(tmp_path: Path) -> None:
    tensors = {"a": torch.arange(3.0), "b": torch.ones(2, 2)}
    save_file({"a": tensors["a"]}, tmp_path / "model-00001-of-00002.safetensors")
    save_file({"b": tensors["b"]}, tmp_path / "model-00002-of-00002.safetensors")
    save_file({"c": torch.zeros(1)}, tmp_path / "positions.safetensors")
    read = read_state(tmp_path)
    assert sorted(read) == ["a", "b"]
    assert all(torch.equal(read[name], tensors[name]) for name in read)


def test_norms_of_gradients_are_those_of_each() -> None:
    generator = torch.Generator().manual_seed(0)
    gradients = [torch.randn(shape, generator=generator) for shape in ((3, 4), (5,), (2, 2, 2))]
    slow = [sum(value**2 for value in gradient.flatten().tolist()) ** 0.5 for gradient in gradients]
    assert gradient_norms(gradients).tolist() == pytest.approx(slow, rel=1e-6)


def test_a_model_that_is_not_divided_is_itself() -> None:
    model, _ = _trained(0)
    assert whole_model(model, wanted=False) is model
    assert not is_sharded(model)
    tensor = torch.ones(2)
    assert full_tensor(tensor) is tensor
    assert shard_like(tensor, torch.zeros(2)) is tensor


def test_fsdp_settings_hold_what_this_library_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("ACCELERATE_USE_FSDP", "FSDP_VERSION", "FSDP_TRANSFORMER_CLS_TO_WRAP"):
        monkeypatch.delenv(name, raising=False)
    assert fsdp_plugin_settings(None, "no") is None
    settings = fsdp_plugin_settings({"fsdp_version": 2, "transformer_cls_names_to_wrap": "Own,ViTLayer"}, "bf16")
    assert settings is not None
    assert settings["transformer_cls_names_to_wrap"] == ["Own", "ViTLayer", "ViTPatchEmbeddings"]
    policy = settings["mixed_precision_policy"]  # autocast chooses what is computed in bf16
    assert (policy.param_dtype, policy.reduce_dtype, policy.cast_forward_inputs) == (None, torch.float32, False)
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.raises(ValueError, match="fsdp_version must be 2, got 1: launch with"):
        fsdp_plugin_settings(None, "no")
    monkeypatch.setenv("FSDP_VERSION", "2")
    launched = fsdp_plugin_settings(None, "no")
    assert launched == {"fsdp_version": 2, "transformer_cls_names_to_wrap": list(LAYERS)}


def test_optimizers_that_cannot_be_divided_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """bitsandbytes and Adafactor end in tracebacks of DTensor otherwise."""
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    monkeypatch.setenv("FSDP_VERSION", "2")
    for optim in ("adafactor", "adamw_bnb_8bit"):
        with pytest.raises(ValueError, match=f"optim must be one of adamw_torch, .* with FSDP2, got {optim}: "):
            small_arguments(tmp_path, optim=optim)
    small_arguments(tmp_path, optim="sgd")


def test_what_is_prepared_is_given_back_as_it_is() -> None:
    class Accelerator:
        def prepare(self, *objects: object) -> str:
            return "prepared"

    accelerator = Accelerator()
    first, second = object(), object()
    assert prepared_before(accelerator).prepare(first, second) == (first, second)
    assert accelerator.prepare(first) == "prepared"
