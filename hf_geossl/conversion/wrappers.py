"""What training programs put around the weights of a trunk: nested mappings, prefixes, a second network, heads."""

import re
from collections.abc import Iterable, Mapping
from typing import Any

import torch

from hf_geossl.conversion.checkpoint_file import State, tensors_of
from hf_geossl.conversion.families import FAMILIES

# what begins a key or a part of one, for either network of a teacher and a student
_NETWORKS = {
    "teacher": ("teacher", "target_encoder", "momentum_", "state_dict_ema", "model_ema", "ema"),
    "student": ("student", "base_encoder"),
}
# what torch.compile, activation checkpointing and FSDP put into names, at any depth
_WRAPPERS = re.compile(r"(?:^|(?<=\.))(?:_orig_mod|_checkpoint_wrapped_module|_fsdp_wrapped_module)\.")
# other models, by parts of their weights' names
_OTHERS = (
    (r"patch_embed(dings?)?\.(conv|proj)\.\d+\.|patch_embed\.backbone\.", "a ViT with several convolutions before it"),
    (r"relative_position_bias_table|rel_pos_bias", "BEiT or Swin (relative position bias)"),
    (r"(^|\.)layers\.\d+\.(blocks|downsample)\.|patch_merging", "Swin"),
    (r"(^|\.)stages\.\d+\.|dwconv", "ConvNeXt"),
    (r"(^|\.)layer[1-4]\.\d+\.(conv|bn)\d", "ResNet"),
    (
        r"(^|\.)(visual\.)?(conv1\.weight|transformer\.resblocks\.)",
        "OpenCLIP's own files; take transformers' or timm's",
    ),
    (r"(q|k)_norm\.", "a ViT with normalised queries and keys"),
    (r"rel_pos_[hw]$", "SAM's or ViTDet's (relative positions in windows)"),
)


def flatten(content: Mapping[Any, Any], prefix: str = "", depth: int = 4) -> State:
    """The tensors of nested mappings, by their keys joined with dots; deeper ones, as in a file that holds itself, stay out."""
    state: State = {}
    for key, value in content.items():
        if isinstance(value, torch.Tensor):
            state[f"{prefix}{key}"] = value
        elif isinstance(value, Mapping) and depth:
            state |= flatten(value, f"{prefix}{key}.", depth - 1)
    return state


def looks_like(keys: Iterable[str]) -> str:
    """Says of which other model weights are by their names, as the end of a sentence; nothing where that is unknown."""
    for pattern, title in _OTHERS:
        if any(re.search(pattern, key) for key in keys):
            return f"; it looks like {title}"
    return ""


def parts_of(keys: Iterable[str], prefix: str = "") -> tuple[str, ...]:
    """The beginnings of names, without repetition: up to where each leaves `prefix`, and two parts at least."""
    path = prefix.split(".")

    def beginning(key: str) -> str:
        parts = key.split(".")
        shared = next((i for i, (one, other) in enumerate(zip(parts, path, strict=False)) if one != other), 0)
        return ".".join(parts[: max(2, shared + 1)])

    return tuple(sorted({beginning(key) for key in keys}))


def _is_network(prefix: str, network: str) -> bool:
    return any(part.startswith(_NETWORKS[network]) for part in prefix.split("."))


def _choose(prefixes: list[str], name: str, weights: str | None) -> str:
    """Chooses the ViT to convert: of the network asked for, else of those under "state_dict" or "model"."""
    chosen = prefixes
    if weights is not None:
        other = "student" if weights == "teacher" else "teacher"
        chosen = [prefix for prefix in prefixes if _is_network(prefix, weights)]
        chosen = chosen or [prefix for prefix in prefixes if not _is_network(prefix, other)]
        if not chosen:
            raise ValueError(f"{name} holds the weights of a {other} and of no {weights}: choose weights={other!r}")
    for place in ("state_dict.", "model."):
        if len(chosen) > 1:
            chosen = [prefix for prefix in chosen if prefix.startswith(place)] or chosen
    if len(chosen) > 1:
        raise ValueError(
            f"{name} holds several ViTs ({', '.join(chosen)}): `geossl convert FILE FOLDER` takes the teacher or, by --weights "
            "student, the student, where the names tell which is which; or save the one to convert by itself"
        )
    return chosen[0]


def find_trunk(content: Mapping[Any, Any], name: str, weights: str | None = None) -> tuple[State, tuple[str, ...], str]:
    """Finds a ViT in what a file holds, whatever wrapped it.

    Wrappers' prefixes go: what stands before the name of the patch embedding in any family, such as "module.", "_orig_mod.",
    "backbone.", "vit." and the keys of nested mappings; within names those of compiled and sharded blocks go too. Blocks that DINOv2's program has divided into chunks ("blocks.0.3.")
    are counted through.

    Args:
        content (`Mapping`): What a file holds.
        name (`str`): The file's name, for messages.
        weights (`"teacher"` or `"student"`, *optional*): Which network, where the file names them.

    Returns:
        `tuple[dict[str, torch.Tensor], tuple[str, ...], str]`: The ViT's weights, what there is beside it, and the name of its
        patch embedding.

    Raises:
        ValueError: If there are no weights of a ViT, several ViTs, or only the other network's.
    """
    found = {_WRAPPERS.sub("", key): value for key, value in flatten(content).items()}
    for patches in {family.naming.patches: None for family in FAMILIES}:
        prefixes = sorted(key.removesuffix(patches) for key in found if f".{key}".endswith(f".{patches}"))
        if prefixes:
            break
    else:
        keys = found or tensors_of(content, name)  # which says what the file holds instead
        raise ValueError(
            f"{name} is no plain ViT checkpoint: it lacks a patch embedding of a known name{looks_like(keys)}, it has "
            f"{', '.join(list(keys)[:4])}"
        )
    prefix = _choose(prefixes, name, weights)
    state = {
        re.sub(r"^blocks\.\d+\.(\d+)\.", r"blocks.\1.", key.removeprefix(prefix)): value
        for key, value in found.items()
        if key.startswith(prefix)
    }
    return state, parts_of((key for key in found if not key.startswith(prefix)), prefix), patches
