"""Weights and optimizer states that FSDP2 divides among processes: gathered, divided again, and named."""

import copy
import itertools
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from safetensors import safe_open
from torch import nn
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy
from torch.distributed.tensor import DTensor, Partial, Placement, Replicate, distribute_tensor
from transformers import PreTrainedModel

from hf_geossl.training.adaptation.adapters import merge_state, scaling_of

LAYERS = ("ViTLayer", "ViTPatchEmbeddings")  # divided one by one, of student and teacher alike
DIVISIBLE = ("adamw_torch", "adamw_torch_fused", "sgd", "adagrad", "rmsprop")  # of torch's, each weight by itself
_WRAPPED = "_checkpoint_wrapped_module."


def is_sharded(model: nn.Module) -> bool:
    """Whether processes hold parts of the model's weights."""
    return isinstance(model, FSDPModule)


def unshard(model: nn.Module) -> None:
    """Gathers the weights that the model itself holds in a forward pass; its backward pass divides them again."""
    if isinstance(model, FSDPModule):
        model.unshard()


def reshard(model: nn.Module) -> None:
    """Divides again what `unshard` has gathered, where no backward pass follows."""
    if isinstance(model, FSDPModule):
        model.reshard()


def full_tensor(tensor: torch.Tensor) -> torch.Tensor:
    """The whole of a tensor; where processes hold parts of it, all of them must call this at the same time."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def shard_like(tensor: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """This process's part of a whole tensor, divided as `like`; the tensor itself where `like` is not divided."""
    if not isinstance(like, DTensor):
        return tensor
    # every process has the whole tensor, so nothing is sent
    return distribute_tensor(tensor, like.device_mesh, like.placements, src_data_rank=None)


def gather_state(model: nn.Module, wanted: bool) -> dict[str, torch.Tensor]:
    """Gathers parameters and buffers by name, whole, on the CPU, one by one; empty where not `wanted`.

    All processes must call this.
    """
    state = {}
    for name, value in model.state_dict().items():  # FSDP gives parts here, whatever was gathered for a forward pass
        gathered = full_tensor(value.detach())
        if wanted:
            state[name] = gathered.cpu() if isinstance(value, DTensor) else gathered.cpu().clone()
    return state


def whole_model(model: PreTrainedModel, wanted: bool) -> Any:
    """A model itself where it is not divided and has no adapters, otherwise a copy on the CPU, with merged adapters.

    All processes must call this; the copy, of the class that FSDP wrapped, is None where it is not `wanted`.
    """
    scaling = scaling_of(model)
    if not is_sharded(model) and scaling is None:
        return model
    state = gather_state(model, wanted)
    return _copy_with(model, merge_state(state, scaling)) if wanted else None


def read_unsharded(model: PreTrainedModel, folder: str | Path) -> Any:
    """Reads a model that is divided among processes from its checkpoint to the CPU, without asking them."""
    return _copy_with(model, read_state(folder))


def read_state(folder: str | Path) -> dict[str, torch.Tensor]:
    """The weights of a folder by name, in one `safetensors` file or several; they are read when they are looked at."""
    state: dict[str, torch.Tensor] = {}
    for path in sorted(Path(folder).glob("model*.safetensors")):
        with safe_open(path, framework="pt") as file:
            state.update({name: file.get_tensor(name) for name in file.keys()})  # noqa: SIM118
    return state


def _copy_with(model: PreTrainedModel, state: dict[str, torch.Tensor]) -> Any:
    kind: Any = next(kind for kind in type(model).__mro__ if not issubclass(kind, FSDPModule))
    with torch.random.fork_rng(devices=[]), torch.device("meta"):
        copied = kind(copy.deepcopy(model.config))
    copied.load_state_dict(state, assign=True)
    return copied.train(model.training)


@torch.no_grad()
def load_state(model: nn.Module, state: Mapping[str, torch.Tensor]) -> None:
    """Gives a model whole weights by name; where it is divided, each process takes its parts.

    Raises:
        ValueError: If names or shapes are not the model's.
    """
    own = model.state_dict()
    if wrong := sorted(own.keys() ^ state.keys()):
        raise ValueError(f"the weights are of another model: {wrong[0]} is on one side only ({len(wrong)} such names)")
    for name, target in own.items():
        if target.shape != state[name].shape:
            raise ValueError(f"{name} must have shape {tuple(target.shape)}, got {tuple(state[name].shape)}")
        target.copy_(shard_like(state[name].to(target.device, target.dtype), target))


@torch.no_grad()
def broadcast_state(model: nn.Module, device: torch.device) -> None:
    """Gives all processes the first one's weights, which FSDP2, unlike DDP, does not do."""
    for tensor in model.state_dict().values():
        sent = tensor.to(device)
        torch.distributed.broadcast(sent, 0)
        if torch.distributed.get_rank():
            tensor.copy_(sent)


def fsdp_plugin_settings(given: Mapping[str, Any] | None, mixed_precision: str) -> dict[str, Any] | None:
    """Settings of accelerate's FSDP plugin with this library's layers and precision; None where FSDP was not asked for.

    It is asked for by transformers' arguments (`given`) or by the launcher.

    Raises:
        ValueError: For FSDP of version 1.
    """
    if given is None and os.environ.get("ACCELERATE_USE_FSDP", "").lower() != "true":
        return None
    settings = dict(given or {})
    version = int(settings.get("fsdp_version", os.environ.get("FSDP_VERSION", 1)))
    if version != 2:
        raise ValueError(
            f"fsdp_version must be 2, got {version}: launch with hf_geossl/training/accelerate/fsdp2.yaml, or set "
            "fsdp_version: 2 in your own file"
        )
    layers = settings.get("transformer_cls_names_to_wrap") or os.environ.get("FSDP_TRANSFORMER_CLS_TO_WRAP") or ""
    named = layers.split(",") if isinstance(layers, str) else list(layers)
    # accelerate divides the student's patch embedding by itself, so the teacher's must be divided in the same way
    settings["transformer_cls_names_to_wrap"] = list(dict.fromkeys([*filter(None, named), *LAYERS]))
    settings["fsdp_version"] = version
    if mixed_precision != "no":
        # autocast chooses what is computed in half precision, as it does without FSDP; accelerate's own policy would
        # round crop boxes, residual streams, prototypes and the loss too
        settings["mixed_precision_policy"] = MixedPrecisionPolicy(
            param_dtype=None, reduce_dtype=torch.float32, cast_forward_inputs=False
        )
    return settings


def check_divisible_optimizer(optim: str) -> None:
    """Raises a ValueError for optimizers whose arithmetic is not that of each weight by itself; FSDP2 divides the weights."""
    if optim not in DIVISIBLE:
        raise ValueError(
            f"optim must be one of {', '.join(DIVISIBLE)} with FSDP2, got {optim}: the states of others are not divided as the "
            "weights are; on one GPU, or with DDP, it can be used"
        )


def prepared_before(accelerator: Accelerator) -> Accelerator:
    """A copy whose `prepare` returns its arguments, for a model that is divided already.

    accelerate would identify parameters by their addresses, which parts without rows have in common.
    """
    ready: Any = copy.copy(accelerator)
    ready.prepare = lambda *objects: objects
    return ready


# ---- The optimizer


def _names(model: nn.Module) -> dict[int, str]:
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()  # the optimizer's parameters are the parts
    # activation checkpointing puts a name of its own between those of the modules
    return {id(parameter): name.replace(_WRAPPED, "") for name, parameter in model.named_parameters()}


def gather_optimizer_state(model: nn.Module, optimizer: torch.optim.Optimizer, wanted: bool) -> dict[str, Any]:
    """Gathers the state of an optimizer in a form that does not know how processes divide it; all must call this.

    Returns:
        `dict[str, Any]`: `state`, for each parameter's name its tensors, whole and on the CPU, and `param_groups` with
        names in `params`; a parameter that has never moved has no state. Without state where it is not `wanted`.
    """
    names, state, groups = _names(model), {}, []
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            gathered = {
                key: full_tensor(value) if isinstance(value, torch.Tensor) else value
                for key, value in optimizer.state.get(parameter, {}).items()
            }
            if wanted and gathered:
                state[names[id(parameter)]] = {
                    key: value.cpu() if isinstance(value, torch.Tensor) else value for key, value in gathered.items()
                }
        groups.append({**group, "params": [names[id(parameter)] for parameter in group["params"]]})
    return {"state": state, "param_groups": groups}


def load_optimizer_state(model: nn.Module, optimizer: torch.optim.Optimizer, saved: Mapping[str, Any]) -> None:
    """Puts back what `gather_optimizer_state` returned, the same on all processes, in this or another division.

    Raises:
        ValueError: If it is of other parameters, or they are grouped in another way.
    """
    names, place, state, groups = _names(model), 0, {}, []
    theirs = [list(group["params"]) for group in saved["param_groups"]]
    ours = [[names[id(parameter)] for parameter in group["params"]] for group in optimizer.param_groups]
    if [sorted(map(str, group)) for group in theirs] != [sorted(group) for group in ours]:
        pairs: Any = itertools.zip_longest(theirs, ours, fillvalue=[])
        moved = sorted(str(name) for before, now in pairs for name in {*before} ^ {*now})
        raise ValueError(
            f"the state of the optimizer has its parameters in other groups ({moved[0] if moved else 'twice the same'}): "
            "resume with the same model, decayed parameters and layer-wise learning rates"
        )
    for group, entry in zip(optimizer.param_groups, saved["param_groups"], strict=True):
        for index, parameter in enumerate(group["params"], start=place):
            entries = saved["state"].get(names[id(parameter)])
            if entries is not None:
                state[index] = {
                    key: shard_like(value, parameter)
                    if isinstance(value, torch.Tensor) and value.shape == parameter.shape
                    else value
                    for key, value in entries.items()
                }
        groups.append({**entry, "params": list(range(place, place + len(group["params"])))})
        place += len(group["params"])
    optimizer.load_state_dict({"state": state, "param_groups": groups})


# ---- Gradients


def gradient_norms(gradients: list[torch.Tensor]) -> torch.Tensor:
    """Norms `(gradients,)` of whole gradients, of which processes may hold parts, all divided alike: one exchange."""
    first = gradients[0]
    if not isinstance(first, DTensor):
        return torch.stack(torch._foreach_norm(gradients))
    squares = torch.stack(torch._foreach_norm(local_parts(gradients))).square()
    placements: list[Placement] = [Partial() if place.is_shard() else Replicate() for place in first.placements]
    return DTensor.from_local(squares, first.device_mesh, placements).full_tensor().sqrt()


def local_parts(tensors: list[torch.Tensor]) -> list[torch.Tensor]:
    """What this process holds of tensors; changing it in place changes them."""
    return [tensor.to_local() if isinstance(tensor, DTensor) else tensor for tensor in tensors]
