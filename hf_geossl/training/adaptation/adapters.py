"""LoRA adapters of the trunks: added by peft, saved beside the weights, and merged into them wherever a model leaves a run."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import nn
from transformers import PreTrainedModel

from hf_geossl.modeling.teacher_student import TeacherStudentModel
from hf_geossl.training.adaptation.trunk import freeze_layers, layers_of, name_in_trunk

ADAPTED = "adapted.safetensors"  # in a checkpoint: adapters, and the weights that they are added to
State = dict[str, torch.Tensor]


def add_adapters(model: TeacherStudentModel, rank: int, alpha: float, train_layers: str) -> str:
    """Adds adapters to the linear layers of the student's trunk, which alone are trained of it, and to the teacher's.

    The teacher's are those of the student, so that both are what they were before.

    Args:
        model (`TeacherStudentModel`): The pretraining model; it is changed.
        rank (`int`): Of each adapter.
        alpha (`float`): Adapters are scaled by `alpha / rank`.
        train_layers (`str`): `"all"`, or `"last:n"` layers.

    Returns:
        `str`: How much of the trunk is trained now, in a line.

    Raises:
        ImportError: Without peft.
        ValueError: If the model has adapters already, or fewer layers.
    """
    if scaling_of(model) is not None:
        raise ValueError("the model has adapters of an earlier trainer: make it anew, from its folder or by init_from")
    for owner in (model, model.teacher):
        if owner is not None:
            inject_adapters(getattr(owner, model.base_model_prefix), rank, alpha, train_layers)
    model.freeze_untrained()
    trunk = getattr(model, model.base_model_prefix)
    if trunk.embeddings.mask_token is not None:
        trunk.embeddings.mask_token.requires_grad_(True)  # a head, as far as training goes
    with torch.no_grad():
        for teacher, student, name in zip(*model.teacher_pairs(), _teacher_names(model), strict=True):
            if ".lora_" in name:
                teacher.copy_(student)
    return f"LoRA of rank {rank}: {_trained_share(model)}"


def inject_adapters(trunk: PreTrainedModel, rank: int, alpha: float, train_layers: str) -> None:
    """Adds adapters to the linear layers of a trunk, of which nothing else is trained; arguments and errors as of `add_adapters`."""
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError as error:
        raise ImportError("lora_rank needs peft: pip install peft") from error
    layers = layers_of(train_layers, trunk.config.num_hidden_layers)
    parts = tuple(f"{trunk.layers_name}.{layer}." for layer in layers)
    linear = [name for name, part in trunk.named_modules() if isinstance(part, nn.Linear) and name.startswith(parts)]
    settings = LoraConfig(
        r=rank,
        lora_alpha=alpha,  # type: ignore[arg-type]
        target_modules=linear,
    )
    inject_adapter_in_model(settings, trunk)


def adapt_trunk(model: TeacherStudentModel, train_layers: str, rank: int, alpha: float) -> str | None:
    """Freezes what `train_layers` leaves out of the student's trunk, or adds adapters where there is a `rank`.

    Returns:
        `str` or `None`: How much of the trunk is trained, in a line; None where all of it is.
    """
    if rank:
        return add_adapters(model, rank, alpha, train_layers)
    if train_layers == "all":
        return None
    freeze_layers(model, train_layers)
    return f"train_layers={train_layers}: {_trained_share(model)}"


def _trained_share(model: TeacherStudentModel) -> str:
    sizes = [
        (parameter.numel(), parameter.requires_grad)
        for name, parameter in model.named_parameters()
        if name_in_trunk(name, model) is not None
    ]
    trained, total = sum(size for size, requires_grad in sizes if requires_grad), sum(size for size, _ in sizes)
    return f"{trained:,} of the trunk's {total:,} parameters are trained ({100 * trained / total:.1f} %)"


def _teacher_names(model: TeacherStudentModel) -> list[str]:
    return [] if model.teacher is None else [name for name, _ in model.teacher.named_parameters()]


def scaling_of(model: nn.Module) -> float | None:
    """What the adapters of a model are scaled by; None where it has none."""
    layers: list[Any] = [module for module in model.modules() if hasattr(module, "lora_A")]
    return layers[0].scaling["default"] if layers else None


def merge_state(state: State, scaling: float | None) -> State:
    """Adds adapters to the weights that they belong to, and gives these their plain names.

    Args:
        state (`dict[str, torch.Tensor]`): Whole weights of a model with adapters, by name.
        scaling (`float`, *optional*): See `scaling_of`; without it nothing is changed.

    Returns:
        `dict[str, torch.Tensor]`: W + scaling * B A, in the order of `state`.
    """
    if scaling is None:
        return state
    merged = {}
    for name, value in state.items():
        if ".lora_" in name:
            continue
        layer, base, kind = name.rpartition("base_layer.")
        if base and kind == "weight":
            up, down = (state[f"{layer}lora_{part}.default.weight"].float() for part in "BA")
            value = (value.float() + scaling * (up @ down)).to(value.dtype)
        merged[layer + kind] = value
    return merged


def adapted_part(state: State) -> State:
    """What of the weights of a model with adapters is not in the merged ones: adapters, and what they are added to."""
    return {name: value for name, value in state.items() if ".lora_" in name or name.endswith("base_layer.weight")}


def unmerge_state(model: nn.Module, state: Mapping[str, torch.Tensor], folder: Path) -> State:
    """Gives the merged weights of a checkpoint the names that a model with adapters has, with what lies beside them.

    Where nothing does (`save_only_model`), the merged weights are what adapters that add nothing are added to.

    Args:
        model (`torch.nn.Module`): The model to fill; without adapters `state` is returned as it is.
        state (`Mapping[str, torch.Tensor]`): The weights of the checkpoint.
        folder (`Path`): The checkpoint.
    """
    if scaling_of(model) is None:
        return dict(state)
    own = model.state_dict()
    plain = {name: name.replace("base_layer.", "") for name in own}
    unmerged = {name: state[plain[name]] for name in own if plain[name] in state}
    if (folder / ADAPTED).is_file():
        with safe_open(folder / ADAPTED, framework="pt") as file:
            unmerged.update({name: file.get_tensor(name) for name in file.keys()})  # noqa: SIM118
        return unmerged
    for name, value in own.items():
        if ".lora_" in name:
            unmerged[name] = torch.zeros(value.shape, dtype=value.dtype)
    return unmerged
