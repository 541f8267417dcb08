"""The views of GTSA: large and small crops that overlap, each turned by a random quarter."""

import random
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image

from hf_geossl.views.base import Batch, Photometrics, Views, describe_crops, percent
from hf_geossl.views.channels import ChannelJitter
from hf_geossl.views.color import ColorRecipe
from hf_geossl.views.crops import (
    Box,
    cut_crops,
    draw_crop,
    intersect,
    make_random,
    quarter_turn,
    read_pixels,
    shared_area,
    slide_onto,
)
from hf_geossl.views.image_settings import IMAGE_KEYWORDS, ImageSettings
from hf_geossl.views.photometric import Normalization
from hf_geossl.views.resizing import prepare
from hf_geossl.views.settings import Settings, area_share, group, setting
from hf_geossl.views.transformation_path import TransformationPath

OVERLAP_TRIES = 100
GLOBAL_OVERLAP, LOCAL_OVERLAP = 2, 1  # hundredths of the image's area


@dataclass(frozen=True)
class GTSACrops(Settings):
    """Which crops GTSA takes of an image; they must be large enough to overlap as they have to."""

    global_size: int = setting(224, "Side of the global views in pixels.", low=1)
    local_size: int = setting(96, "Side of the local views in pixels.", low=1)
    num_global: int = setting(2, "How many global views.", low=1)
    num_local: int = setting(8, "How many local views.", low=0)
    global_scale: tuple[float, float] = area_share((0.3, 1.0), "a global view")
    local_scale: tuple[float, float] = area_share((0.1, 0.3), "a local view")
    aspect_ratio: tuple[float, float] = setting(
        (3 / 4, 4 / 3), "Smallest and largest width / height of a crop.", above=0
    )
    exact_resize: bool = setting(
        False, "Resize with Pillow, bit for bit, instead of torch's kernel, which is 4 times as fast."
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, overlap in (("global_scale", GLOBAL_OVERLAP), ("local_scale", LOCAL_OVERLAP)):
            scale = getattr(self, name)
            if scale[1] <= overlap / 100:
                raise ValueError(
                    f"{name} must reach above {overlap / 100}, the share of the image in which crops have to overlap, "
                    f"got {scale}"
                )


@dataclass(frozen=True, init=False)
class GTSAViews(Views):
    """Multi-crop views for GTSA with their geometry.

    Global crops overlap each other in more than 2 % of the image's area, local crops overlap every global crop in more
    than 1 %. All views get the same colour recipe and a random quarter turn; none is mirrored.

    Args:
        crops ([`GTSACrops`]): `global_size`, `local_size`, `num_global`, `num_local`, `global_scale`, `local_scale`,
            `aspect_ratio`, `exact_resize`.
        color ([`ColorRecipe`]): `brightness`, `contrast`, `saturation`, `hue`, `color_jitter_probability`,
            `grayscale_probability`, `blur_probability`, `blur_sigma`.
        path ([`TransformationPath`]): `reconstruction` is the transformation that the second global view (of one, the
            first) goes through once more, for a model that reconstructs the images between, of which `num_intermediate`
            are rendered; None by default.
        normalization ([`Normalization`]): `mean` and `std` of each channel.
        image ([`ImageSettings`]): `channels`, `channel_names`, `dtype`, `value_range`; RGB of 8 bits by default.
        channel_jitter ([`ChannelJitter`]): `channel_drop_probability`, `noise_probability`, `noise_sigma`, for channels
            that are not red, green and blue.

    Raises:
        TypeError, ValueError: An unknown setting, or one out of its range.

    Source: GTSA (arXiv 2304.08014), as the authors' code draws its views.
    """

    crops: GTSACrops = group(GTSACrops())
    color: ColorRecipe = group(ColorRecipe())
    path: TransformationPath = group(
        TransformationPath(None), {"reconstruction": "transformation", "num_intermediate": "num_intermediate"}
    )
    normalization: Normalization = group(Normalization())
    image: ImageSettings = group(ImageSettings(), IMAGE_KEYWORDS)
    channel_jitter: ChannelJitter = group(ChannelJitter())

    def views(self, image: Image.Image | np.ndarray | torch.Tensor, seed: int | None = None) -> Batch:
        """Crops of one image and the record of their geometry, see `Views.views`.

        Returns:
            `dict[str, torch.Tensor]`: `global_crops` (`(num_global, channels, global_size, global_size)`),
            `local_crops` (`(num_local, channels, local_size, local_size)`), and `crop_boxes`, `flips` (all False) and
            `quarter_turns` of all views, globals first.
        """
        pixels = read_pixels(image, self.image_format)
        height, width, _ = pixels.shape
        source = prepare(pixels)
        rng, crops = make_random(seed), self.crops
        boxes = self.draw_boxes(rng, width, height)
        turns = [int(rng.random() * 4) for _ in boxes]
        return {
            "global_crops": cut_crops(source, boxes[: crops.num_global], crops.global_size, exact=crops.exact_resize),
            "local_crops": cut_crops(source, boxes[crops.num_global :], crops.local_size, exact=crops.exact_resize),
            "crop_boxes": torch.tensor(boxes, dtype=torch.float32),
            "flips": torch.zeros(len(boxes), dtype=torch.bool),
            "quarter_turns": torch.tensor(turns, dtype=torch.int64),
        }

    def draw_boxes(self, rng: random.Random, width: int, height: int) -> list[Box]:
        """Draws the crops of an image, globals first; one that overlaps too little is drawn again.

        The first global crop is free. A further one must share more than 2 % of the image with the part that all
        globals before it share, a local one more than 1 % with every global. (For two globals that is the original's
        condition. For more, the common part leaves a place for local crops.) After 100 tries the last draw is moved to
        where it overlaps most; if that is not enough either (strips thinner than any crop), the crop becomes the first
        global, or for a local the part that all globals share. So every global overlaps every other view.

        Source: GTSA's crop sampler; the fall-back is ours (the original draws without limit).
        """
        crops, hundredth = self.crops, int(0.01 * width * height)

        def draw(scale: tuple[float, float], others: list[Box], required: int, common: Box, last_resort: Box) -> Box:
            for _ in range(OVERLAP_TRIES):
                box = draw_crop(rng, width, height, scale, crops.aspect_ratio)
                if all(shared_area(box, other) > required for other in others):
                    return box
            box = slide_onto(box, common)
            return box if shared_area(box, common) > required else last_resort

        first = common = draw_crop(rng, width, height, crops.global_scale, crops.aspect_ratio)
        boxes = [first]
        for _ in range(1, crops.num_global):
            boxes.append(draw(crops.global_scale, [common], GLOBAL_OVERLAP * hundredth, common, first))
            common = intersect(common, boxes[-1])
        large = list(boxes)
        for _ in range(crops.num_local):
            boxes.append(draw(crops.local_scale, large, LOCAL_OVERLAP * hundredth, common, common))
        return boxes

    def describe(self) -> str:
        """The views in one line of words, for a model card."""
        crops, color = self.crops, self.color
        parts = [f"{crops.num_global} global {describe_crops(crops.global_size, crops.global_scale)}"]
        if crops.num_local:
            parts.append(f"{crops.num_local} local {describe_crops(crops.local_size, crops.local_scale)}")
        parts.append("each turned by a random quarter")
        colors = [
            f"colour jitter {color.brightness:g}/{color.contrast:g}/{color.saturation:g}/{color.hue:g} "
            f"in {percent(color.color_jitter_probability)}",
            f"grey in {percent(color.grayscale_probability)}",
        ]
        parts += self.describe_photometrics(color, colors)
        parts.append(
            f"blur in {percent(color.blur_probability)} (sigma {color.blur_sigma[0]:g} to {color.blur_sigma[1]:g})"
        )
        if self.path.transformation is not None:
            parts.append(
                f"the {'second' if crops.num_global > 1 else 'first'} global once more, {self.path.describe(self.image_format.is_rgb)}"
            )
        return ", ".join(parts)

    def main_crops(self, batch: Batch) -> torch.Tensor:
        """The first global crops `(batch, channels, global_size, global_size)`, not turned yet."""
        return batch["global_crops"][:, 0]

    def augment(self, batch: Batch, generator: torch.Generator | None = None) -> dict[str, torch.Tensor | None]:
        """Turns, colours and normalises the crops of a batch on the device that holds them, see `Views.augment`.

        Returns:
            `dict`: the arguments of `GTSAForPreTraining.forward`, images in float32; `local_pixel_values` is None
            without local views. With `reconstruction` also `transformed_pixel_values` (the second global view, or the
            only one, transformed) and `intermediate_pixel_values` (the points at k / (num_intermediate + 1) of the path
            to it).
        """
        views = batch["crop_boxes"].shape[:2]
        rendered = self._render(batch, self.draw_photometrics(self.color, views.numel(), generator))
        source = rendered["global_pixel_values"]
        if self.path.transformation is not None and source is not None:
            # drawn last, so that all else is equal without it
            source = source[:, min(1, self.crops.num_global - 1)]
            transformed, between = self.transform(self.path, source, generator)
            rendered |= {"transformed_pixel_values": transformed, "intermediate_pixel_values": between}
        return rendered

    def normalize(self, batch: Batch) -> dict[str, torch.Tensor | None]:
        """`augment` without change of colour: the crops turned and normalised, nothing random, nothing transformed."""
        return self._render(batch, None)

    def _render(self, batch: Batch, parameters: Photometrics | None) -> dict[str, torch.Tensor | None]:
        turns, num_global = batch["quarter_turns"], batch["global_crops"].shape[1]
        rendered: dict[str, torch.Tensor | None] = {}
        for kind, views in (("global", slice(0, num_global)), ("local", slice(num_global, None))):
            crops, chosen = batch[f"{kind}_crops"], parameters
            if parameters is not None:
                rows = torch.arange(turns.numel(), device=parameters.jitter.device).view(turns.shape)
                chosen = parameters.select(rows[:, views].flatten())
            images = quarter_turn(crops.flatten(0, 1), turns[:, views].flatten())  # (B * V, C, S, S)
            rendered[f"{kind}_pixel_values"] = (
                self.render(images, chosen, self.color).view(crops.shape) if crops.shape[1] else None
            )
        return rendered | {"crop_boxes": batch["crop_boxes"], "quarter_turns": turns}
