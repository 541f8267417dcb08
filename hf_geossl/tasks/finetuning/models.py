"""A model with a head over any trunk, fresh or from a folder, and its image processor."""

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from torch import nn
from transformers import AutoConfig, BaseImageProcessor, PreTrainedModel

from hf_geossl.conversion.adaptation import adapt_source
from hf_geossl.conversion.checkpoint_file import load_strictly
from hf_geossl.conversion.source import read_source
from hf_geossl.conversion.trunk_weights import SourceTrunk, describe_left_out, make_config
from hf_geossl.evaluation.loading import load_encoder
from hf_geossl.hub.auto_classes import trunk_class
from hf_geossl.hub.export import make_image_processor
from hf_geossl.methods import METHODS, PLAIN_VIT, WRAPPER
from hf_geossl.modeling.image_format import IMAGENET_MEAN, IMAGENET_STD, ImageFormat
from hf_geossl.tasks.finetuning.kinds import FineTuningTask
from hf_geossl.tasks.finetuning.settings import DECODERS, HeadSettings

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Start:
    """What a fine-tuning starts from.

    Args:
        trunk (`SourceTrunk`): For the size of images that is asked for; of another library's its fields are those of
            `ViTWrapperConfig`.
        lines (`tuple[str, ...]`): What was changed of the source, a line each.
    """

    trunk: SourceTrunk
    lines: tuple[str, ...] = ()

    @classmethod
    def open(
        cls, model: str | Path, image_size: int | None = None, *, revision: str | None = None, trust: bool = False
    ) -> "Start":
        """Reads the trunk of a model, of any family that `conversion.source.read_source` or else `load_encoder` reads.

        Raises:
            ValueError: If there is no such model, it is no such ViT, or it takes no images of that size.
        """
        try:
            source = read_source(model, revision=revision, trust_remote_code=trust, whole=False)
        except ValueError as error:
            return cls._wrap(model, image_size, error, revision, trust)
        side = image_size or max(_sides(source.fields["image_size"]))
        _check_side(side, source.fields["patch_size"], source.name)
        trunk, lines = adapt_source(source, image_size=side)
        if left_out := describe_left_out(source):
            lines.append(left_out)
        return cls(trunk, tuple(lines))

    @classmethod
    def _wrap(
        cls, model: str | Path, image_size: int | None, why: ValueError, revision: str | None, trust: bool
    ) -> "Start":
        """A trunk as it is, of what becomes none of this library's; `why` is raised again where evaluation does not read it."""
        try:
            encoder = load_encoder(model, device="cpu", trust_remote_code=trust, revision=revision)
            described = encoder.describe_architecture()
            channels = next((part.in_channels for part in encoder.module.modules() if isinstance(part, nn.Conv2d)), 3)
            prefix = encoder.num_prefix_tokens(torch.zeros(1, channels, *encoder.height_width))
        except (ValueError, TypeError, ImportError, RuntimeError, AssertionError):  # it may fail on squares
            raise why from None
        side = image_size or max(encoder.height_width)
        _check_side(side, encoder.patch_size, encoder.name)
        if (side, side) != encoder.height_width:  # a sentence where it takes no images of that size
            encoder.num_prefix_tokens(torch.zeros(1, channels, side, side))
        fields = {
            "trunk_config": {**described, **_timm_arguments(model, described)},
            "hidden_size": encoder.width,
            "num_hidden_layers": encoder.num_layers,
            "patch_size": encoder.patch_size,
            "image_size": side,
            "num_channels": channels,
            "num_prefix_tokens": prefix,
            "use_class_token": prefix > 0 and encoder.has_class_token,
        }
        of_timm = described["model_type"] == "timm_wrapper"
        inner = "trunk.timm_model." if of_timm else "trunk."
        state = {f"{inner}{name}": tensor for name, tensor in encoder.module.state_dict().items()}
        height, width = encoder.height_width
        lines = (
            [] if height == width else [f"{encoder.name} was made for {height} x {width} pixels: {side} x {side} here"]
        )
        lines.append(
            f"{encoder.name} stays {type(encoder.module).__name__} of {'timm' if of_timm else 'transformers'}, which the fine-tuned "
            f"model needs to open ({why})"
        )
        trunk = SourceTrunk(encoder.name, WRAPPER, fields, state, (), encoder.mean, encoder.std)
        return cls(trunk, tuple(lines))

    @property
    def image_size(self) -> int:
        """Side of the images in pixels."""
        return _sides(self.trunk.fields["image_size"])[0]

    @property
    def image_format(self) -> ImageFormat:
        """What the images are, with the mean and deviation that the trunk was trained with."""
        described = self.trunk.fields.get("image_format")
        if described is not None:
            return ImageFormat.from_dict(described)
        if self.trunk.fields["num_channels"] != 3:
            raise ValueError(
                f"{self.trunk.name} takes {self.trunk.fields['num_channels']} channels and does not say which: give it an "
                "image_format (geossl convert writes one)"
            )
        mean, std = self.trunk.image_mean or IMAGENET_MEAN, self.trunk.image_std or IMAGENET_STD
        return ImageFormat(mean=tuple(mean), std=tuple(std))

    def build(self, task: FineTuningTask, names: Sequence[str], settings: HeadSettings) -> PreTrainedModel:
        """Makes the model; its head is drawn by torch's global generator.

        Raises:
            ValueError: If the task has no such decoder, or a setting of it is out of its range.
        """
        decoders = DECODERS[task.name]
        decoder = settings.decoder or decoders[0]
        if decoder not in decoders:
            raise ValueError(f"the decoder of {task.name} must be one of {', '.join(decoders)}, got {decoder!r}")
        fields = task.config_fields(names, replace(settings, decoder=decoder))
        images, own = self.image_format, trunk_class(self.family)
        if not images.is_rgb8 or (images.mean, images.std) != (IMAGENET_MEAN, IMAGENET_STD):
            fields["image_format"] = images.to_dict()
        given = {} if self.family == WRAPPER else {"drop_path_rate": 0.0}
        trunk = replace(self.trunk, fields={**self.trunk.fields, **fields})
        try:
            config = make_config(own.config_class, trunk, None, init_from=self.trunk.name, **given)
            model: PreTrainedModel = head_class(self.family, task.suffix)(config)
        except StrictDataclassError as error:
            raise ValueError(" ".join(str(error.__cause__ or error).split())) from error
        load_strictly(model.base_model, self.trunk.state, self.trunk.name)
        return model

    @property
    def family(self) -> str:
        """The `model_type` of what is made of it."""
        return self.trunk.family if self.trunk.family in (*METHODS, WRAPPER) else PLAIN_VIT


def _check_side(side: int, patch: int, name: str) -> None:
    if side < patch or side % patch:
        below = max(side // patch, 1) * patch
        raise ValueError(
            f"image_size must be a multiple of {name}'s patch size {patch}, got {side}: choose {below} or {below + patch}"
        )


def _timm_arguments(model: str | Path, described: Mapping[str, Any]) -> dict[str, Any]:
    """What the folder of a model of timm says of its making, beside what is described."""
    config = Path(model) / "config.json"
    if described["model_type"] != "timm_wrapper" or not config.is_file():
        return {}
    content = json.loads(config.read_text(encoding="utf-8"))
    given = content.get("trunk_config", content).get("model_args") or {}  # of a fine-tuned model, or of timm
    given = {name: value for name, value in given.items() if name != "num_classes"}  # given by transformers
    return {"model_args": {**given, **described["model_args"]}}


def _sides(size: int | Sequence[int]) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else (int(size[0]), int(size[1]))


def head_class(model_type: str, suffix: str) -> Any:
    """The class of models with a head, such as `head_class("gtsa", "ForImageClassification")`."""
    module, _, name = trunk_class(model_type).auto_map[f"AutoModel{suffix}"].partition(".")
    return getattr(import_module(f"hf_geossl.modeling.{module}"), name)


def open_model(folder: str | Path, device: torch.device | None = None) -> PreTrainedModel:
    """Opens a fine-tuned model of this library in eval mode and float32, with all of its weights.

    Raises:
        ValueError: If there is none, or it lacks weights.
    """
    name = Path(folder).name
    try:
        config = AutoConfig.from_pretrained(folder)
    except (OSError, ValueError) as error:
        raise ValueError(f"{name} is no model's folder: {' '.join(str(error).split())[:200]}") from None
    architecture = (config.architectures or [""])[0]
    if (
        config.model_type not in (*METHODS, WRAPPER)
        or "For" not in architecture
        or architecture.endswith("ForPreTraining")
    ):
        raise ValueError(
            f"{name} holds {architecture or config.model_type}, and no fine-tuned model of this library: `geossl finetune` "
            "makes one"
        )
    kind = head_class(config.model_type, architecture[architecture.index("For") :])
    model, info = kind.from_pretrained(folder, output_loading_info=True, dtype=torch.float32)
    if info["missing_keys"]:
        raise ValueError(f"{name} lacks weights of {architecture}, such as {sorted(info['missing_keys'])[0]}")
    module: nn.Module = model
    module.to(device or "cpu").eval()
    return model


def image_processor_of(model: PreTrainedModel, task: FineTuningTask) -> BaseImageProcessor:
    """The image processor that goes with a model: it makes of a whole image what the model was trained on."""
    images = model.config.get_image_format()
    sides = model.config.image_height_width
    return make_image_processor(sides, images.mean, images.std, images, task=task.name)
