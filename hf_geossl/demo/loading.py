"""A folder becomes the model of a demo: the published trunk, and the heads where they are."""

import json
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock
from typing import Any

import torch
from PIL import Image
from transformers import AutoModel, AutoModelForPreTraining, PreTrainedConfig, PreTrainedModel

from hf_geossl.demo.channel_picture import Picture, stack_units
from hf_geossl.evaluation.encoders import Encoder
from hf_geossl.hub.run_folder import find_model, first_line, is_pretraining, processor_files
from hf_geossl.methods import METHODS
from hf_geossl.modeling.image_format import ImageFormat
from hf_geossl.tasks.prediction.task_models import without_load_report
from hf_geossl.views.photometric import IMAGENET_MEAN, IMAGENET_STD

_CACHED = 32  # pictures whose tokens are cached


@dataclass
class DemoModel:
    """A model as the demo uses it.

    Pictures given to its functions are RGB of 8 bits, or of the model's format; they are scaled to the size that is asked
    for, the trained one or, `finer`, twice that.
    """

    trunk: Any  # what gets published: the teacher's trunk where there is a teacher
    whole: Any  # the pretraining model with its heads, which go with the student; None of a trunk alone
    mean: tuple[float, ...]  # normalisation of images in units, 0 to 1
    std: tuple[float, ...]
    source: str  # where the weights come from, in words
    _lock: Lock = field(default_factory=Lock, repr=False)
    _tokens: OrderedDict[Any, tuple[torch.Tensor, torch.Tensor]] = field(default_factory=OrderedDict, repr=False)

    def __post_init__(self) -> None:
        self.config: PreTrainedConfig = self.trunk.config
        self.method: str = self.config.model_type
        self.name = METHODS[self.method].title  # as the paper writes it
        self.pooled = METHODS[self.method].pooled  # what stands for a picture, and is trained to, in words
        self.encoder = Encoder(self.trunk, self.name, self.mean, self.std, max(self.config.image_height_width))
        self.image_format: ImageFormat | None = self.encoder.image_format  # None of RGB of 8 bits

    def size(self, finer: bool = False) -> tuple[int, int]:
        """Height and width in pixels of what the model sees: as in training, or twice that."""
        height, width = self.config.image_height_width
        return (2 * height, 2 * width) if finer else (height, width)

    def grid(self, finer: bool = False) -> tuple[int, int]:
        """Rows and columns of patches of that size."""
        height, width = self.size(finer)
        return height // self.config.patch_size, width // self.config.patch_size

    def unit_images(self, pictures: Sequence[Picture], size: tuple[int, int] | None = None) -> torch.Tensor:
        """Pictures, all scaled to one size, as `(pictures, channels, height, width)` in units, 0 to 1."""
        height, width = size or self.size()
        return stack_units([picture.resize((width, height), Image.Resampling.BILINEAR) for picture in pictures])

    def normalize(self, images: torch.Tensor) -> torch.Tensor:
        """Images `(..., channels, height, width)` in units as the model wants them."""
        return self.encoder.normalize(images)

    def pixels(self, pictures: Sequence[Picture], size: tuple[int, int] | None = None) -> torch.Tensor:
        """Normalised pictures `(pictures, channels, height, width)`."""
        return self.normalize(self.unit_images(pictures, size))

    @torch.no_grad()
    def encode(self, picture: Picture, finer: bool = False) -> tuple[torch.Tensor, torch.Tensor]:
        """Patch tokens `(rows, columns, hidden_size)` and the feature that stands for the picture, `(hidden_size,)`."""
        key = (picture.tobytes(), picture.size, finer)
        with self._lock:
            if key in self._tokens:
                self._tokens.move_to_end(key)
                return self._tokens[key]
            tokens = self.encoder.tokens(self.pixels([picture], self.size(finer)))
            self._tokens[key] = tokens.patches[0], tokens.pooled[0]
            while len(self._tokens) > _CACHED:
                self._tokens.popitem(last=False)
            return self._tokens[key]

    @torch.no_grad()
    def last_attention(self, picture: Picture, finer: bool = False) -> torch.Tensor:
        """The last layer's attention for a picture, `(heads, tokens, tokens)`: who looks (rows) at whom (columns)."""
        weights: list[torch.Tensor] = []
        attention = self.trunk.encoder.layer[-1].attention
        with self._lock:
            hook = attention.register_forward_hook(lambda module, inputs, outputs: weights.append(outputs[1]))
            try:
                self.trunk(self.pixels([picture], self.size(finer)))
            finally:
                hook.remove()
        return weights[0][0]

    def describe(self) -> str:
        """What people who know such models ask for: sizes, and whose features are shown."""
        height, width = self.size()
        millions = sum(parameter.numel() for parameter in self.trunk.parameters()) / 1e6
        return (
            f"A vision transformer of {millions:.1f} million parameters, in views of {width} × {height} pixels and patches "
            f"(squares) of {self.config.patch_size}. What is shown are its features, those of {self.source}. Pictures are "
            "cut to its shape and scaled to its size."
        )

    def why_no_head(self) -> str | None:
        """One sentence on what this model cannot show and why; None where nothing is missing."""
        method = METHODS[self.method]
        if self.whole is not None:
            return method.load("demo_limits")(self) if method.demo_limits else None
        if not method.head_needs:
            return None
        return (
            f"This folder holds the trunk alone, so one tab is missing: {method.head_needs} of the whole pretraining model, "
            "which a run keeps in its checkpoint folders."
        )


def open_model(folder: Path) -> DemoModel:
    """Opens what a training run leaves, one of its checkpoints, a whole pretraining model, or a trunk, in float32.

    Of a run's folder the newest whole checkpoint with a pretraining model is opened, the trunk beside it where there is
    none.

    Raises:
        ValueError: If there is no folder, no model of this library in it, or its weights cannot be read.
    """
    folder, config, place = find_model(folder)
    auto_class = AutoModelForPreTraining if is_pretraining(config) else AutoModel
    model = _load(auto_class, folder)
    described = model.config.get_image_format()
    if described is None:
        raise ValueError(
            f"the model in {str(folder)!r} takes {model.config.num_channels} channels, and nothing says what they are: "
            "give its config.json an image_format (names, type, value range, mean, deviation of each channel)"
        )
    mean, std = _normalization(folder) if described.is_rgb8 else (described.mean, described.std)
    if auto_class is AutoModel:
        return DemoModel(model, None, mean, std, f"the trunk{place}")
    has_teacher = model.teacher is not None
    trunk = getattr(model.teacher, model.base_model_prefix) if has_teacher else model.base_model
    return DemoModel(trunk, model, mean, std, f"the {'teacher' if has_teacher else 'student'}{place}")


def _load(auto_class: type[AutoModel] | type[AutoModelForPreTraining], folder: Path) -> PreTrainedModel:
    try:
        with without_load_report():  # a fine-tuned model's head is no part of its trunk
            model, info = auto_class.from_pretrained(
                folder,
                local_files_only=True,
                use_safetensors=True,
                dtype=torch.float32,
                attn_implementation="eager",  # the one that returns its weights
                output_loading_info=True,
            )
    except Exception as error:  # transformers, safetensors and huggingface_hub raise a dozen kinds
        raise ValueError(f"the model in {str(folder)!r} cannot be opened: {first_line(error)}") from error
    wrong = sorted({*info["missing_keys"], *(str(key) for key in info["mismatched_keys"])})
    if wrong:
        raise ValueError(
            f"the weights in {str(folder)!r} are incomplete: {wrong[0]} and {len(wrong) - 1} more are missing"
        )
    return model.eval().requires_grad_(False)


def _normalization(folder: Path) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation that the folder's image processor states, or ImageNet's."""
    paths = processor_files(folder)
    if not paths:
        return IMAGENET_MEAN, IMAGENET_STD
    try:
        stated = json.loads(paths[0].read_text(encoding="utf-8"))
        mean, std = (tuple(float(value) for value in stated[name]) for name in ("image_mean", "image_std"))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"preprocessor_config.json in {str(folder)!r} cannot be read: {first_line(error)}") from error
    if len(mean) != 3 or len(std) != 3 or min(std) <= 0:
        raise ValueError(
            f"preprocessor_config.json in {str(folder)!r} must give three means and three positive deviations"
        )
    return mean, std
