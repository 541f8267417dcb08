"""The model that `geossl pretrain` trains, and its views: anew, from a checkpoint of the method, or from any ViT's trunk."""

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_geossl.cli.arguments import Value
from hf_geossl.cli.pretrain_arguments import Pretraining
from hf_geossl.cli.usage import UsageError

if TYPE_CHECKING:
    from hf_geossl.data.streams import ImageStream
    from hf_geossl.modeling.configuration_vit import GeometricViTConfig
    from hf_geossl.modeling.image_format import ImageFormat
    from hf_geossl.modeling.teacher_student import TeacherStudentModel
    from hf_geossl.views.base import Views

_RENAMED = {"model_split": "split"}  # arguments of the model -> fields of its configuration of another name
_OF_IMAGES = ("channels", "value_range", "channel_names")  # arguments of the data


def make_model(
    given: Pretraining, stream: "ImageStream", checkpoint: Path | None = None
) -> "tuple[TeacherStudentModel, ImageFormat, list[str]]":
    """Makes the model.

    Args:
        given (`Pretraining`): What the run was given.
        stream (`ImageStream`): The images.
        checkpoint (`Path`, *optional*): That the run goes on from.

    Returns:
        `(TeacherStudentModel, ImageFormat, list[str])`: what its images are, and lines for the user.

    Raises:
        UsageError, ValueError: If arguments contradict each other, or what the model starts from.
    """
    from hf_geossl.cli.image_arguments import resolve_images

    if given.init_from is not None:
        return _start_from_source(given, stream, checkpoint)
    model_class = given.method.load("pretraining")
    start = None if given.model_name_or_path is None else model_class.from_pretrained(given.model_name_or_path)
    image_format, lines = resolve_images(given, stream, None if start is None else start.config, checkpoint)
    return model_class(make_config(given, image_format)) if start is None else start, image_format, lines


def _start_from_source(
    given: Pretraining, stream: "ImageStream", checkpoint: Path | None
) -> "tuple[TeacherStudentModel, ImageFormat, list[str]]":
    from hf_geossl.cli.image_arguments import resolve_images
    from hf_geossl.modeling.image_format import ImageFormat
    from hf_geossl.training.adaptation.initialization import read_whole, start_from

    assert given.init_from is not None
    source, fields = read_whole(given.init_from, given.method), _fields(given)
    theirs = source.fields.get("image_format")
    if theirs is not None and not any(getattr(given.data, name) for name in _OF_IMAGES):
        image_format, lines = ImageFormat.from_dict(theirs), list[str]()
    else:
        image_format, lines = resolve_images(given, stream, None, checkpoint)
    if image_format != ImageFormat():
        fields["image_format"] = image_format.to_dict()
    sizes = {name: fields.pop(name, None) for name in ("image_size", "patch_size")}
    fields.pop("num_channels", None)  # compared with those of the images
    model, changes = start_from(
        source,
        given.method,
        fields,
        num_channels=image_format.num_channels,
        channel_weights=given.init_channels,
        **sizes,
    )
    return model, model.config.get_image_format() or image_format, [*lines, *changes]


def _fields(given: Pretraining) -> dict[str, Any]:
    """The fields of the configuration that the user has given, by their names there."""
    return {_RENAMED.get(name, name): _as_tuple(value) for name, value in given.model.items()}


def make_config(given: Pretraining, image_format: "ImageFormat | None" = None) -> "GeometricViTConfig":
    """Makes the configuration that the user has asked for.

    Args:
        given (`Pretraining`): What the run was given.
        image_format (`ImageFormat`, *optional*): What the images are; RGB of 8 bits by default.

    Raises:
        UsageError: With one line, in the command line's words, if a value is of another type or out of its range.
    """
    from huggingface_hub.errors import StrictDataclassError

    values = _fields(given)
    if image_format is not None and not image_format.is_rgb8:
        values |= {"image_format": image_format.to_dict(), "num_channels": image_format.num_channels}
    try:
        config: GeometricViTConfig = given.method.load("config")(**values)
    except StrictDataclassError as error:
        message = " ".join(str(error.__cause__ or error).split())
        for word, name in _RENAMED.items():  # the field, not the same word in a sentence
            message = re.sub(rf"\b{name}(?=='| must\b)", word, message)
        raise UsageError(message) from error
    return config


def make_views(given: Pretraining, model: "TeacherStudentModel", image_format: "ImageFormat | None" = None) -> "Views":
    """Makes the views; settings that the configuration has too are the model's, and `image_format` has mean and deviation."""
    from hf_geossl.cli.describe import shared_settings
    from hf_geossl.training.matching import fitting_sizes

    shared = {name: getattr(model.config, name) for name in shared_settings(given.method)}
    own = {name: _as_tuple(value) for name, value in given.views.items()}
    if image_format is not None and (not image_format.is_rgb8 or model.config.image_format is not None):
        own = {name: value for name, value in own.items() if name not in ("mean", "std")}
        own["image_format"] = image_format  # type: ignore[assignment]
    own = {**fitting_sizes(given.method, model.config.patch_size), **own}
    views: Views = given.method.load("views")(**own, **shared)
    return views


def describe_sizes(given: Pretraining, model: "TeacherStudentModel") -> list[str]:
    """Says which sides of views are others than by default, since the patch does not divide those."""
    from hf_geossl.training.matching import fitting_sizes

    patch_size = model.config.patch_size
    fitting = fitting_sizes(given.method, patch_size)
    changed = [f"{name} {side}" for name, side in fitting.items() if name not in given.views]
    return [f"views fit the patch of {patch_size} pixels: {', '.join(changed)}"] if changed else []


def _as_tuple(value: Value) -> Value | tuple[Value, ...]:
    return tuple(value) if isinstance(value, list) else value
