"""Files of foreign checkpoints, read without executing anything they carry."""

import argparse
import pickle
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import nn

State = dict[str, torch.Tensor]
# settings and counters that training programs put beside weights; they are read as objects that hold nothing
_SETTINGS = re.compile(
    r"(?:numpy|omegaconf|pathlib|typing|_codecs)\.[\w.]+|builtins\.(?:bool|dict|float|int|list|set|str|tuple)"
)


class _Setting:
    """Stands for an object of a file, and runs nothing of it."""

    def __new__(cls, *args: object, **kwargs: object) -> "_Setting":
        return super().__new__(cls)

    def __init__(self, *args: object, **kwargs: object) -> None: ...

    def __setstate__(self, state: object) -> None: ...


def _settings_in(path: Path) -> list[Any]:
    """What of a file's objects is settings, each with what stands for it."""
    try:
        names = torch.serialization.get_unsafe_globals_in_checkpoint(path)
    except Exception:  # no zip file, or none at all, which reading it says
        return []
    return [(_Setting, name) for name in names if _SETTINGS.fullmatch(name)]


def read_torch_file(path: str | Path) -> dict[str, Any]:
    """Reads a `.safetensors` file, or a PyTorch file without executing what it carries.

    Args:
        path (`str` or `Path`): The file. A PyTorch file may hold tensors, containers and an `argparse.Namespace`;
            numbers of numpy, paths and OmegaConf's settings in it are read as nothing.

    Returns:
        `dict[str, Any]`: What the file holds.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file is damaged, of another kind, or holds an object that only running its code could make.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no checkpoint file {path.name!r}: give the path of a .pth or .safetensors file")
    if path.suffix == ".safetensors":
        try:
            return dict(load_file(path))
        except Exception as error:
            raise ValueError(f"{path.name} is not a readable safetensors file: {error}") from error
    try:
        with torch.serialization.safe_globals([argparse.Namespace, *_settings_in(path)]):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # what is no checkpoint makes torch's reader fail in any way, KeyError 101 for a text
        refused = re.search(r"GLOBAL (\S+)", str(error))
        if isinstance(error, pickle.UnpicklingError) and refused:
            raise ValueError(
                f"{path.name} holds the object {refused.group(1)}, which could run code; only tensors, containers and "
                "argparse.Namespace are read: save it again with its state_dict alone"
            ) from error
        # what torch says of a refused pickle advises to load it with weights_only=False: not passed on
        detail = "" if isinstance(error, pickle.UnpicklingError) else f" ({' '.join(str(error).split())[:120]})"
        raise ValueError(
            f"{path.name} is not a readable PyTorch checkpoint: it is damaged or of another kind{detail}"
        ) from error
    if not isinstance(content, Mapping):
        raise ValueError(f"{path.name} holds a {type(content).__name__}, expected a mapping from names to tensors")
    return dict(content)


def tensors_of(content: Mapping[Any, Any], name: str) -> State:
    """Picks the tensors of a mapping, without the prefix that DistributedDataParallel leaves.

    Args:
        content (`Mapping`): What a file holds.
        name (`str`): The file's name, for messages.

    Returns:
        `dict[str, torch.Tensor]`: By name.

    Raises:
        ValueError: If there is no tensor.
    """
    state = {
        key.removeprefix("module."): value
        for key, value in content.items()
        if isinstance(key, str) and isinstance(value, torch.Tensor)
    }
    if not state:
        raise ValueError(f"{name} holds no tensors under the expected names, got the keys {list(content)[:8]}")
    return state


def part_of(state: State, prefix: str) -> State:
    """Picks the tensors whose names begin with a prefix, and drops it."""
    return {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}


def load_strictly(model: nn.Module, state: State, name: str) -> None:
    """Loads weights of which none may be missing, unknown or of another shape.

    Args:
        model (`torch.nn.Module`): The model to fill.
        state (`dict[str, torch.Tensor]`): Its weights by their names in the model.
        name (`str`): The file's name, for messages.

    Raises:
        ValueError: If they do not fit, with the first names that do not.
    """
    expected = model.state_dict()
    missing, unexpected = sorted(expected.keys() - state.keys()), sorted(state.keys() - expected.keys())
    wrong = sorted(key for key in expected.keys() & state.keys() if expected[key].shape != state[key].shape)
    if missing or unexpected or wrong:
        parts = [("lacks", missing), ("has unknown", unexpected), ("has other shapes for", wrong)]
        raise ValueError(f"{name} " + "; ".join(f"{verb} {', '.join(keys[:6])}" for verb, keys in parts if keys))
    model.load_state_dict(state)
