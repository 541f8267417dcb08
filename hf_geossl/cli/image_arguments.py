"""What `geossl pretrain` reads of images: decided by its arguments, the model that it starts from, and the images."""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from hf_geossl.cli.arguments import Value
from hf_geossl.cli.pretrain_arguments import Pretraining
from hf_geossl.cli.usage import UsageError
from hf_geossl.modeling.image_format import ImageFormat

if TYPE_CHECKING:
    from hf_geossl.data.streams import ImageStream
    from hf_geossl.modeling.configuration_vit import GeometricViTConfig

_ARGUMENTS = ("channels", "value_range", "channel_names")
_FEW, _MANY = 64, 256  # images that are measured: of data that are rendered or downloaded, and of those on this machine
_TYPE_ALONE = 16  # where all but the stored type is given


def resolve_images(
    given: Pretraining,
    stream: "ImageStream",
    start: "GeometricViTConfig | None" = None,
    checkpoint: Path | None = None,
) -> tuple[ImageFormat, list[str]]:
    """Decides what the model's images are; measures images where that is needed.

    Plain colour images of 8 bits on this machine are recognised by their headers. Other local images are measured, so that
    no levels or channels are lost in silence; what lies on the Hub is measured where an argument asks for it.

    Args:
        given (`Pretraining`): What the run was given.
        stream (`ImageStream`): The images.
        start (`GeometricViTConfig`, *optional*): Of the model that the run starts from.
        checkpoint (`Path`, *optional*): That the run goes on from.

    Returns:
        `(ImageFormat, list[str])`: and lines for the user.

    Raises:
        UsageError: If arguments contradict each other or the model.
        ValueError: If the images do not have what is asked for.
    """
    words = {name: getattr(given.data, name) for name in _ARGUMENTS if getattr(given.data, name) is not None}
    moments = {name: _numbers(given.views[name]) for name in ("mean", "std") if given.views.get(name) is not None}
    if start is not None and start.image_format is not None:
        return _of_start(ImageFormat.from_dict(start.image_format), words, moments), []
    if checkpoint is not None and not words and not moments:
        saved = json.loads((checkpoint / "config.json").read_text(encoding="utf-8")).get("image_format")
        if saved is not None:
            return ImageFormat.from_dict(saved), []
    asked = given.model.get("num_channels") if start is None else start.num_channels
    channels = joined(words["channels"], ",") if "channels" in words else _channels_of(asked)
    image_format, lines = _choose(stream, channels, words, moments)
    if asked is not None and asked != image_format.num_channels:
        gives = f"and --channels {channels or 'rgb'} gives {image_format.num_channels}"
        if start is None:
            raise UsageError(
                f"--num_channels is {asked}, {gives}: leave --num_channels out, which follows from --channels"
            )
        raise UsageError(f"the model that --model_name_or_path names takes {asked} channels, {gives}: name as many")
    return image_format, lines


def _of_start(theirs: ImageFormat, words: Mapping[str, object], moments: Mapping[str, object]) -> ImageFormat:
    given = [*words, *moments]
    if given:
        raise UsageError(
            f"--{given[0]} is part of the model that --model_name_or_path names ({theirs.describe()}): leave one of the two out"
        )
    return theirs


def _channels_of(asked: Value) -> str | None:
    """The channels that a number of them means; None for the default."""
    if asked in (None, 3):
        return None
    if asked == 1:
        return "gray"
    example = (
        ",".join(str(number) for number in range(1, asked + 1)) if isinstance(asked, int) and asked < 9 else "4,3,2"
    )
    raise UsageError(
        f"--num_channels {asked} does not say which channels: name them by --channels, such as --channels {example}, or all; "
        "num_channels follows from it"
    )


def _choose(
    stream: "ImageStream", channels: str | None, words: Mapping[str, object], moments: Mapping[str, tuple[float, ...]]
) -> tuple[ImageFormat, list[str]]:
    from hf_geossl.data.measurement import Measurement, are_plain, choose_format, measure_images, parse_channels

    numbers = parse_channels(channels)
    value_range = joined(words["value_range"], ";") if "value_range" in words else None
    names = None if "channel_names" not in words else joined(words["channel_names"], ",").split(",")
    kind, lines = stream.source.kind, list[str]()
    if numbers == "rgb" and value_range is None and (kind in ("scenes", "hub") or are_plain(stream)):
        measured = Measurement()
    else:
        limit = _FEW if kind in ("scenes", "hub") else _MANY
        if isinstance(numbers, tuple) and len(moments) == 2 and value_range is not None and ":" not in value_range:
            limit = _TYPE_ALONE
        measured = measure_images(stream, limit, channels=max(numbers) if isinstance(numbers, tuple) else 0)
        if measured.num_broken:
            total = measured.images + measured.num_broken
            lines.append(
                f"{measured.num_broken} of {total} measured images cannot be used, such as {measured.first_broken()}"
            )
    image_format, chosen = choose_format(
        measured,
        channels=channels,
        value_range=value_range,
        mean=moments.get("mean"),
        std=moments.get("std"),
        names=names,
    )
    lines += chosen
    if not image_format.is_rgb8:
        lines.append(f"the model's images: {image_format.describe()}")
    return image_format, [f"{stream.source.name}: {line}" for line in lines]


def joined(value: object, separator: str) -> str:
    """Writes an argument that took several words, or a list of a recipe, as one text.

    Args:
        value (`str`, number or `Sequence`): `["4,3,2"]`, `["4", "3"]`, `[[0, 1], [0, 5]]` ...
        separator (`str`): Between words; of two plain numbers for a `";"` it is a comma, since they are one pair.
    """
    if isinstance(value, str) or not isinstance(value, Sequence):
        return str(value)
    words = [re.sub(r"[\[\]()]", "", str(word)).strip() for word in value]
    if separator == ";" and len(words) == 2 and not any("," in word or ":" in word for word in words):
        separator = ","
    return separator.join(words)


def _numbers(value: Value) -> tuple[float, ...]:
    return tuple(float(number) for number in (value if isinstance(value, list) else [value]))  # type: ignore[arg-type]
