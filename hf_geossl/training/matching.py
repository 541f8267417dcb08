"""Refuses a model or views of another method or of other images, before anything is read off them."""

import logging
from dataclasses import replace
from typing import Any

from hf_geossl.data.wording import counted
from hf_geossl.methods import Method
from hf_geossl.modeling.configuration_vit import GeometricViTConfig
from hf_geossl.modeling.image_format import ImageFormat
from hf_geossl.views.base import Views

logger = logging.getLogger(__name__)


def check_method(method: Method, model: object, views: object) -> None:
    """Raises a TypeError for another method's model or views; any class of the same `model_type` will do."""
    check_model(method, model)
    expected = method.load("views")
    if not isinstance(views, expected):
        raise TypeError(
            f"views must be {expected.__name__}, got {type(views).__name__}; leave them out for those that fit the model"
        )


def check_model(method: Method, model: object) -> None:
    """Checks that a model is of a method; see `check_method`."""
    if getattr(getattr(model, "config", None), "model_type", None) != method.name:
        raise TypeError(
            f"model must be of {method.load('pretraining').__name__}, got {type(model).__name__}; each method has a "
            "trainer of its own"
        )


def format_of(config: GeometricViTConfig) -> ImageFormat:
    """What a model's images are.

    Raises:
        ValueError: If nothing says it.
    """
    image_format = config.get_image_format()
    if image_format is None:
        raise ValueError(
            f"the model takes {config.num_channels} channels, and its configuration does not say which: give it "
            "image_format=ImageFormat(...).to_dict(), or the trainer views with image_format=ImageFormat(...)"
        )
    return image_format


def check_images(config: GeometricViTConfig, views: Views) -> None:
    """Raises a ValueError where views make other images than a model takes; how a value range was chosen is no matter."""
    ours = views.image_format
    if ours.num_channels != config.num_channels:
        raise ValueError(
            f"num_channels of the model must be {ours.num_channels}, as the views make ({ours.describe()}), "
            f"got {config.num_channels}"
        )
    theirs = None if config.image_format is None else ImageFormat.from_dict(config.image_format)
    if theirs is not None and replace(ours, range_source=theirs.range_source) != theirs:
        different = [name for name, value in theirs.to_dict().items() if value != ours.to_dict()[name]]
        raise ValueError(
            f"the views' images must be the model's ({theirs.describe()}), got {ours.describe()}; they differ in "
            f"{', '.join(name for name in different if name != 'range_source')}"
        )


def record_images(config: GeometricViTConfig, views: Views) -> None:
    """Checks that views make the images that a model takes, and writes what they are into its configuration.

    RGB of 8 bits is what a configuration without an `image_format` means; its mean and deviation are the processor's.

    Raises:
        ValueError: See `check_images`.
    """
    check_images(config, views)
    if not views.image_format.is_rgb:
        logger.warning(
            f"the images are not red, green and blue ({counted(views.image_format.num_channels, 'channel')}): hue, "
            "saturation, grey and solarisation of the views are left out"
        )
    if config.image_format is None and not views.image_format.is_rgb8:
        config.update({"image_format": views.image_format.to_dict()})


def fitting_sizes(method: Method, patch_size: int) -> dict[str, Any]:
    """Sides of the views that a method has by default, as the nearest multiples of a patch that does not divide them."""
    flat = method.load("views").flat_settings()
    sides = {name: entry.default for name, entry in flat.items() if name.endswith("_size") and name != "patch_size"}
    return {name: max(1, round(side / patch_size)) * patch_size for name, side in sides.items() if side % patch_size}
