"""Opens models for evaluation: folders, repositories of the Hub, timm's names, and models given as objects."""

import copy
import json
import logging
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModel,
    AutoModelForPreTraining,
    PreTrainedModel,
    TimmWrapperModel,
)

from hf_geossl.evaluation.encoders import Encoder
from hf_geossl.evaluation.registry import TIMM
from hf_geossl.hub.run_folder import unfinished
from hf_geossl.modeling.image_format import IMAGENET_MEAN, IMAGENET_STD
from hf_geossl.modeling.modeling_vit_wrapper import ViTWrapperModel

logger = logging.getLogger(__name__)

ModelLike = str | Path | nn.Module | Encoder  # what can be evaluated


def load_encoder(
    model: ModelLike,
    *,
    device: str | torch.device | None = None,
    trust_remote_code: bool = False,
    revision: str | None = None,
) -> Encoder:
    """Opens a model for evaluation.

    Args:
        model (`str`, `Path`, `PreTrainedModel`, `nn.Module` or `Encoder`): A folder or Hub id that `AutoModel` opens,
            `"timm:NAME"` for timm's pretrained models, or a model. Of a `...ForPreTraining` model the teacher's trunk is
            taken, the student's where there is no teacher. A model given as an object is copied, and left as it is; one of
            transformers has no processor then, and gets ImageNet's normalisation.
        device (`str`, *optional*): Where to; a GPU if there is one.
        trust_remote_code (`bool`): Whether code of the repository may run. This library's models need none.
        revision (`str`, *optional*): Branch, tag or commit of a Hub repository.

    Returns:
        `Encoder`: In eval mode, without gradients.

    Raises:
        ValueError: If there is no such model, or weights are missing in it.
        TypeError: If it is no vision transformer that can be read.
    """
    device = find_device(device)
    if isinstance(model, Encoder):
        model.module.to(device).eval().requires_grad_(False)
        return model
    mean: Sequence[float] = IMAGENET_MEAN
    std: Sequence[float] = IMAGENET_STD
    module: nn.Module
    if isinstance(model, nn.Module):
        name = type(model).__name__
        if isinstance(model, PreTrainedModel) and not _is_ours(model):
            logger.warning(
                f"{name} was given as an object: images are normalised with ImageNet's mean and deviation, whatever its "
                "processor says; for others give the folder or Hub id, or an Encoder(module, name, mean, std, image_size)"
            )
        module = copy.deepcopy(model)
    elif str(model).startswith(TIMM):
        name = str(model).removeprefix(TIMM)
        module = _open_timm(name)
    else:
        name = Path(model).resolve().name if Path(model).exists() else str(model)
        if _is_of_timm(Path(model)):
            module = _open_timm(f"local-dir:{model}")
        else:
            module, mean, std = _open_folder(str(model), name, trust_remote_code, revision)
    pretraining_model = None
    if isinstance(module, PreTrainedModel) and hasattr(module, "update_teacher"):
        nn.Module.to(module, device).eval().requires_grad_(False)
        pretraining_model = module
        holder = module if module.teacher is None else module.teacher
        module = getattr(holder, module.base_model_prefix)
    size: Any = 224
    wrapped = isinstance(module, ViTWrapperModel)  # then size and normalisation are what it was fine-tuned with
    if isinstance(module, ViTWrapperModel):
        size, module = module.config.image_size, module.trunk
    if isinstance(module, TimmWrapperModel):
        module = module.timm_model
    cfg = None if wrapped else getattr(module, "pretrained_cfg", None)
    if cfg:
        mean, std = cfg.get("mean") or mean, cfg.get("std") or std
        size = getattr(getattr(module, "patch_embed", None), "img_size", None) or size
    elif isinstance(module, PreTrainedModel) and not wrapped:
        size = getattr(module.config, "image_size", None) or size
    if getattr(module, "dynamic_img_size", None) is False and not isinstance(module, PreTrainedModel):
        module = _resizable(module)
    module.to(device).eval().requires_grad_(False)
    side = size[0] if isinstance(size, (tuple, list)) else size
    return Encoder(module, name, mean, std, int(side), pretraining_model)


def _is_of_timm(folder: Path) -> bool:
    """Whether it is a folder that timm has written, whose config.json names one of its architectures."""
    try:
        return "pretrained_cfg" in json.loads((folder / "config.json").read_text())
    except (OSError, ValueError):
        return False


def _is_ours(model: nn.Module) -> bool:
    return type(model).__module__.startswith("hf_geossl")


def find_device(name: str | torch.device | None) -> torch.device:
    """The device of a name; a GPU, where there is one, by default.

    Raises:
        ValueError: If it cannot be used here.
    """
    try:
        device = torch.device(name or ("cuda" if torch.cuda.is_available() else "cpu"))
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        why = str(error).splitlines()[0][:120]
        raise ValueError(f"the device {str(name)!r} cannot be used here ({why}): choose cpu, cuda or cuda:0") from None
    return device


def _open_timm(name: str) -> nn.Module:
    try:
        import timm
    except ImportError as error:
        raise ImportError(f"{TIMM}{name} needs timm: pip install 'hf_geossl[timm]'") from error
    if not timm.is_model(re.split(r"[.:/]", name)[0]) and not name.startswith(("hf-hub:", "local-dir:")):
        raise ValueError(f"timm has no model {name!r}; timm.list_models('vit*') shows them")
    try:
        return timm.create_model(name, pretrained=True, num_classes=0, dynamic_img_size=True)
    except TypeError:  # has no such argument: images of one size, or no vision transformer at all
        return timm.create_model(name, pretrained=True, num_classes=0)


def _resizable(module: nn.Module) -> nn.Module:
    """A copy of a timm model with what `dynamic_img_size=True` would have made of it: it takes images of any size."""
    from timm.layers.format import Format

    model: Any = copy.deepcopy(module)
    model.dynamic_img_size = True
    model.patch_embed.strict_img_size, model.patch_embed.flatten = False, False
    model.patch_embed.output_fmt = Format.NHWC
    return model


def _open_folder(
    path: str, name: str, trust: bool, revision: str | None
) -> tuple[PreTrainedModel, Sequence[float], Sequence[float]]:
    """A model of a folder or of the Hub, and its normalisation."""
    given: dict[str, Any] = {"trust_remote_code": trust, "revision": revision}
    try:
        config = AutoConfig.from_pretrained(path, **given)
    except (OSError, ValueError) as error:
        why = unfinished(Path(path)) if Path(path).is_dir() else None
        raise ValueError(
            f"{name} is no model that AutoModel opens: {why or ' '.join(str(error).split())[:300]}"
        ) from None
    pretrains = any(architecture.endswith("ForPreTraining") for architecture in config.architectures or [])
    auto: Any = AutoModelForPreTraining if pretrains and type(config).__module__.startswith("hf_geossl") else AutoModel
    try:
        model, info = auto.from_pretrained(path, output_loading_info=True, dtype=torch.float32, **given)
    except ValueError as error:
        if "Unrecognized configuration class" not in str(error):  # whose message goes on with all that there are
            raise
        raise ValueError(
            f"{name} is of type {config.model_type!r}, of which there is no {auto.__name__}: give a trunk, such as `geossl convert` "
            "takes out of models over one"
        ) from None
    missing = [key for key in info["missing_keys"] if not key.startswith("pooler.")]
    if missing:
        raise ValueError(
            f"{name} lacks {len(missing)} weights of {type(model).__name__} ({', '.join(sorted(missing)[:3])}, ...): "
            "numbers of random weights would be worth nothing; convert the checkpoint first"
        )
    described = config.get_image_format() if hasattr(config, "get_image_format") else None
    if described is not None and not described.is_rgb8:
        return model, described.mean, described.std
    try:
        processor = AutoImageProcessor.from_pretrained(path, **given)
    except (OSError, ValueError):  # a folder without preprocessor_config.json: the method's own normalisation
        return model, IMAGENET_MEAN, IMAGENET_STD
    factor = getattr(processor, "rescale_factor", None) if getattr(processor, "do_rescale", True) else 1.0
    white = 255 * (factor or 1 / 255)  # what white becomes, from which mean and deviation are taken
    normalizes = getattr(processor, "do_normalize", True) is not False
    mean, std = (processor.image_mean, processor.image_std) if normalizes else ((0.0,) * 3, (1.0,) * 3)
    mean, std = mean or IMAGENET_MEAN, std or IMAGENET_STD
    return model, [value / white for value in mean], [value / white for value in std]
