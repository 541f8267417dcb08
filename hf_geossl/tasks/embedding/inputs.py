"""From an image to `pixel_values`: decoded once, and made ready by the processor that belongs to the model."""

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from transformers import AutoImageProcessor, BaseImageProcessor, PreTrainedModel

from hf_geossl.data.images import decode_image, decode_pixels
from hf_geossl.evaluation.encoders import Encoder
from hf_geossl.evaluation.features import THUMBNAIL_SIDE
from hf_geossl.evaluation.loading import ModelLike
from hf_geossl.hub.export import make_image_processor
from hf_geossl.hub.run_folder import processor_files
from hf_geossl.modeling.image_format import ImageFormat
from hf_geossl.modeling.image_processing_vit import GeometricImageProcessor
from hf_geossl.tasks.embedding.arguments import EmbeddingArguments

logger = logging.getLogger(__name__)

Picture = Image.Image | torch.Tensor
_SCALED = 8 * THUMBNAIL_SIDE  # pixels of a side before the means are taken


@dataclass(frozen=True)
class ImageInputs:
    """Makes a model's input of images; it can be sent to other processes.

    Args:
        process (`Callable`): A processor of transformers, or a transform of timm: `Image.Image -> torch.Tensor`.
        max_pixels (`int`): Larger images are not decoded.
        image_format (`ImageFormat`, *optional*): What the model's images are; None of RGB of 8 bits.
        options (`Mapping`): Further arguments of the processor.
    """

    process: Callable[..., Any]
    max_pixels: int
    image_format: ImageFormat | None = None
    options: Mapping[str, Any] = field(default_factory=dict)

    def open(self, source: Any) -> Picture:
        """Decodes an image: RGB, or `(channels, height, width)` in the model's format.

        Raises:
            BrokenImageError: If it cannot be used.
        """
        if self.image_format is None:
            return decode_image(source, self.max_pixels)
        return decode_pixels(source, self.max_pixels, self.image_format).permute(2, 0, 1)

    def pixel_values(self, picture: Picture) -> torch.Tensor:
        """The input of one image or of a part of it, `(channels, height, width)`, float32."""
        if not isinstance(self.process, BaseImageProcessor):
            values: torch.Tensor = self.process(picture)
            return values
        made = self.process(picture, return_tensors="pt", **self.options)["pixel_values"]
        return made[0]


def thumbnail_of(picture: Picture) -> np.ndarray:
    """A small version of a whole image, whatever of it a model is shown: `(channels * 12 * 12,)`, uint8, means of areas."""
    sides = (_SCALED, _SCALED)
    if isinstance(picture, Image.Image):
        scaled = picture.resize(sides, Image.Resampling.BICUBIC, reducing_gap=1.0)
        values = torch.from_numpy(np.array(scaled, np.float32)).permute(2, 0, 1)
    else:
        values = picture.float() * (1 if picture.dtype == torch.uint8 else 255)
        values = F.interpolate(values[None], sides, mode="bilinear", antialias=True)[0]
    small = F.avg_pool2d(values, _SCALED // THUMBNAIL_SIDE)
    made: np.ndarray = small.round().clamp(0, 255).to(torch.uint8).flatten().numpy()
    return made


def inputs_of(model: ModelLike, encoder: Encoder, arguments: EmbeddingArguments) -> ImageInputs:
    """The inputs of a model, as whoever loads it by `AutoImageProcessor` (or timm's `create_transform`) makes them.

    Args:
        model (`str`, `Path`, `nn.Module` or `Encoder`): As it was named; of one that is given as an object, or has no
            processor, images are scaled and normalised as the encoder says.
        encoder (`Encoder`): The model.
        arguments ([`EmbeddingArguments`]): Size and bound of the images.

    Raises:
        ValueError: If the model takes a number of channels and does not say which.
    """
    image_format, limit = encoder.image_format, arguments.max_pixels
    channels = getattr(encoder.config, "num_channels", 3)
    if image_format is None and channels != 3:
        raise ValueError(
            f"{encoder.name} takes images of {channels} channels and does not say which: its config lacks an image_format"
        )
    size = arguments.image_size
    processed = isinstance(model, str | Path) and any(processor_files(Path(model)))
    if not isinstance(encoder.module, PreTrainedModel) and not processed:
        import timm.data

        config = timm.data.resolve_model_data_config(encoder.module)
        config |= {} if size is None else {"input_size": (3, size, size), "crop_pct": 1.0}
        return ImageInputs(timm.data.create_transform(**config, is_training=False), limit)
    processor = _saved_processor(model, encoder, arguments)
    options: dict[str, Any] = {} if size is None else {"size": {"height": size, "width": size}}
    if image_format is None:
        if size is not None and getattr(processor, "do_center_crop", False):
            options["do_center_crop"] = False
        return ImageInputs(processor, limit, options=options)
    # decoding has chosen the channels and mapped the values: the processor takes them as they come
    numbers = tuple(range(1, image_format.num_channels + 1))
    units = replace(image_format, channels=numbers, names=tuple(map(str, numbers)))
    if not image_format.is_uint8:
        units = replace(units, dtype="float32", value_range=((0.0, 1.0),), range_source="given")
    sides = getattr(processor, "size", None) or dict(zip(("height", "width"), encoder.height_width, strict=True))
    mean, std = getattr(processor, "image_mean", None), getattr(processor, "image_std", None)
    own = GeometricImageProcessor(units.to_dict(), sides, image_mean=mean, image_std=std)
    return ImageInputs(own, limit, image_format, {**options, "input_data_format": "channels_first"})


def _saved_processor(model: ModelLike, encoder: Encoder, arguments: EmbeddingArguments) -> BaseImageProcessor:
    if isinstance(model, str | Path):
        try:
            processor: BaseImageProcessor = AutoImageProcessor.from_pretrained(
                str(model), revision=arguments.revision, trust_remote_code=arguments.trust_remote_code
            )
            return processor
        except (OSError, ValueError):
            logger.warning(
                "%s has no image processor: images are scaled to %d x %d pixels and normalised with mean %s and deviation %s",
                encoder.name, *encoder.height_width, list(encoder.mean), list(encoder.std),
            )  # fmt: skip
    return make_image_processor(encoder.height_width, encoder.mean, encoder.std, encoder.image_format)
