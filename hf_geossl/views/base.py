"""What the views of all methods share: reading an image, drawing crops, cutting them, turning them, stacking them.

A view is made in two places. In a worker: the crop, resized in uint8, and the record of its geometry (`Views.views`).
On the device, in batch: quarter turns, colour and normalisation (`Views.augment`).
"""

import math
import operator
import random
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch.utils.data import default_collate, get_worker_info

from hf_geossl.data.images import BrokenImageError, decode_image
from hf_geossl.views.memory import empty_batch

Box = tuple[int, int, int, int]  # x1, y1, x2, y2 in pixels of the source image, x2 and y2 exclusive
Batch = dict[str, torch.Tensor]

CROP_ATTEMPTS = 10  # torchvision's `RandomResizedCrop`


class Views(ABC):
    """Makes the views of one method: `views` in a worker, `collate` to a batch, `augment` on the device.

    Subclasses say which views there are. `views` and `augment` share no state, so that an instance can be copied into
    workers and used from several threads.

    Attributes:
        global_size (`int`): side in pixels of the views that stand for a whole image.
        mean, std (`tuple[float, float, float]`): normalisation of red, green and blue, for images in [0, 1].
    """

    global_size: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    accepts_pixels: ClassVar[bool] = True  # uint8 of (height, width, 3) as well as PIL images: the loader decodes to it

    def __call__(self, image: Image.Image | np.ndarray | torch.Tensor, seed: int | None = None) -> Batch:
        """The same as `views`."""
        return self.views(image, seed)

    @abstractmethod
    def views(self, image: Image.Image | np.ndarray | torch.Tensor, seed: int | None = None) -> Batch:
        """Crops of one image and the record of what was done to them.

        Args:
            image (`PIL.Image.Image`, `numpy.ndarray` or `torch.Tensor`): see `read_pixels`.
            seed (`int`, *optional*): the result is a function of image and seed alone; if absent the seed is drawn from
                torch's global generator.

        Returns:
            `dict[str, torch.Tensor]`: uint8 crops (in channels-last memory), and `crop_boxes` (`(views, 4)`, float32, x1, y1, x2, y2 in pixels of
            the source image), `flips` (`(views,)`, bool: mirrored left to right) and `quarter_turns` (`(views,)`, int64:
            counter-clockwise, still to be done by `augment`).
        """

    @abstractmethod
    def augment(self, batch: Batch, generator: torch.Generator | None = None) -> dict[str, torch.Tensor | None]:
        """Turns, colours and normalises the crops of a batch on the device that holds them.

        Args:
            batch (`dict[str, torch.Tensor]`): what `collate` returned; it is left as it is.
            generator (`torch.Generator`, *optional*): source of all random numbers, on any device; torch's global CPU
                generator if absent. On an accelerator it makes the host wait once for the number of blurred views.

        Returns:
            `dict`: the arguments of the model's `forward`.
        """

    @abstractmethod
    def normalize(self, batch: Batch) -> dict[str, torch.Tensor | None]:
        """`augment` without change of colour: the crops turned and normalised, nothing random."""

    @abstractmethod
    def main_crops(self, batch: Batch) -> torch.Tensor:
        """The crops that stand for the images, for pictures.

        Args:
            batch (`dict[str, torch.Tensor]`): what `collate` returned.

        Returns:
            `torch.Tensor` of shape `(batch, 3, global_size, global_size)`: uint8.
        """

    @abstractmethod
    def describe(self) -> str:
        """The views in one line, for a model card."""

    @staticmethod
    def collate(samples: Sequence[Batch]) -> Batch:
        """Stacks the views of several images.

        Args:
            samples (`Sequence[dict[str, torch.Tensor]]`): what `views` returned, the same keys and shapes for all.

        Returns:
            `dict[str, torch.Tensor]`: every tensor with a leading batch axis; crops in channels-last memory stay there.

        Raises:
            ValueError: no samples, or samples of different keys.
        """
        if not samples:
            raise ValueError("samples must hold at least one image, got none")
        for position, sample in enumerate(samples):
            if sample.keys() != samples[0].keys():
                raise ValueError(
                    f"samples must have the same keys: sample 0 has {sorted(samples[0])}, "
                    f"sample {position} has {sorted(sample)}"
                )
        return {key: _stack([sample[key] for sample in samples]) for key in samples[0]}


def _stack(tensors: list[torch.Tensor]) -> torch.Tensor:
    if not tensors[0].is_contiguous():
        return _stack([tensor.movedim(-3, -1) for tensor in tensors]).movedim(-1, -3)
    if get_worker_info() is not None:
        return default_collate(tensors)  # straight into the memory that the worker shares
    stacked = empty_batch((len(tensors), *tensors[0].shape), tensors[0].dtype, tensors[0].device)
    return torch.stack(tensors, out=stacked)


def check_crops_and_normalization(
    scales: dict[str, tuple[float, float]],
    aspect_ratio: tuple[float, float],
    mean: Sequence[float],
    std: Sequence[float],
) -> None:
    """Refuses settings of views that make no sense.

    Args:
        scales (`dict[str, tuple[float, float]]`): by argument name, smallest and largest share of the image's area.
        aspect_ratio (`tuple[float, float]`): smallest and largest width / height of a crop.
        mean, std (`Sequence[float]`): normalisation of red, green and blue.

    Raises:
        ValueError: naming the argument.
    """
    for name, scale in scales.items():
        if not 0 < scale[0] <= scale[1] <= 1:
            raise ValueError(f"{name} must be (smallest, largest) with 0 < smallest <= largest <= 1, got {scale}")
    if not 0 < aspect_ratio[0] <= aspect_ratio[1] < math.inf:
        raise ValueError(f"aspect_ratio must be (smallest, largest) with 0 < smallest <= largest, got {aspect_ratio}")
    if len(mean) != 3 or len(std) != 3 or min(std) <= 0:
        raise ValueError(f"mean and std must hold 3 numbers, those of std above 0, got {mean} and {std}")


def read_pixels(image: Image.Image | np.ndarray | torch.Tensor) -> torch.Tensor:
    """The pixels of an image as RGB.

    Args:
        image (`PIL.Image.Image`, `numpy.ndarray` or `torch.Tensor`): an image of any mode with a fixed range, or uint8
            of shape `(height, width, 3)`; whatever is not plain RGB goes through `decode_image`.

    Returns:
        `torch.Tensor` of shape `(height, width, 3)`: uint8. It shares memory with a tensor of that shape.

    Raises:
        BrokenImageError: an image that cannot be decoded or has no pixels.
        TypeError: another type, shape or kind of number.
    """
    if isinstance(image, torch.Tensor) and image.dtype == torch.uint8 and image.ndim == 3 and image.shape[2] == 3:
        if image.numel() == 0:
            raise BrokenImageError(f"it has no pixels (shape {tuple(image.shape)})")
        return image
    if not (isinstance(image, Image.Image) and image.mode == "RGB" and not image.info):
        image = decode_image(image)
    return torch.from_numpy(np.array(image))


def make_random(seed: int | None) -> random.Random:
    """Source of random numbers for the geometry of one image.

    Only `random()` of it is used, whose numbers Python promises to keep across versions.

    Args:
        seed (`int`, *optional*): any integer, taken modulo 2^64; drawn from torch's global generator if absent.

    Returns:
        `random.Random`: of its own.
    """
    if seed is None:
        return random.Random(int(torch.randint(2**63 - 1, ()).item()))
    return random.Random(operator.index(seed) % 2**64)


def draw_crop(
    rng: random.Random, width: int, height: int, scale: tuple[float, float], aspect_ratio: tuple[float, float]
) -> Box:
    """Draws a crop: area uniform, aspect ratio log-uniform, place uniform; after 10 misfits the largest centred crop.

    Args:
        rng (`random.Random`): source of the numbers.
        width, height (`int`): of the image in pixels.
        scale (`tuple[float, float]`): smallest and largest share of the image's area, in (0, 1].
        aspect_ratio (`tuple[float, float]`): smallest and largest width / height of the crop.

    Returns:
        `tuple[int, int, int, int]`: x1, y1, x2, y2 in pixels, at least one pixel wide and high.

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


def intersect(a: Box, b: Box) -> Box:
    """The box that `a` and `b` share (x1, y1, x2, y2 in pixels); see `shared_area` for boxes that share nothing."""
    return max(a[0], b[0]), max(a[1], b[1]), min(a[2], b[2]), min(a[3], b[3])


def shared_area(a: Box, b: Box) -> int:
    """Area in square pixels of what two boxes (x1, y1, x2, y2) share, 0 where a side is not positive."""
    width = (a[2] if a[2] < b[2] else b[2]) - (a[0] if a[0] > b[0] else b[0])
    height = (a[3] if a[3] < b[3] else b[3]) - (a[1] if a[1] > b[1] else b[1])
    return width * height if width > 0 and height > 0 else 0


def slide_onto(box: Box, target: Box) -> Box:
    """Moves a box the shortest way to where it overlaps `target` most, keeping its size.

    Args:
        box (`tuple[int, int, int, int]`): x1, y1, x2, y2 in pixels, inside the image.
        target (`tuple[int, int, int, int]`): the same, inside the image.

    Returns:
        `tuple[int, int, int, int]`: the moved box, inside the image.
    """

    def start(low: int, high: int, target_low: int, target_high: int) -> int:
        first, last = sorted((target_low, target_high - (high - low)))
        # A box longer than the target may start before it, but inside the image as now.
        return min(max(low, first), last)

    x, y = start(box[0], box[2], target[0], target[2]), start(box[1], box[3], target[1], target[3])
    return x, y, x + box[2] - box[0], y + box[3] - box[1]


def cut_crops(pixels: torch.Tensor, boxes: Sequence[Box], size: int, *, exact: bool = False) -> torch.Tensor:
    """Cuts boxes out of an image and resizes each to a square: bilinear, antialiased, no pixel from outside the box.

    The default takes torch's uint8 kernel, which is 4 times as fast as Pillow. Its filter weights have fewer bits: values
    differ by one grey level at most, 0.5 % of them in random crops of photographs, up to 20 % where the scale is a simple
    fraction and many values lie half-way between two levels.

    Args:
        pixels (`torch.Tensor` of shape `(height, width, 3)`): uint8.
        boxes (`Sequence[tuple[int, int, int, int]]`): x1, y1, x2, y2 in pixels, inside the image, not empty.
        size (`int`): side of the crops in pixels.
        exact (`bool`): resize with Pillow, bit for bit.

    Returns:
        `torch.Tensor` of shape `(len(boxes), 3, size, size)`: uint8, in channels-last memory, as the kernel makes them.
    """
    if not boxes:
        return torch.empty(0, 3, size, size, dtype=torch.uint8)
    if exact:
        image = Image.fromarray(pixels.numpy())
        # Not `resize(box=...)`: that one reads across the edges of the box.
        crops = [np.array(image.crop(box).resize((size, size), Image.Resampling.BILINEAR)) for box in boxes]
        return torch.from_numpy(np.stack(crops)).permute(0, 3, 1, 2)
    images = pixels[None].permute(0, 3, 1, 2)  # channels last to torch's eyes, which `[None]` after `permute` is not
    return torch.cat(
        [
            F.interpolate(
                images[:, :, y1:y2, x1:x2], (size, size), mode="bilinear", align_corners=False, antialias=True
            )
            for x1, y1, x2, y2 in boxes
        ]
    )


def quarter_turn(images: torch.Tensor, turns: torch.Tensor) -> torch.Tensor:
    """Turns each image counter-clockwise as displayed: `torch.rot90(image, turns, dims=(-2, -1))`, for all at once.

    Args:
        images (`torch.Tensor` of shape `(views, channels, size, size)`): square images of a type that numpy knows.
        turns (`torch.Tensor` of shape `(views,)`): int64, quarter turns 0 to 3, on the same device.

    Returns:
        `torch.Tensor` of shape `(views, channels, size, size)`: contiguous.

    Raises:
        ValueError: images that are not square.
    """
    height, width = images.shape[-2:]
    if height != width:
        raise ValueError(f"images must be square to be turned, got {height} x {width}")
    if images.device.type == "cpu":
        turned = empty_batch(images.shape, images.dtype, images.device)
        for target, image, turn in zip(turned.numpy(), images.numpy(), turns.tolist(), strict=True):
            # `np.rot90(image, turn, axes=(1, 2))`, of which the checks take as long as the copy
            turned_rows = image.swapaxes(1, 2) if turn % 2 else image
            target[:] = turned_rows[:, :: -1 if turn in (1, 2) else 1, :: -1 if turn in (2, 3) else 1]
        return turned
    return _gather_turned(images, turns)


def _gather_turned(images: torch.Tensor, turns: torch.Tensor) -> torch.Tensor:
    """`quarter_turn` without a loop over views and without waiting for the device; a third as fast on a CPU."""
    size = images.shape[-1]
    raster = torch.arange(size * size, device=images.device).view(size, size)
    sources = torch.stack([raster.rot90(turn).flatten() for turn in range(4)])
    index = sources[turns][:, None].expand(-1, images.shape[1], -1)
    return images.flatten(2).gather(2, index).view(images.shape)
