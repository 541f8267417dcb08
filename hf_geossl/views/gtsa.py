"""The views of GTSA: large and small crops that overlap, each turned by a random quarter."""

import random
from typing import Any

import numpy as np
import torch
from PIL import Image

from hf_geossl.views.base import (
    Batch,
    Box,
    Views,
    check_crops_and_normalization,
    cut_crops,
    draw_crop,
    intersect,
    make_random,
    quarter_turn,
    read_pixels,
    shared_area,
    slide_onto,
)
from hf_geossl.views.color import ColorParameters, ColorRecipe, draw_color_parameters
from hf_geossl.views.photometric import IMAGENET_MEAN, IMAGENET_STD, render_color
from hf_geossl.views.transformation_path import TransformationPath

OVERLAP_TRIES = 100
GLOBAL_OVERLAP, LOCAL_OVERLAP = 2, 1  # hundredths of the image's area


class GTSAViews(Views):
    """Multi-crop views for GTSA with their geometry.

    Global crops overlap each other in more than 2 % of the image's area, local crops overlap every global crop in more
    than 1 %. All views get the same colour recipe and a random quarter turn; none is mirrored.

    Args:
        global_size, local_size (`int`): side of the global and local views in pixels.
        num_global (`int`): how many global views, at least 1.
        num_local (`int`): how many local views, 0 or more.
        global_scale, local_scale (`tuple[float, float]`): smallest and largest share of the image's area.
        aspect_ratio (`tuple[float, float]`): smallest and largest width / height of a crop.
        brightness, contrast, saturation, hue, color_jitter_probability, grayscale_probability, blur_probability,
            blur_sigma: as in `ColorRecipe`.
        mean, std (`tuple[float, float, float]`): normalisation of red, green and blue, for images in [0, 1].
        exact_color (`bool`): render colours by torchvision's operations one by one instead of one affine map a view.
        exact_resize (`bool`): resize with Pillow, bit for bit, instead of torch's faster kernel.
        reconstruction (`str`, *optional*): the transformation, see `TransformationPath`, that the second global view (of
            one, the first) goes through once more, for a model that reconstructs the images on its way; none by default.
        num_intermediate (`int`): how many images on the way are rendered, 0 or more.

    Raises:
        ValueError: sizes, counts, scales, ratios, normalisation or colour settings out of range.

    Source: GTSA (arXiv 2304.08014), as the authors' code draws its views.
    """

    def __init__(
        self,
        global_size: int = 224,
        local_size: int = 96,
        num_global: int = 2,
        num_local: int = 8,
        global_scale: tuple[float, float] = (0.3, 1.0),
        local_scale: tuple[float, float] = (0.1, 0.3),
        aspect_ratio: tuple[float, float] = (3 / 4, 4 / 3),
        *,
        brightness: float = 0.8,
        contrast: float = 0.8,
        saturation: float = 0.8,
        hue: float = 0.2,
        color_jitter_probability: float = 0.8,
        grayscale_probability: float = 0.2,
        blur_probability: float = 0.2,
        blur_sigma: tuple[float, float] = (0.1, 2.0),
        mean: tuple[float, float, float] = IMAGENET_MEAN,
        std: tuple[float, float, float] = IMAGENET_STD,
        exact_color: bool = False,
        exact_resize: bool = False,
        reconstruction: str | None = None,
        num_intermediate: int = 2,
    ) -> None:
        for name, size in (("global_size", global_size), ("local_size", local_size)):
            if size < 1:
                raise ValueError(f"{name} must be at least 1 pixel, got {size}")
        if num_global < 1:
            raise ValueError(f"num_global must be at least 1, got {num_global}")
        if num_local < 0:
            raise ValueError(f"num_local must be 0 or more, got {num_local}")
        scales = {"global_scale": global_scale, "local_scale": local_scale}
        check_crops_and_normalization(scales, aspect_ratio, mean, std)
        for (name, scale), overlap in zip(scales.items(), (GLOBAL_OVERLAP, LOCAL_OVERLAP), strict=True):
            if scale[1] <= overlap / 100:
                raise ValueError(
                    f"{name} must reach above {overlap / 100}, the share of the image in which crops have to overlap, "
                    f"got {scale}"
                )
        self.global_size, self.local_size = global_size, local_size
        self.num_global, self.num_local = num_global, num_local
        self.global_scale, self.local_scale = global_scale, local_scale
        self.aspect_ratio = aspect_ratio
        self.color_recipe = ColorRecipe(
            brightness=brightness,
            contrast=contrast,
            saturation=saturation,
            hue=hue,
            color_jitter_probability=color_jitter_probability,
            grayscale_probability=grayscale_probability,
            blur_probability=blur_probability,
            blur_sigma=blur_sigma,
        )
        self.mean, self.std = mean, std
        self.exact_color, self.exact_resize = exact_color, exact_resize
        self.reconstruction, self.num_intermediate = reconstruction, num_intermediate
        self.path = None if reconstruction is None else TransformationPath(reconstruction, num_intermediate)

    def views(self, image: Image.Image | np.ndarray | torch.Tensor, seed: int | None = None) -> Batch:
        """Crops of one image and the record of their geometry.

        Args:
            image (`PIL.Image.Image`, `numpy.ndarray` or `torch.Tensor`): see `read_pixels`; any size from one pixel.
            seed (`int`, *optional*): the result is a function of image and seed alone; if absent the seed is drawn from
                torch's global generator.

        Returns:
            `dict[str, torch.Tensor]`: `global_crops` (`(num_global, 3, global_size, global_size)`, uint8),
            `local_crops` (`(num_local, 3, local_size, local_size)`, uint8), and for all views, globals first,
            `crop_boxes` (`(views, 4)`, float32, x1, y1, x2, y2 in pixels of the source image, integers),
            `flips` (`(views,)`, bool, all False) and `quarter_turns` (`(views,)`, int64, counter-clockwise, 0 to 3,
            still to be done by `augment`).

        Raises:
            BrokenImageError, TypeError: as `read_pixels`.
        """
        pixels = read_pixels(image)
        height, width, _ = pixels.shape
        rng = make_random(seed)
        boxes = self.draw_boxes(rng, width, height)
        turns = [int(rng.random() * 4) for _ in boxes]
        return {
            "global_crops": cut_crops(pixels, boxes[: self.num_global], self.global_size, exact=self.exact_resize),
            "local_crops": cut_crops(pixels, boxes[self.num_global :], self.local_size, exact=self.exact_resize),
            "crop_boxes": torch.tensor(boxes, dtype=torch.float32),
            "flips": torch.zeros(len(boxes), dtype=torch.bool),
            "quarter_turns": torch.tensor(turns, dtype=torch.int64),
        }

    def draw_boxes(self, rng: random.Random, width: int, height: int) -> list[Box]:
        """Draws the crops of one image; a crop that overlaps too little is drawn again.

        The first global crop is free. A further one must share more than 2 % of the image with the part that all
        globals before it share, a local one more than 1 % with every global. (For two globals that is the original's
        condition. For more, the common part leaves a place for local crops.) After 100 tries the last draw is moved to
        where it overlaps most; if that is not enough either (strips thinner than any crop), the crop becomes the first
        global, or for a local the part that all globals share. So every global overlaps every other view.

        Args:
            rng (`random.Random`): source of the numbers.
            width, height (`int`): of the image in pixels.

        Returns:
            `list[tuple[int, int, int, int]]`: x1, y1, x2, y2 in pixels, globals first.

        Source: GTSA's crop sampler; the fall-back is ours (the original draws without limit).
        """
        hundredth = int(0.01 * width * height)

        def draw(scale: tuple[float, float], others: list[Box], required: int, common: Box, last_resort: Box) -> Box:
            for _ in range(OVERLAP_TRIES):
                box = draw_crop(rng, width, height, scale, self.aspect_ratio)
                if all(shared_area(box, other) > required for other in others):
                    return box
            box = slide_onto(box, common)
            return box if shared_area(box, common) > required else last_resort

        first = common = draw_crop(rng, width, height, self.global_scale, self.aspect_ratio)
        boxes = [first]
        for _ in range(1, self.num_global):
            boxes.append(draw(self.global_scale, [common], GLOBAL_OVERLAP * hundredth, common, first))
            common = intersect(common, boxes[-1])
        large = list(boxes)
        for _ in range(self.num_local):
            boxes.append(draw(self.local_scale, large, LOCAL_OVERLAP * hundredth, common, common))
        return boxes

    def describe(self) -> str:
        """The views in one line, for a model card.

        Returns:
            `str`: counts, sizes, shares of the image and colour settings.
        """

        def crops(count: int, kind: str, size: int, scale: tuple[float, float]) -> str:
            return f"{count} {kind} of {size} x {size} pixels from {scale[0]:.0%} to {scale[1]:.0%} of the image"

        color = self.color_recipe
        parts = [crops(self.num_global, "global", self.global_size, self.global_scale)]
        if self.num_local:
            parts.append(crops(self.num_local, "local", self.local_size, self.local_scale))
        parts += [
            "each turned by a random quarter",
            f"colour jitter {color.brightness:g}/{color.contrast:g}/{color.saturation:g}/{color.hue:g} "
            f"in {color.color_jitter_probability:.0%}",
            f"grey in {color.grayscale_probability:.0%}",
            f"blur in {color.blur_probability:.0%} (sigma {color.blur_sigma[0]:g} to {color.blur_sigma[1]:g})",
        ]
        if self.path is not None:
            parts.append(f"the {'second' if self.num_global > 1 else 'first'} global once more, {self.path.describe()}")
        return ", ".join(parts)

    def main_crops(self, batch: Batch) -> torch.Tensor:
        """The first global crops of a batch, not turned yet.

        Args:
            batch (`dict[str, torch.Tensor]`): what `collate` returned.

        Returns:
            `torch.Tensor` of shape `(batch, 3, global_size, global_size)`: uint8.
        """
        return batch["global_crops"][:, 0]

    def augment(self, batch: Batch, generator: torch.Generator | None = None) -> dict[str, torch.Tensor | None]:
        """Turns, colours and normalises the crops of a batch on the device that holds them.

        Args:
            batch (`dict[str, torch.Tensor]`): what `collate` returned; it is left as it is.
            generator (`torch.Generator`, *optional*): source of all random numbers, on any device; torch's global CPU
                generator if absent. On an accelerator it makes the host wait for the number of blurred views.

        Returns:
            `dict`: the arguments of `GTSAForPreTraining.forward`: `global_pixel_values`
            (`(batch, num_global, 3, global_size, global_size)`, float32), `local_pixel_values`
            (`(batch, num_local, 3, local_size, local_size)`, float32, or None without local views), and `crop_boxes` and
            `quarter_turns` as they came. With `reconstruction` also `transformed_pixel_values` (`(batch, 3, global_size,
            global_size)`, float32: the second global view, or the only one, transformed) and `intermediate_pixel_values`
            (`(batch, num_intermediate, 3, global_size, global_size)`, float32: the points at k / (num_intermediate + 1) of
            the way there).
        """
        views = batch["crop_boxes"].shape[:2]
        rendered = self._render(batch, draw_color_parameters(self.color_recipe, views.numel(), generator))
        if self.path is not None:  # drawn last, so that all else is equal without it
            global_views: Any = rendered["global_pixel_values"]
            source = global_views[:, min(1, self.num_global - 1)]
            ends = self.path.draw(len(source), generator)
            transformed, between = self.path.render(source, ends, self.mean, self.std)
            rendered |= {"transformed_pixel_values": transformed, "intermediate_pixel_values": between}
        return rendered

    def normalize(self, batch: Batch) -> dict[str, torch.Tensor | None]:
        """`augment` without change of colour: the crops turned and normalised, nothing random, nothing transformed.

        Args:
            batch (`dict[str, torch.Tensor]`): what `collate` returned.

        Returns:
            `dict`: as `augment`.
        """
        return self._render(batch, None)

    def _render(self, batch: Batch, parameters: ColorParameters | None) -> dict[str, torch.Tensor | None]:
        first = batch["global_crops"].shape[1]
        return {
            "global_pixel_values": self._render_group(batch, "global_crops", slice(0, first), parameters),
            "local_pixel_values": self._render_group(batch, "local_crops", slice(first, None), parameters)
            if batch["local_crops"].shape[1]
            else None,
            "crop_boxes": batch["crop_boxes"],
            "quarter_turns": batch["quarter_turns"],
        }

    @torch.no_grad()
    def _render_group(self, batch: Batch, key: str, views: slice, parameters: ColorParameters | None) -> torch.Tensor:
        crops, turns = batch[key], batch["quarter_turns"]
        if parameters is not None:
            rows = torch.arange(turns.numel(), device=parameters.order.device).view(turns.shape)
            parameters = parameters.select(rows[:, views].flatten())
        images = quarter_turn(crops.flatten(0, 1), turns[:, views].flatten())  # (B, V, 3, S, S) -> (B * V, 3, S, S)
        with torch.autocast(images.device.type, enabled=False):
            rendered = render_color(
                images,
                parameters,
                recipe=self.color_recipe,
                mean=self.mean,
                std=self.std,
                exact=self.exact_color,
            )
        return rendered.view(crops.shape)
