"""Configuration names of the streamed scenes, "<mode>-<size>", and single images by them."""

from __future__ import annotations

from PIL import Image

from hf_geossl.data.scenes.arguments import LARGEST_SIZE, SMALLEST_SIZE, check_count
from hf_geossl.data.scenes.description import MODES
from hf_geossl.data.scenes.render import render
from hf_geossl.data.scenes.sampling import sample_scene

DEFAULT_MODE = "scene"
DEFAULT_STREAM_SIZE = 128


def parse_config_name(config_name: str | None) -> tuple[str, int]:
    """Reads a configuration name.

    Args:
        config_name (`str` or `None`): "<mode>-<size>" with either part left out: "scene-96", "topdown", "128"; `None` is "scene-128".

    Returns:
        `tuple[str, int]`: mode and size in pixels.

    Raises:
        ValueError: for anything else.
    """
    if config_name is None:
        return DEFAULT_MODE, DEFAULT_STREAM_SIZE
    mode, separator, digits = config_name.rpartition("-") if isinstance(config_name, str) else ("", "", "")
    if not separator:
        mode, digits = (digits, str(DEFAULT_STREAM_SIZE)) if digits in MODES else (DEFAULT_MODE, digits)
    # Plain ASCII digits: int() alone would also take "+96", " 96" and "9_6".
    if mode in MODES and digits.isascii() and digits.isdigit() and len(digits) <= 4:
        size = int(digits)
        if SMALLEST_SIZE <= size <= LARGEST_SIZE:
            return mode, size
    raise ValueError(
        f'config_name must be "<mode>-<size>" with either part optional, mode one of {", ".join(MODES)} and size from '
        f'{SMALLEST_SIZE} to {LARGEST_SIZE} (for example "scene-96", "topdown", "128"), got {config_name!r}'
    )


def scene_image(split: str, index: int, config_name: str | None = None) -> Image.Image:
    """Renders one image of the streamed scenes (seed 0).

    Args:
        split (`str`): "train", "validation" or "test".
        index (`int`): a row's "index" from `stream_scenes`.
        config_name (`str`, *optional*): as in `parse_config_name`.

    Returns:
        `PIL.Image.Image`: RGB, square.

    Raises:
        ValueError: for an unknown split or configuration.
        IndexError: for an index out of range.
    """
    mode, size = parse_config_name(config_name)
    return Image.fromarray(render(sample_scene(split, index, mode=mode), size).image)


def shard_ranges(split: str, num_shards: int, count: int | None) -> list[tuple[int, int]]:
    """Cuts the indices 0 to count - 1 into ranges (start, stop) of nearly equal length, at most one for each index.

    Raises:
        ValueError: for an unknown split, or a count or number of shards out of range.
    """
    total = check_count(split, count)
    if num_shards < 1:
        raise ValueError(f"num_shards must be at least 1, got {num_shards}")
    shards = min(num_shards, total)
    return [(shard * total // shards, (shard + 1) * total // shards) for shard in range(shards)]
