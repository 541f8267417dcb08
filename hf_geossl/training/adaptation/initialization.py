"""Pretraining that starts from a trunk that exists: any ViT that `conversion.source` reads, or a run of this library."""

import logging
from contextlib import suppress
from dataclasses import fields as dataclass_fields
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, StrictDataclassError
from torch import nn

from hf_geossl.conversion.adaptation import adapt_source
from hf_geossl.conversion.checkpoint_file import State, load_strictly
from hf_geossl.conversion.source import read_source
from hf_geossl.conversion.trunk_weights import SourceTrunk, describe_left_out
from hf_geossl.hub.model_folder import PRETRAINING
from hf_geossl.hub.run_folder import CONFIG
from hf_geossl.hub.run_record import is_hub_id, read_json
from hf_geossl.methods import METHODS, Method
from hf_geossl.modeling.configuration_vit import GeometricViTConfig
from hf_geossl.modeling.image_format import IMAGENET_MEAN, IMAGENET_STD, ImageFormat
from hf_geossl.modeling.teacher_student import TeacherStudentModel

logger = logging.getLogger(__name__)

_MASK = "embeddings.mask_token"
# fields of a trunk that say nothing about its weights or features: a run may have others than its source
_FREE = {
    "drop_path_rate",
    "initializer_range",
    "image_format",
    "apply_layernorm",
    "reshape_hidden_states",
    "semantic_loss_ignore_index",
}
_OF_ADAPTATION = {"image_size", "patch_size", "num_channels"}  # keywords, by which the source is adapted


def load_for_pretraining(
    method: str,
    init_from: str | Path,
    *,
    image_size: int | tuple[int, int] | None = None,
    patch_size: int | None = None,
    num_channels: int | None = None,
    channel_weights: Literal["mean", "repeat"] = "mean",
    revision: str | None = None,
    token: str | None = None,
    **config_fields: Any,
) -> Any:
    """Makes a pretraining model whose trunks, the student's and the teacher's, start from a trunk that exists.

    Heads are fresh, drawn by torch's global generator; of a whole pretraining folder of the same method they and the teacher
    are taken over too, but those of other shapes, as LOCA's positions are at another image size.

    Args:
        method (`str`): `"gtsa"`, `"loca"` or `"equicoherent"`.
        init_from (`str` or `Path`): Hub id or folder of a ViT of transformers or of this library, `"timm:NAME"`, or a
            checkpoint file; see `conversion.source.read_source`.
        image_size (`int` or `(height, width)`, *optional*): Size in pixels that positions are made for; the source's by
            default.
        patch_size (`int`, *optional*): Side of a patch; the source's by default, others resample its filters.
        num_channels (`int`, *optional*): Channels of the images; the source's by default.
        channel_weights (`"mean"` or `"repeat"`): How its filters become those of other channels: their mean, or their bands
            repeated, scaled by 3 / channels.
        revision, token (`str`, *optional*): Of the Hub.
        **config_fields: Further fields of the method's configuration. Those that a source's weights decide must be as in
            the source.

    Returns:
        `TeacherStudentModel`: Of the method; its `config.init_from` is the source's name.

    Raises:
        ValueError: If there is no such source, it does not fit the method, or a field contradicts it.

    Example:
        ```python
        from hf_geossl import load_for_pretraining

        model = load_for_pretraining("gtsa", "facebook/dinov2-base")
        ```
    """
    if method not in METHODS:
        raise ValueError(f"method must be one of {', '.join(METHODS)}, got {method!r}")
    source = read_whole(init_from, METHODS[method], revision=revision, token=token)
    adapted = {"image_size": image_size, "patch_size": patch_size, "num_channels": num_channels}
    model, lines = start_from(source, METHODS[method], config_fields, channel_weights=channel_weights, **adapted)
    for line in lines:
        logger.warning(line)
    return model


def read_whole(
    init_from: str | Path, method: Method, *, revision: str | None = None, token: str | None = None
) -> SourceTrunk:
    """As `read_source`, with heads and teacher where a whole pretraining model of the method lies beside the trunk.

    That is what `geossl publish --include_pretraining` sends, and is looked for in folders and on the Hub.
    """
    folder = Path(init_from) / PRETRAINING
    if not folder.is_dir() and is_hub_id(str(init_from)):
        with suppress(
            HfHubHTTPError, LocalEntryNotFoundError, OSError
        ):  # said by read_source where it is more than missing
            cached = snapshot_download(
                str(init_from), revision=revision, token=token, allow_patterns=[f"{PRETRAINING}/*"]
            )
            folder = Path(cached) / PRETRAINING
    if read_json(folder / CONFIG).get("model_type") == method.name:
        return replace(read_source(folder), name=str(init_from) if is_hub_id(str(init_from)) else folder.parent.name)
    return read_source(init_from, revision=revision, token=token)


def start_from(
    source: SourceTrunk, method: Method, fields: dict[str, Any], **adapted: Any
) -> tuple[TeacherStudentModel, list[str]]:
    """Makes a method's pretraining model of a source.

    Args:
        source (`SourceTrunk`): As `read_source` gives it.
        method (`Method`): The method.
        fields (`dict`): Fields of its configuration.
        **adapted: `image_size`, `patch_size`, `num_channels` and `channel_weights` as in `load_for_pretraining`.

    Returns:
        `(TeacherStudentModel, list[str])`: and a line for each change of the source.

    Raises:
        ValueError: As `load_for_pretraining`.
    """
    _check_fields(source, fields)
    own = source.pretraining
    if own is not None and own.config.model_type != method.name:
        own = None
    teacher = getattr(own, "teacher", None)
    prefix = method.load("pretraining").base_model_prefix
    if own is not None:
        source = replace(source, state=_state_of(getattr(own, prefix)))
    trunk, lines = adapt_source(source, **adapted)
    config = _config_of(trunk, method, own, fields)
    model: TeacherStudentModel = method.load("pretraining")(config)
    lines += _fill(getattr(model, prefix), trunk)
    if own is None:
        model.copy_student_to_teacher()
        if line := describe_left_out(source):
            lines.append(line)
        return model, lines
    if teacher is not None and model.teacher is not None:
        of_teacher = replace(source, state=_state_of(getattr(teacher, prefix)))
        _fill(getattr(model.teacher, prefix), adapt_source(of_teacher, **adapted)[0])
    lines += _fill_heads(model, own, prefix, source.name)
    return model, lines


def _check_fields(source: SourceTrunk, fields: dict[str, Any]) -> None:
    for name, value in fields.items():
        if name in source.fields and name not in _FREE | _OF_ADAPTATION and value != source.fields[name]:
            raise ValueError(
                f"{name} must be {source.fields[name]!r}, as in {source.name} that the run starts from, got {value!r}: "
                "leave it out"
            )


def _config_of(
    trunk: SourceTrunk, method: Method, own: TeacherStudentModel | None, fields: dict[str, Any]
) -> GeometricViTConfig:
    config_class: type[GeometricViTConfig] = method.load("config")
    known = {field.name for field in dataclass_fields(config_class) if not field.name.startswith("_")}
    values: dict[str, Any] = {} if own is None else {k: v for k, v in own.config.to_dict().items() if k in known}
    free = {"drop_path_rate", "initializer_range"} if own is None else set()  # the method's own, not a foreign trunk's
    values |= {name: value for name, value in trunk.fields.items() if name in known - free}
    values |= {"use_mask_token": False, "init_from": trunk.name}
    if values.get("image_format") is None and trunk.image_mean and trunk.image_std:
        moments = (tuple(trunk.image_mean), tuple(trunk.image_std))
        if values.get("num_channels", 3) == 3 and moments != (IMAGENET_MEAN, IMAGENET_STD):
            values["image_format"] = ImageFormat(mean=moments[0], std=moments[1]).to_dict()
    values |= {name: value for name, value in fields.items() if name not in _OF_ADAPTATION}
    try:
        return config_class(**values)
    except StrictDataclassError as error:
        message = " ".join(str(error.__cause__ or error).split())
        raise ValueError(f"{trunk.name} cannot be pretrained with {method.title}: {message}") from error


def _state_of(trunk: nn.Module) -> State:
    return {name: value.detach().clone() for name, value in trunk.state_dict().items()}


def _fill(trunk: nn.Module, source: SourceTrunk) -> list[str]:
    """Gives a trunk the weights of a source; its mask token where both have one, since no feature of an image needs it."""
    own, state = trunk.state_dict(), dict(source.state)
    lines = []
    if _MASK in own:
        state.setdefault(_MASK, own[_MASK])
    elif state.pop(_MASK, None) is not None:
        lines.append(f"{source.name} has a mask token: left out, the method masks nothing")
    load_strictly(trunk, state, source.name)
    return lines


def _fill_heads(model: TeacherStudentModel, own: TeacherStudentModel, prefix: str, name: str) -> list[str]:
    """Takes over what is not of a trunk, where shapes are equal; says which heads start anew."""
    trunks = (f"{prefix}.", f"teacher.{prefix}.")
    theirs = {key: value for key, value in own.state_dict().items() if not key.startswith(trunks)}
    target = {key: value for key, value in model.state_dict().items() if not key.startswith(trunks)}
    fitting = [key for key in target if key in theirs and theirs[key].shape == target[key].shape]
    with torch.no_grad():
        for key in fitting:
            target[key].copy_(theirs[key])
    fresh = sorted({key.rpartition(".")[0] or key for key in target.keys() - set(fitting)})
    unused = sorted({key.rpartition(".")[0] or key for key in theirs.keys() - set(fitting)})
    lines = [
        f"{name} is a whole pretraining model: its heads{' and teacher' if model.teacher is not None else ''} stay"
    ]
    if fresh or unused:
        lines[0] += f", but for {', '.join(dict.fromkeys([*fresh, *unused]))}, of which shape or settings are others"
    return lines
