"""Crops of an image: drawing boxes, cutting and resizing them, turning what was cut."""

import math
import operator
import random
from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image

from hf_geossl.data.images import BrokenImageError, decode_image, decode_pixels
from hf_geossl.modeling.image_format import ImageFormat
from hf_geossl.views.resizing import Box, ChannelGroups, prepare, resizer

CROP_ATTEMPTS = 10  # torchvision's `RandomResizedCrop`
DISTORTED_ATTEMPTS = 100  # TensorFlow's `sample_distorted_bounding_box`


def read_pixels(
    image: Image.Image | np.ndarray | torch.Tensor, image_format: ImageFormat | None = None
) -> torch.Tensor:
    """The pixels `(height, width, channels)` of an image, as `decode_pixels` gives them for a format.

    They are uint8 for formats of 8 bits (RGB by default), else float32 in units of the value range. A tensor of that type
    and shape has been decoded and is returned as it is; whatever else holds the values that a file stores.

    Raises:
        BrokenImageError: an image that cannot be decoded or has no pixels.
        TypeError: another type, shape or kind of number.
    """
    in_units = image_format is not None and not image_format.is_uint8
    channels = 3 if image_format is None else image_format.num_channels
    kind = torch.float32 if in_units else torch.uint8
    if isinstance(image, torch.Tensor) and image.dtype == kind and image.ndim == 3 and image.shape[2] == channels:
        if image.numel() == 0:
            raise BrokenImageError(f"it has no pixels (shape {tuple(image.shape)})")
        return image
    if image_format is not None and not image_format.is_rgb8:
        return decode_pixels(image, image_format=image_format)
    if not (isinstance(image, Image.Image) and image.mode == "RGB" and not image.info):
        image = decode_image(image)
    return torch.from_numpy(np.array(image))


def make_random(seed: int | None) -> random.Random:
    """Source of random numbers for the geometry of one image; a seed that is None comes from torch's global generator.

    Only `random()` of it is used, whose numbers Python promises to keep across versions.
    """
    if seed is None:
        return random.Random(int(torch.randint(2**63 - 1, ()).item()))
    return random.Random(operator.index(seed) % 2**64)


def draw_crop(
    rng: random.Random, width: int, height: int, scale: tuple[float, float], aspect_ratio: tuple[float, float]
) -> Box:
    """Draws a crop: area uniform, aspect ratio log-uniform, place uniform; after 10 misfits the largest centred crop.

    `width` and `height` are the image's in pixels, `scale` the smallest and largest share of its area, `aspect_ratio` the
    smallest and largest width / height. The crop has at least one pixel.

    Source: torchvision `RandomResizedCrop.get_params`.
    """
    draw = rng.random
    narrowest, widest = aspect_ratio
    log_narrowest, log_range = math.log(narrowest), math.log(widest / narrowest)
    for _ in range(CROP_ATTEMPTS):
        area = width * height * (scale[0] + draw() * (scale[1] - scale[0]))
        ratio = math.exp(log_narrowest + draw() * log_range)
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            y, x = int(draw() * (height - h + 1)), int(draw() * (width - w + 1))
            return x, y, x + w, y + h
    w, h = width, height
    if width < narrowest * height:
        h = max(1, round(width / narrowest))
    elif width > widest * height:
        w = max(1, round(height * widest))
    x, y = (width - w) // 2, (height - h) // 2
    return x, y, x + w, y + h


def draw_distorted_crop(
    rng: random.Random, width: int, height: int, scale: tuple[float, float], aspect_ratio: tuple[float, float]
) -> Box:
    """Draws a crop as TensorFlow does: aspect ratio uniform, then height uniform among those whose area fits.

    Arguments as of `draw_crop`. Small areas are more frequent, and a crop that is smaller than the image never touches its
    last column or row. After 100 misfits the whole image.

    Source: TensorFlow `sample_distorted_bounding_box` without boxes and with a minimum coverage of 0.
    """
    draw = rng.random
    smallest, largest = scale[0] * width * height, scale[1] * width * height
    for _ in range(DISTORTED_ATTEMPTS):
        ratio = aspect_ratio[0] + draw() * (aspect_ratio[1] - aspect_ratio[0])
        highest = round(math.sqrt(largest / ratio))
        if round(highest * ratio) > width:
            highest = int((width + 0.5 - 1e-7) / ratio)
            if round(highest * ratio) > width:
                highest -= 1
        highest = min(highest, height)
        lowest = min(round(math.sqrt(smallest / ratio)), highest)
        h = lowest + int(draw() * (highest - lowest + 1))
        if h * round(h * ratio) < smallest:
            h += 1
        if h * round(h * ratio) > largest:
            h -= 1
        w = round(h * ratio)
        if smallest <= h * w <= largest and 0 < w <= width and 0 < h <= height:
            y, x = int(draw() * (height - h)), int(draw() * (width - w))
            return x, y, x + w, y + h
    return 0, 0, width, height


def intersect(a: Box, b: Box) -> Box:
    """The box that `a` and `b` share (x1, y1, x2, y2 in pixels); see `shared_area` for boxes that share nothing."""
    return max(a[0], b[0]), max(a[1], b[1]), min(a[2], b[2]), min(a[3], b[3])


def shared_area(a: Box, b: Box) -> int:
    """Area in square pixels of what two boxes (x1, y1, x2, y2) share, 0 where a side is not positive."""
    width = (a[2] if a[2] < b[2] else b[2]) - (a[0] if a[0] > b[0] else b[0])
    height = (a[3] if a[3] < b[3] else b[3]) - (a[1] if a[1] > b[1] else b[1])
    return width * height if width > 0 and height > 0 else 0


def slide_onto(box: Box, target: Box) -> Box:
    """Moves a box the shortest way to where it overlaps `target` most, keeping its size; all lie inside the image."""

    def start(low: int, high: int, target_low: int, target_high: int) -> int:
        first, last = sorted((target_low, target_high - (high - low)))
        # A box longer than the target may start before it, but inside the image as now.
        return min(max(low, first), last)

    x, y = start(box[0], box[2], target[0], target[2]), start(box[1], box[3], target[1], target[3])
    return x, y, x + box[2] - box[0], y + box[3] - box[1]


def cut_crops(
    pixels: torch.Tensor | ChannelGroups, boxes: Sequence[Box], size: int, *, exact: bool = False
) -> torch.Tensor:
    """Cuts boxes out of an image and resizes each to a square: bilinear, antialiased, no pixel from outside the box.

    The default takes torch's uint8 kernel, which is 4 times as fast as Pillow. Its filter weights have fewer bits: values
    differ by one grey level at most, 0.5 % of them in random crops of photographs, up to 20 % where the scale is a simple
    fraction and many values lie half-way between two levels.

    Args:
        pixels (`torch.Tensor` of shape `(height, width, channels)`): uint8, or float32; or what `prepare` made of them,
            where there is more than one call.
        boxes (`Sequence[Box]`): Inside the image, not empty.
        size (`int`): Side of the crops in pixels.
        exact (`bool`): Resize with Pillow, bit for bit.

    Returns:
        `torch.Tensor` of shape `(len(boxes), channels, size, size)`: of the pixels' type, in channels-last memory, as the
        kernel makes them.
    """
    plain = pixels.pixels if isinstance(pixels, ChannelGroups) else pixels
    if not boxes:
        return torch.empty(0, plain.shape[2], size, size, dtype=plain.dtype)
    if exact:
        return torch.from_numpy(np.stack(_resize_by_pillow(plain.numpy(), boxes, size))).permute(0, 3, 1, 2)
    resize = resizer(prepare(plain) if pixels is plain else pixels, size, antialias=True)
    return torch.cat([resize(box) for box in boxes])


def _resize_by_pillow(pixels: np.ndarray, boxes: Sequence[Box], size: int) -> list[np.ndarray]:
    if pixels.shape[2] != 3 or pixels.dtype != np.uint8:  # Pillow knows few numbers of channels
        planes = [Image.fromarray(np.ascontiguousarray(pixels[:, :, channel])) for channel in range(pixels.shape[2])]
    else:
        planes = [Image.fromarray(pixels)]

    def resize(image: Image.Image, box: Box) -> np.ndarray:
        # Not `resize(box=...)`: that one reads across the edges of the box.
        return np.array(image.crop(box).resize((size, size), Image.Resampling.BILINEAR))

    return [np.dstack([resize(plane, box) for plane in planes]) for box in boxes]


def cut_crops_without_antialias(
    pixels: torch.Tensor | ChannelGroups,
    boxes: Sequence[Box],
    size: int,
    *,
    flips: Sequence[bool],
    unrounded: bool = False,
) -> torch.Tensor:
    """Cuts boxes out of an image, resizes each to a square and mirrors some: bilinear between the four nearest pixels.

    Args:
        pixels, boxes, size: As of `cut_crops`.
        flips (`Sequence[bool]`): For each box whether the crop is mirrored left to right.
        unrounded (`bool`): Make float32 of uint8, as the original; else uint8 stays, which rounds after each axis and
            differs by one grey level at most from the rounded float32.

    Returns:
        `torch.Tensor` of shape `(len(boxes), channels, size, size)`: of the pixels' type; float32 in 0..255 of uint8 that
        is not to be rounded.

    Source: TensorFlow `image.resize` as LOCA calls it (half-pixel centres, no antialiasing).
    """
    plain = pixels.pixels if isinstance(pixels, ChannelGroups) else pixels
    if unrounded:
        plain = pixels = plain.float()
    crops = plain.new_empty(len(boxes), size, size, plain.shape[2]).permute(0, 3, 1, 2)
    resize = resizer(prepare(plain) if pixels is plain else pixels, size, antialias=False)
    for target, box, flip in zip(crops, boxes, flips, strict=True):
        resized = resize(box)
        target.copy_((resized.flip(-1) if flip else resized)[0])
    return crops


def quarter_turn(images: torch.Tensor, turns: torch.Tensor) -> torch.Tensor:
    """Turns each image counter-clockwise as displayed: `torch.rot90(image, turns, dims=(-2, -1))`, for all at once.

    `images (views, channels, size, size)` are square; `turns (views,)`, 0 to 3, lie on the same device, whose values are
    not waited for. The result is contiguous.
    """
    height, width = images.shape[-2:]
    if height != width:
        raise ValueError(f"images must be square to be turned, got {height} x {width}")
    raster = torch.arange(height * width, device=images.device).view(height, width)
    sources = torch.stack([raster.rot90(turn).flatten() for turn in range(4)])
    index = sources[turns][:, None].expand(-1, images.shape[1], -1)
    return images.flatten(2).gather(2, index).view(images.shape)
