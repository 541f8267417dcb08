"""Trunks of any ViT family, from the Hub, a folder, timm or a file."""

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from huggingface_hub.errors import HFValidationError
from transformers import AutoConfig, AutoModel, PreTrainedConfig, PreTrainedModel
from transformers.utils import cached_file

from hf_geossl.conversion.checkpoint_file import State, read_torch_file
from hf_geossl.conversion.families import FAMILIES, Family
from hf_geossl.conversion.timm import open_timm
from hf_geossl.conversion.trunk_weights import TRUNK_FIELDS, SourceTrunk, build_trunk, given_fields, read_trunk
from hf_geossl.conversion.wrappers import find_trunk
from hf_geossl.hub.run_folder import find_model, is_pretraining, processor_files
from hf_geossl.methods import METHODS
from hf_geossl.modeling.configuration_vit import GeometricViTConfig
from hf_geossl.modeling.modeling_vit_heads import ViTTrunkModel

logger = logging.getLogger(__name__)

TIMM = "timm:"
Weights = Literal["teacher", "student"]
_WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")
_FILES = (".pth", ".pt", ".bin", ".ckpt", ".tar", ".safetensors")  # no Hub id ends so
# why other families do not become a trunk
_REFUSED = {
    "beit": "BEiT has a relative position bias in each layer",
    "data2vec-vision": "Data2Vec has a relative position bias in each layer",
    "swin": "Swin attends in windows and has no layers of one width",
    "swinv2": "Swin attends in windows and has no layers of one width",
    "convnext": "ConvNeXt has convolutions and no tokens",
    "convnextv2": "ConvNeXt has convolutions and no tokens",
    "dinov3_convnext": "ConvNeXt has convolutions and no tokens",
    "resnet": "ResNet has convolutions and no tokens",
    "siglip2": "SigLIP 2 with patches of any aspect has a linear patch embedding; its fixed sizes are siglip models",
}


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]


def read_source(
    source: str | Path,
    *,
    revision: str | None = None,
    token: str | None = None,
    weights: Weights | None = None,
    config: GeometricViTConfig | None = None,
    trust_remote_code: bool = False,
    whole: bool = True,
) -> SourceTrunk:
    """Reads the trunk of a ViT of any family, without executing anything that it carries.

    Args:
        source (`str` or `Path`): A Hub id or folder of a transformers ViT (ViT, DeiT, MAE, MSN, I-JEPA, DINOv2 with and without
            registers, DINOv3, the vision towers of CLIP and SigLIP) or of this library (a trunk, a run, or a whole pretraining
            model), `timm:NAME`, or a file of any of them or of the programs of DINO, iBOT, DINOv2, DINOv3, MAE, DeiT and timm.
        revision, token (`str`, *optional*): Of the Hub.
        weights (`"teacher"` or `"student"`, *optional*): Which network, where there are two; the teacher by default.
        config (`GeometricViTConfig`, *optional*): Fields that a file does not say, such as `num_attention_heads`: those that
            differ from their defaults.
        trust_remote_code (`bool`): Whether code of the source may run, where it is no family of transformers.
        whole (`bool`): Whether the folder of a run gives the whole pretraining model of its newest checkpoint, or else the
            trunk that it has exported, where it has.

    Returns:
        `SourceTrunk`: Weights in float32 and fields of the configuration.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If there is no such source, or its family does not fit a trunk without distortion; in one sentence.
    """
    if weights not in (None, "teacher", "student"):
        raise ValueError(f"weights must be 'teacher' or 'student', got {weights!r}")
    name, path = str(source), Path(source)
    if name.startswith(TIMM):
        return open_timm(name.removeprefix(TIMM))
    if path.is_file() or (path.suffix in _FILES and not path.is_dir()):
        trunk = read_trunk(read_torch_file(path), path.name, weights=weights or "teacher", hints=given_fields(config))
        if trunk.family == "dino":
            logger.warning(
                f"{path.name} has the names of DINO, DINOv2 and timm alike and is read as DINO's: where it is timm's, features "
                f"at other sizes than {trunk.fields['image_size']} pixels differ; geossl convert timm FILE OUT reads it so"
            )
        return trunk
    if path.is_dir():
        name = path.resolve().name
        own = _model_type(path) in METHODS
        described = (path / "config.json").is_file()
        files = sorted(entry.name for entry in path.iterdir() if entry.suffix in _FILES)
        if not described and files and not any(path.glob("checkpoint-*")):
            raise ValueError(
                f"{name} has no config.json, which a model's folder has; name the file in it: {', '.join(files[:4])}"
            )
        if not described or (own and (whole or weights is not None)):
            folder, found, place = find_model(path)
            return _read_own(folder, f"{name}{place}", found, weights, {})
    given: dict[str, Any] = {"revision": revision, "token": token}
    foreign = _open_config(source, name, trust_remote_code, given)
    if foreign.model_type in METHODS:
        return _read_own(source, name, foreign.to_dict(), weights, given)
    backbone: Any = getattr(foreign, "backbone_config", None)
    if getattr(backbone, "model_type", None) in METHODS:
        return _read_composed(source, name, backbone, given)
    if foreign.model_type == "timm_wrapper":
        place = f"local-dir:{source}" if path.is_dir() else f"hf-hub:{source}{f'@{revision}' if revision else ''}"
        return open_timm(place)
    return _read_foreign(source, name, foreign, weights, trust_remote_code, given)


def convert_source(
    source: str | Path,
    *,
    revision: str | None = None,
    token: str | None = None,
    weights: Weights | None = None,
    config: GeometricViTConfig | None = None,
    trust_remote_code: bool = False,
) -> ViTTrunkModel:
    """Makes a model of the trunk of a ViT of any family: what `geossl convert SOURCE OUT` writes.

    Args:
        source, revision, token, weights, config, trust_remote_code: As in `read_source`.

    Returns:
        `ViTTrunkModel` in eval mode and float32, of the source's own method, or of the one that takes over plain ViTs:
        `last_hidden_state` equals the source's at every image size.

    Raises:
        ValueError: As `read_source`; also if a weight is missing or of another shape.
    """
    trunk = read_source(
        source,
        revision=revision,
        token=token,
        weights=weights,
        config=config,
        trust_remote_code=trust_remote_code,
        whole=False,
    )
    return build_trunk(trunk)


def _model_type(folder: Path) -> str | None:
    try:
        content = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None  # said when it is opened
    return content.get("model_type") if isinstance(content, dict) else None


def _open_config(source: str | Path, name: str, trust: bool, given: Mapping[str, Any]) -> PreTrainedConfig:
    try:
        return AutoConfig.from_pretrained(source, trust_remote_code=trust, **given)
    except (OSError, ValueError, HFValidationError) as error:
        if "trust_remote_code" in str(error):
            raise ValueError(
                f"{name} is no family of transformers, and its own code is not run: read its weights as a file, or trust it "
                "with trust_remote_code=True (geossl: --trust_remote_code)"
            ) from error
        raise ValueError(
            f"{name} is no model of the Hub, folder, file or timm:NAME that can be read: {_one_line(error)}"
        ) from error


def _read_own(
    source: str | Path, name: str, config: Mapping[str, Any], weights: Weights | None, given: Mapping[str, Any]
) -> SourceTrunk:
    """A trunk of this library, or one of a whole pretraining model."""
    method = METHODS[config["model_type"]]
    whole = is_pretraining(dict(config))
    if weights == "student" and not whole:
        raise ValueError(f"{name} is a trunk alone: leave weights out")
    loaded, info = method.load("pretraining" if whole else "model").from_pretrained(
        source, output_loading_info=True, dtype=torch.float32, use_safetensors=True, **given
    )
    wrong = sorted({*info["missing_keys"], *(str(key) for key in info["mismatched_keys"])})
    if wrong:
        raise ValueError(f"{name} lacks {len(wrong)} weights of {type(loaded).__name__}, such as {wrong[0]}")
    trunk: Any = loaded
    if whole:
        teacher = loaded.teacher is not None and weights != "student"
        if weights == "teacher" and not teacher:
            raise ValueError(f"{name} has no teacher: take weights='student'")
        trunk = getattr(loaded.teacher if teacher else loaded, loaded.base_model_prefix)
    state = {key: value.detach() for key, value in trunk.state_dict().items()}
    fields = _fields_of(trunk.config)
    if not fields["use_mask_token"]:  # only pretraining has one then
        state.pop("embeddings.mask_token", None)
    mean, std = _normalization(source, given)
    left_out = tuple(sorted(str(key).split(".")[0] for key in info["unexpected_keys"]))
    return SourceTrunk(
        name, method.name, fields, state, tuple(dict.fromkeys(left_out)), mean, std, loaded if whole else None
    )


def _fields_of(config: PreTrainedConfig) -> dict[str, Any]:
    return {field: getattr(config, field) for field in TRUNK_FIELDS if hasattr(config, field)}


def _read_composed(source: str | Path, name: str, config: PreTrainedConfig, given: Mapping[str, Any]) -> SourceTrunk:
    """The trunk of this library in a model that is composed over it, such as a fine-tuned UperNet."""
    state, beside, _ = find_trunk(_read_weights(source, name, given), name)
    state = {key: value.float() for key, value in state.items()}
    mean, std = _normalization(source, given)
    return SourceTrunk(name, config.model_type, _fields_of(config), state, beside, mean, std)


def _tower(config: PreTrainedConfig) -> tuple[PreTrainedConfig, Family | None]:
    """The configuration of the ViT in a model, and its family."""
    by_type = {family.name: family for family in FAMILIES} | {
        model_type: family for family in FAMILIES for model_type in family.model_types
    }
    for part in (config, *(getattr(config, name, None) for name in ("vision_config", "backbone_config", "encoder"))):
        if isinstance(part, PreTrainedConfig) and (family := by_type.get(part.model_type)):
            inner = getattr(part, "vision_config", None)
            return (inner if isinstance(inner, PreTrainedConfig) else part), family
    return config, None


def _read_foreign(
    source: str | Path,
    name: str,
    config: PreTrainedConfig,
    weights: Weights | None,
    trust: bool,
    given: Mapping[str, Any],
) -> SourceTrunk:
    tower, family = _tower(config)
    if family is None and (why := _REFUSED.get(config.model_type.removesuffix("_vision_model"))):
        raise ValueError(f"{name} does not become a trunk of this library: {why}")
    if family is None and not trust:
        raise ValueError(f"{name} is of type {config.model_type!r}, which does not become a trunk of this library")
    hints = {field: value for field in TRUNK_FIELDS if (value := getattr(tower, field, None)) is not None}
    content = _read_weights(source, name, given) if family else _run_code(source, given)
    families = (family,) if family else FAMILIES
    trunk = read_trunk(content, name, weights=weights or "teacher", families=families, hints=hints)
    mean, std = _normalization(source, given)
    return SourceTrunk(**{**vars(trunk), "image_mean": mean, "image_std": std})


def _run_code(source: str | Path, given: Mapping[str, Any]) -> State:
    model: PreTrainedModel = AutoModel.from_pretrained(source, trust_remote_code=True, dtype=torch.float32, **given)
    return dict(model.state_dict())


def _file(source: str | Path, name: str, given: Mapping[str, Any]) -> Path | None:
    found = cached_file(
        source,
        name,
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
        **given,
    )
    return Path(found) if found else None


def _read_weights(source: str | Path, name: str, given: Mapping[str, Any]) -> State:
    """The weights of a folder or repository, of one file or several, safetensors first."""
    for entry in _WEIGHTS:
        path = _file(source, entry, given)
        if path is None:
            continue
        if path.suffix != ".json":
            return read_torch_file(path)
        shards = sorted(set(json.loads(path.read_text(encoding="utf-8"))["weight_map"].values()))
        state: State = {}
        for shard in shards:
            part = _file(source, shard, given)
            if part is None:
                raise ValueError(f"{name} lacks {shard}, which its {entry} names")
            state |= read_torch_file(part)
        return state
    raise ValueError(f"{name} holds no weights: none of {', '.join(_WEIGHTS)}")


def _normalization(
    source: str | Path, given: Mapping[str, Any]
) -> tuple[tuple[float, ...] | None, tuple[float, ...] | None]:
    """Mean and deviation of a source's image processor, for images in [0, 1]; None where it says none."""
    folder = Path(source)
    if folder.is_dir():
        path = next(iter(processor_files(folder)), None)
    else:
        path = _file(source, "preprocessor_config.json", given)
    if path is None:
        return None, None
    content = json.loads(path.read_text(encoding="utf-8"))
    mean, std = content.get("image_mean"), content.get("image_std")
    if not mean or not std or content.get("do_normalize") is False:
        return None, None
    factor = content.get("rescale_factor") or 1 / 255
    white = (
        255 * factor if content.get("do_rescale") is not False else 255.0
    )  # what white is when the mean is subtracted
    return tuple(value / white for value in mean), tuple(value / white for value in std)
