"""The views of EquiCoherent: those of a host method, the second global one transformed, and the points between."""

from collections.abc import Mapping
from dataclasses import Field, dataclass, replace
from typing import Any

import numpy as np
import torch
from PIL import Image

from hf_geossl.views.base import Batch, Views, describe_crops, percent
from hf_geossl.views.channels import ChannelJitter
from hf_geossl.views.color import ColorJitter, ColorRecipe
from hf_geossl.views.crops import cut_crops, draw_crop, make_random, read_pixels
from hf_geossl.views.image_settings import IMAGE_KEYWORDS, ImageSettings
from hf_geossl.views.masks import MASK_KINDS, draw_block_masks
from hf_geossl.views.photometric import Normalization
from hf_geossl.views.resizing import prepare
from hf_geossl.views.settings import Settings, area_share, flat_fields, group, probability, setting
from hf_geossl.views.transformation_path import TransformationPath


@dataclass(frozen=True)
class HostViews:
    """The settings that a host method decides where they are not given; the names are those of the flat keywords."""

    num_local: int
    global_scale: tuple[float, float]
    local_scale: tuple[float, float] | None
    brightness: float = 0.4
    contrast: float = 0.4
    saturation: float = 0.2
    hue: float = 0.1
    blur_probability: tuple[float, float, float] = (1.0, 0.1, 0.5)
    solarize_probability: float = 0.2


HOSTS: Mapping[str, HostViews] = {
    "ibot": HostViews(10, (0.25, 1.0), (0.05, 0.25)),
    "dinov2": HostViews(8, (0.32, 1.0), (0.05, 0.32)),
    "dino": HostViews(8, (0.4, 1.0), (0.05, 0.4)),
    "vicreg": HostViews(0, (0.08, 1.0), None),
    "simclr": HostViews(0, (0.08, 1.0), None, 0.8, 0.8, 0.8, 0.2, (0.5, 0.5, 0.5), 0.0),
}


@dataclass(frozen=True)
class EquiCoherentCrops(Settings):
    """Which crops EquiCoherent takes of an image, in whole patches; the defaults are those of the host iBOT."""

    patch_size: int = setting(16, "Side of the model's patches in pixels; the sizes are multiples of it.", low=1)
    global_size: int = setting(224, "Side of the two global views in pixels.")
    local_size: int = setting(96, "Side of the local views in pixels.")
    num_local: int = setting(10, "How many local views; VICReg and SimCLR take none.", low=0)
    global_scale: tuple[float, float] = area_share((0.25, 1.0), "a global view")
    local_scale: tuple[float, float] | None = area_share((0.05, 0.25), "a local view")
    aspect_ratio: tuple[float, float] = setting(
        (3 / 4, 4 / 3), "Smallest and largest width / height of a crop.", above=0
    )
    flip_probability: float = probability(0.5, "How often a view is mirrored left to right, each by itself.")
    exact_resize: bool = setting(
        False, "Resize with Pillow, bit for bit, instead of torch's kernel, which is 4 times as fast."
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("global_size", "local_size") if self.num_local else ("global_size",):
            size = getattr(self, name)
            if size < 1 or size % self.patch_size:
                raise ValueError(f"{name} must be a multiple of patch_size = {self.patch_size} pixels, got {size}")


@dataclass(frozen=True)
class EquiCoherentColor(ColorJitter):
    """How the colours of EquiCoherent's views change; the defaults are those of the host iBOT."""

    brightness: float = setting(0.4, "The factor of brightness is uniform in [max(0, 1 - x), 1 + x].", low=0)
    contrast: float = setting(0.4, "The factor of contrast is uniform in [max(0, 1 - x), 1 + x].", low=0)
    saturation: float = setting(0.2, "The factor of saturation is uniform in [max(0, 1 - x), 1 + x].", low=0)
    hue: float = setting(
        0.1, "The hue turns by a number uniform in [-x, x], in full turns of the colour circle.", low=0, high=0.5
    )
    blur_probability: tuple[float, float, float] = setting(
        (1.0, 0.1, 0.5), "How often the first global, the second global and a local view are blurred."
    )
    solarize_probability: float = probability(
        0.2, "How often the bright values of the second global view are inverted."
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(self.blur_probability) != 3:
            raise ValueError(
                "blur_probability must hold 3 numbers (first global, second global and local views), "
                f"got {self.blur_probability}"
            )
        self.recipes()  # checks each probability

    def recipes(self) -> tuple[ColorRecipe, ColorRecipe, ColorRecipe]:
        """The recipes of the first global, the second global and the local views."""
        first, second, local = (self.recipe(blur_probability=blur) for blur in self.blur_probability)
        return first, replace(second, solarize_probability=self.solarize_probability), local


@dataclass(frozen=True, init=False)
class EquiCoherentViews(Views):
    """Views for EquiCoherent: a host method's own, of which the second global one is transformed along a path.

    All crops of an image are drawn independently of each other and mirrored half of the time. The transformation comes
    after the host's colours; its numbers are drawn last, so that views and masks are equal whatever it is.

    Args:
        host (`str`): "ibot", "dinov2", "dino", "vicreg" or "simclr"; flat settings that are None are the host's own.
        path ([`TransformationPath`]): `transformation` of the second global view (None leaves the host as it is),
            `num_intermediate`, `padding_mode`, `max_rotation`, `max_translation`, `path_brightness`, `path_contrast`,
            `path_saturation`, `path_hue`, `path_blur_sigma`, `transformation_probability`.
        crops ([`EquiCoherentCrops`]): `patch_size`, `global_size`, `local_size`, `num_local`, `global_scale`,
            `local_scale`, `aspect_ratio`, `flip_probability`, `exact_resize`.
        color ([`EquiCoherentColor`]): `brightness`, `contrast`, `saturation`, `hue`, `color_jitter_probability`,
            `grayscale_probability`, `blur_probability` (of first global, second global and local views), `blur_sigma`,
            `solarize_probability` (of the second global view).
        normalization ([`Normalization`]): `mean` and `std` of each channel.
        image ([`ImageSettings`]): `channels`, `channel_names`, `dtype`, `value_range`; RGB of 8 bits by default.
        channel_jitter ([`ChannelJitter`]): `channel_drop_probability`, `noise_probability`, `noise_sigma`, for channels
            that are not red, green and blue.

    Raises:
        TypeError, ValueError: An unknown setting, or one out of its range.

    Source: EquiCoherent (arXiv 2503.18753) with the views of iBOT (arXiv 2111.07832), DINOv2 (arXiv 2304.07193), DINO
    (arXiv 2104.14294), VICReg (arXiv 2105.04906) and SimCLR (arXiv 2002.05709).
    """

    host: str = setting("ibot", "The method whose views they are.", words=tuple(HOSTS))
    path: TransformationPath = group(TransformationPath())
    crops: EquiCoherentCrops = group(EquiCoherentCrops())
    color: EquiCoherentColor = group(EquiCoherentColor())
    normalization: Normalization = group(Normalization())
    image: ImageSettings = group(ImageSettings(), IMAGE_KEYWORDS)
    channel_jitter: ChannelJitter = group(ChannelJitter())

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.crops.num_local and (HOSTS[self.host].local_scale is None or self.crops.local_scale is None):
            raise ValueError(
                f"num_local must be 0 for the host {self.host!r}, which takes no local views, got {self.crops.num_local}"
            )

    @classmethod
    def flat_settings(cls) -> dict[str, Field[Any]]:
        """As `Views.flat_settings`; the default of what the host decides is None."""
        return flat_fields(cls, optional=HostViews.__annotations__)

    @classmethod
    def implied_settings(cls, given: Mapping[str, object]) -> dict[str, object]:
        """The settings of the host; none of an unknown host."""
        host = HOSTS.get(str(given.get("host", "ibot")))
        return {} if host is None else dict(vars(host))

    def views(self, image: Image.Image | np.ndarray | torch.Tensor, seed: int | None = None) -> Batch:
        """Crops of one image and the record of their geometry, see `Views.views`.

        Returns:
            `dict[str, torch.Tensor]`: `global_crops` (`(2, channels, global_size, global_size)`) and `local_crops`
            (`(num_local, channels, local_size, local_size)`), mirrored already, and `crop_boxes`, `flips` and
            `quarter_turns` (all 0) of all views, globals first.
        """
        pixels = read_pixels(image, self.image_format)
        height, width, _ = pixels.shape
        source = prepare(pixels)
        rng, settings = make_random(seed), self.crops
        scales = [settings.global_scale] * 2 + [settings.local_scale or settings.global_scale] * settings.num_local
        boxes = [draw_crop(rng, width, height, scale, settings.aspect_ratio) for scale in scales]
        flips = torch.tensor([rng.random() < settings.flip_probability for _ in boxes])
        crops = {
            "global_crops": cut_crops(source, boxes[:2], settings.global_size, exact=settings.exact_resize),
            "local_crops": cut_crops(source, boxes[2:], settings.local_size, exact=settings.exact_resize),
        }
        for kind, mirrored in zip(crops.values(), (flips[:2], flips[2:]), strict=True):
            kind[mirrored] = kind[mirrored].flip(-1)
        return {
            **crops,
            "crop_boxes": torch.tensor(boxes, dtype=torch.float32),
            "flips": flips,
            "quarter_turns": torch.zeros(len(boxes), dtype=torch.int64),
        }

    def main_crops(self, batch: Batch) -> torch.Tensor:
        """The first global crops `(batch, channels, global_size, global_size)`, which are never transformed."""
        return batch["global_crops"][:, 0]

    def describe(self) -> str:
        """The views in one line of words, for a model card."""
        crops, color = self.crops, self.color
        parts = [f"views of {self.host}: 2 global {describe_crops(crops.global_size, crops.global_scale)}"]
        blurred, kinds = [*color.blur_probability[:2]], "first/second global"
        if crops.num_local and crops.local_scale is not None:
            parts.append(f"{crops.num_local} local {describe_crops(crops.local_size, crops.local_scale)}")
            blurred, kinds = [*color.blur_probability], f"{kinds}/local"
        parts += [
            f"width / height from {crops.aspect_ratio[0]:g} to {crops.aspect_ratio[1]:g}",
            f"patches of {crops.patch_size} pixels",
            f"mirrored in {percent(crops.flip_probability)}",
        ]
        colors = [
            f"colour jitter {color.brightness:g}/{color.contrast:g}/{color.saturation:g}/{color.hue:g} "
            f"in {percent(color.color_jitter_probability)}",
            f"grey in {percent(color.grayscale_probability)}",
        ]
        parts += self.describe_photometrics(color, colors)
        parts.append(
            f"blur in {'/'.join(map(percent, blurred))} ({kinds}, sigma {color.blur_sigma[0]:g} to "
            f"{color.blur_sigma[1]:g})"
        )
        if self.image_format.is_rgb:
            parts.append(f"second global solarised in {percent(color.solarize_probability)}")
        path = self.path.describe(self.image_format.is_rgb)
        parts.append(path if self.path.transformation is None else f"then {path}")
        if self.normalization != Normalization():
            parts.append(self.normalization.describe())
        if crops.exact_resize:
            parts.append("resized by Pillow")
        return ", ".join(parts)

    def augment(self, batch: Batch, generator: torch.Generator | None = None) -> dict[str, torch.Tensor | None]:
        """Colours, normalises, masks and transforms the crops of a batch on their device, see `Views.augment`.

        Returns:
            `dict`: the arguments of `EquiCoherentForPreTraining.forward`, images in float32: `global_pixel_values` (the
            second transformed), `local_pixel_values` (None without local views), `intermediate_pixel_values` (the
            points at k / (num_intermediate + 1) of the path to the second global view; None without any) and
            `bool_masked_pos` (of the patches in raster order; None if the host does not mask) with `masked_patches`, the
            indices of those masked.
        """
        rendered = self.render_path(batch, generator)
        del rendered["source_pixel_values"]
        return rendered

    def render_path(self, batch: Batch, generator: torch.Generator | None = None) -> dict[str, torch.Tensor | None]:
        """`augment` for pictures: with `source_pixel_values` too, the second global view before it was transformed."""
        return self._render(batch, generator, random=True)

    def normalize(self, batch: Batch) -> dict[str, torch.Tensor | None]:
        """`augment` without change of colour, transformation or masked patches; `intermediate_pixel_values` is None."""
        rendered = self._render(batch, None, random=False)
        del rendered["source_pixel_values"]
        return rendered

    @torch.no_grad()
    def _render(
        self, batch: Batch, generator: torch.Generator | None, *, random: bool
    ) -> dict[str, torch.Tensor | None]:
        def render(crops: torch.Tensor, recipe: ColorRecipe) -> torch.Tensor:
            images = crops.flatten(0, -4)  # (B, C, S, S) as it is, (B, L, C, s, s) -> (B * L, C, s, s)
            parameters = self.draw_photometrics(recipe, len(images), generator) if random else None
            return self.render(images, parameters, recipe).view(crops.shape)

        *global_recipes, local_recipe = self.color.recipes()
        first, source = (render(batch["global_crops"][:, i], recipe) for i, recipe in enumerate(global_recipes))
        local = render(batch["local_crops"], local_recipe) if self.crops.num_local else None
        masks = masked = None
        if self.host in MASK_KINDS:
            grid = self.crops.global_size // self.crops.patch_size
            masks = torch.zeros(len(first), 2, grid * grid, dtype=torch.bool)
            if random:
                masks = draw_block_masks(self.host, 2 * len(first), grid, grid, generator).view(masks.shape)
            masked = masks.flatten().nonzero().flatten().to(first.device, non_blocking=True)  # counted on the host
            masks = masks.to(first.device, non_blocking=True)
        second, between = source, None
        if random and self.path.transformation is not None:  # drawn last, so that all else is equal without it
            second, between = self.transform(self.path, source, generator)
        return {
            "global_pixel_values": torch.stack([first, second], dim=1),
            "local_pixel_values": local,
            "intermediate_pixel_values": between if self.path.num_intermediate else None,
            "bool_masked_pos": masks,
            "masked_patches": masked,
            "source_pixel_values": source,
        }
