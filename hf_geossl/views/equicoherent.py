"""The views of EquiCoherent: those of a host method, the second global one transformed, and the points on its way there."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image

from hf_geossl.views.base import (
    Batch,
    Views,
    check_crops_and_normalization,
    cut_crops,
    draw_crop,
    make_random,
    read_pixels,
)
from hf_geossl.views.color import ColorRecipe, draw_color_parameters
from hf_geossl.views.masks import MASK_KINDS, draw_block_masks
from hf_geossl.views.photometric import IMAGENET_MEAN, IMAGENET_STD, render_color
from hf_geossl.views.transformation_path import TransformationPath


@dataclass(frozen=True)
class HostViews:
    """The views that a host method draws when nothing else is asked for.

    Args:
        num_local (`int`): how many local views.
        global_scale, local_scale (`tuple[float, float]`): smallest and largest share of the image's area; hosts without
            local views hold None.
        color_jitter (`tuple[float, float, float, float]`): brightness, contrast, saturation and hue, as in `ColorRecipe`.
        blur_probability (`tuple[float, float, float]`): of the first global, the second global and the local views.
        solarize_probability (`float`): of the second global view.
    """

    num_local: int
    global_scale: tuple[float, float]
    local_scale: tuple[float, float] | None
    color_jitter: tuple[float, float, float, float] = (0.4, 0.4, 0.2, 0.1)
    blur_probability: tuple[float, float, float] = (1.0, 0.1, 0.5)
    solarize_probability: float = 0.2


HOSTS = {
    "ibot": HostViews(10, (0.25, 1.0), (0.05, 0.25)),
    "dinov2": HostViews(8, (0.32, 1.0), (0.05, 0.32)),
    "dino": HostViews(8, (0.4, 1.0), (0.05, 0.4)),
    "vicreg": HostViews(0, (0.08, 1.0), None),
    "simclr": HostViews(
        0,
        (0.08, 1.0),
        None,
        color_jitter=(0.8, 0.8, 0.8, 0.2),
        blur_probability=(0.5, 0.5, 0.5),
        solarize_probability=0.0,
    ),
}


class EquiCoherentViews(Views):
    """Views for EquiCoherent: a host method's own, of which the second global one is transformed along a path.

    All crops of an image are drawn independently of each other and mirrored half of the time. The transformation comes
    after the host's colours; its numbers are drawn last, so that views and masks are equal whatever it is.

    Args:
        host (`str`): "ibot", "dinov2", "dino", "vicreg" or "simclr"; settings that are None are the host's own.
        transformation (`str`, *optional*): of the second global view, see `TransformationPath`; None leaves the host as
            it is.
        num_intermediate (`int`): how many points of the path are rendered, 0 or more.
        patch_size (`int`): side of the model's patches in pixels; the sizes are multiples of it.
        global_size, local_size (`int`): side of the global and local views in pixels.
        num_local (`int`, *optional*): how many local views, 0 or more; VICReg and SimCLR take none.
        global_scale, local_scale (`tuple[float, float]`, *optional*): smallest and largest share of the image's area.
        aspect_ratio (`tuple[float, float]`): smallest and largest width / height of a crop.
        padding_mode, max_rotation, max_translation, path_brightness, path_contrast, path_saturation, path_hue,
            path_blur_sigma, transformation_probability: as in `TransformationPath`.
        flip_probability (`float`): how often a view is mirrored left to right, each by itself.
        brightness, contrast, saturation, hue (`float`, *optional*): as in `ColorRecipe`, for all views.
        color_jitter_probability, grayscale_probability, blur_sigma: as in `ColorRecipe`, for all views.
        blur_probability (`tuple[float, float, float]`, *optional*): how often the first global, the second global and a
            local view are blurred.
        solarize_probability (`float`, *optional*): how often the bright values of the second global view are inverted.
        mean, std (`tuple[float, float, float]`): normalisation of red, green and blue, for images in [0, 1].
        exact_color (`bool`): render colours by torchvision's operations one by one instead of one affine map a view.
        exact_resize (`bool`): resize with Pillow, bit for bit, instead of torch's faster kernel.

    Raises:
        ValueError: an unknown word, or sizes, counts, scales, ratios, probabilities, normalisation, colour or path
            settings out of range.

    Source: EquiCoherent (arXiv 2503.18753) with the views of iBOT (arXiv 2111.07832), DINOv2 (arXiv 2304.07193), DINO
    (arXiv 2104.14294), VICReg (arXiv 2105.04906) and SimCLR (arXiv 2002.05709).
    """

    def __init__(
        self,
        host: str = "ibot",
        transformation: str | None = "se2",
        num_intermediate: int = 2,
        patch_size: int = 16,
        global_size: int = 224,
        local_size: int = 96,
        num_local: int | None = None,
        global_scale: tuple[float, float] | None = None,
        local_scale: tuple[float, float] | None = None,
        aspect_ratio: tuple[float, float] = (3 / 4, 4 / 3),
        *,
        padding_mode: str = "reflection",
        max_rotation: float = 45.0,
        max_translation: float = 10 / 224,
        path_brightness: float = 0.4,
        path_contrast: float = 0.4,
        path_saturation: float = 0.1,
        path_hue: float = 0.1,
        path_blur_sigma: tuple[float, float] = (0.1, 2.0),
        transformation_probability: float = 1.0,
        flip_probability: float = 0.5,
        brightness: float | None = None,
        contrast: float | None = None,
        saturation: float | None = None,
        hue: float | None = None,
        color_jitter_probability: float = 0.8,
        grayscale_probability: float = 0.2,
        blur_probability: tuple[float, float, float] | None = None,
        blur_sigma: tuple[float, float] = (0.1, 2.0),
        solarize_probability: float | None = None,
        mean: tuple[float, float, float] = IMAGENET_MEAN,
        std: tuple[float, float, float] = IMAGENET_STD,
        exact_color: bool = False,
        exact_resize: bool = False,
    ) -> None:
        if host not in HOSTS:
            raise ValueError(f"host must be one of {', '.join(map(repr, HOSTS))}, got {host!r}")
        own = HOSTS[host]
        num_local = own.num_local if num_local is None else num_local
        global_scale = own.global_scale if global_scale is None else global_scale
        local_scale = own.local_scale if local_scale is None else local_scale
        if num_local < 0:
            raise ValueError(f"num_local must be 0 or more, got {num_local}")
        if num_local and own.local_scale is None:
            raise ValueError(f"num_local must be 0 for the host {host!r}, which takes no local views, got {num_local}")
        if num_intermediate < 0:
            raise ValueError(f"num_intermediate must be 0 or more, got {num_intermediate}")
        if patch_size < 1:
            raise ValueError(f"patch_size must be at least 1 pixel, got {patch_size}")
        sizes = {"global_size": global_size} | ({"local_size": local_size} if num_local else {})
        for name, size in sizes.items():
            if size < 1 or size % patch_size:
                raise ValueError(f"{name} must be a multiple of patch_size = {patch_size} pixels, got {size}")
        scales = {"global_scale": global_scale} | ({"local_scale": local_scale} if local_scale is not None else {})
        check_crops_and_normalization(scales, aspect_ratio, mean, std)
        if not 0 <= flip_probability <= 1:
            raise ValueError(f"flip_probability must lie in [0, 1], got {flip_probability}")
        blurred = own.blur_probability if blur_probability is None else blur_probability
        if len(blurred) != 3:
            raise ValueError(
                f"blur_probability must hold 3 numbers (first global, second global and local views), got {blurred}"
            )
        strengths = [
            theirs if given is None else given
            for given, theirs in zip((brightness, contrast, saturation, hue), own.color_jitter, strict=True)
        ]

        def recipe(blur: float, solarize: float) -> ColorRecipe:
            return ColorRecipe(
                brightness=strengths[0],
                contrast=strengths[1],
                saturation=strengths[2],
                hue=strengths[3],
                color_jitter_probability=color_jitter_probability,
                grayscale_probability=grayscale_probability,
                blur_probability=blur,
                blur_sigma=blur_sigma,
                solarize_probability=solarize,
            )

        solarized = own.solarize_probability if solarize_probability is None else solarize_probability
        self.global_recipes = (recipe(blurred[0], 0.0), recipe(blurred[1], solarized))
        self.local_recipe = recipe(blurred[2], 0.0)
        # Made without a transformation too, so that its settings are always checked.
        path = TransformationPath(
            "se2" if transformation is None else transformation,
            num_intermediate,
            padding_mode=padding_mode,
            max_rotation=max_rotation,
            max_translation=max_translation,
            path_brightness=path_brightness,
            path_contrast=path_contrast,
            path_saturation=path_saturation,
            path_hue=path_hue,
            path_blur_sigma=path_blur_sigma,
            transformation_probability=transformation_probability,
        )
        self.path = None if transformation is None else path
        self.host, self.transformation, self.num_intermediate = host, transformation, num_intermediate
        self.patch_size, self.global_size, self.local_size = patch_size, global_size, local_size
        self.num_local, self.global_scale, self.local_scale = num_local, global_scale, local_scale
        self.aspect_ratio, self.flip_probability = aspect_ratio, flip_probability
        self.mean, self.std = mean, std
        self.exact_color, self.exact_resize = exact_color, exact_resize

    def views(self, image: Image.Image | np.ndarray | torch.Tensor, seed: int | None = None) -> Batch:
        """Crops of one image and the record of their geometry.

        Args:
            image (`PIL.Image.Image`, `numpy.ndarray` or `torch.Tensor`): see `read_pixels`; any size from one pixel.
            seed (`int`, *optional*): the result is a function of image and seed alone; if absent the seed is drawn from
                torch's global generator.

        Returns:
            `dict[str, torch.Tensor]`: `global_crops` (`(2, 3, global_size, global_size)`, uint8) and `local_crops`
            (`(num_local, 3, local_size, local_size)`, uint8), mirrored already, and for all views, globals first,
            `crop_boxes` (`(2 + num_local, 4)`, float32, x1, y1, x2, y2 in pixels of the source image, integers), `flips`
            (`(2 + num_local,)`, bool: mirrored left to right) and `quarter_turns` (`(2 + num_local,)`, int64, all 0).

        Raises:
            BrokenImageError, TypeError: as `read_pixels`.
        """
        pixels = read_pixels(image)
        height, width, _ = pixels.shape
        rng = make_random(seed)
        scales = [self.global_scale] * 2 + [self.local_scale or self.global_scale] * self.num_local
        boxes = [draw_crop(rng, width, height, scale, self.aspect_ratio) for scale in scales]
        flips = torch.tensor([rng.random() < self.flip_probability for _ in boxes])
        crops = {
            "global_crops": cut_crops(pixels, boxes[:2], self.global_size, exact=self.exact_resize),
            "local_crops": cut_crops(pixels, boxes[2:], self.local_size, exact=self.exact_resize),
        }
        for group, mirrored in zip(crops.values(), (flips[:2], flips[2:]), strict=True):
            group[mirrored] = group[mirrored].flip(-1)
        return {
            **crops,
            "crop_boxes": torch.tensor(boxes, dtype=torch.float32),
            "flips": flips,
            "quarter_turns": torch.zeros(len(boxes), dtype=torch.int64),
        }

    def main_crops(self, batch: Batch) -> torch.Tensor:
        """The first global crops of a batch, which are never transformed.

        Args:
            batch (`dict[str, torch.Tensor]`): what `collate` returned.

        Returns:
            `torch.Tensor` of shape `(batch, 3, global_size, global_size)`: uint8.
        """
        return batch["global_crops"][:, 0]

    def describe(self) -> str:
        """The views in one line, for a model card; whatever changes them changes the line.

        Returns:
            `str`: host, counts, sizes, shares of the image, mirroring, colour settings and the path.
        """

        def share(*values: float) -> str:
            return "/".join(f"{100 * value:g}%" for value in values)

        def crops(size: int, scale: Sequence[float]) -> str:
            return f"of {size} x {size} pixels from {share(scale[0])} to {share(scale[1])} of the image"

        first, second = self.global_recipes
        parts = [f"views of {self.host}: 2 global {crops(self.global_size, self.global_scale)}"]
        blurred, views = [first.blur_probability, second.blur_probability], "first/second global"
        if self.num_local and self.local_scale is not None:
            parts.append(f"{self.num_local} local {crops(self.local_size, self.local_scale)}")
            blurred, views = [*blurred, self.local_recipe.blur_probability], f"{views}/local"
        parts += [
            f"width / height from {self.aspect_ratio[0]:g} to {self.aspect_ratio[1]:g}",
            f"patches of {self.patch_size} pixels",
            f"mirrored in {share(self.flip_probability)}",
            f"colour jitter {first.brightness:g}/{first.contrast:g}/{first.saturation:g}/{first.hue:g} "
            f"in {share(first.color_jitter_probability)}",
            f"grey in {share(first.grayscale_probability)}",
            f"blur in {share(*blurred)} ({views}, sigma {first.blur_sigma[0]:g} to {first.blur_sigma[1]:g})",
            f"second global solarised in {share(second.solarize_probability)}",
            f"then {self.path.describe()}" if self.path is not None else "not transformed",
        ]
        if (tuple(self.mean), tuple(self.std)) != (IMAGENET_MEAN, IMAGENET_STD):
            numbers = [" ".join(f"{value:g}" for value in values) for values in (self.mean, self.std)]
            parts.append(f"normalised by mean {numbers[0]} and std {numbers[1]}")
        if self.exact_color:
            parts.append("colours operation by operation")
        if self.exact_resize:
            parts.append("resized by Pillow")
        return ", ".join(parts)

    def augment(self, batch: Batch, generator: torch.Generator | None = None) -> dict[str, torch.Tensor | None]:
        """Colours, normalises, masks and transforms the crops of a batch on the device that holds them.

        Args:
            batch (`dict[str, torch.Tensor]`): what `collate` returned; it is left as it is.
            generator (`torch.Generator`, *optional*): source of all random numbers, on any device; torch's global CPU
                generator if absent. On an accelerator it makes the host wait for the numbers of blurred and solarised
                views and for the seed of the masks.

        Returns:
            `dict`: the arguments of `EquiCoherentForPreTraining.forward`: `global_pixel_values`
            (`(batch, 2, 3, global_size, global_size)`, float32, the second transformed), `local_pixel_values`
            (`(batch, num_local, 3, local_size, local_size)`, float32, or None without local views),
            `intermediate_pixel_values` (`(batch, num_intermediate, 3, global_size, global_size)`, float32: the points at
            k / (num_intermediate + 1) of the way to the second global view; None without any) and `bool_masked_pos`
            (`(batch, 2, N)`, bool, the masked patches of the global views in raster order; None if the host does not
            mask).
        """
        rendered = self.render_path(batch, generator)
        del rendered["source_pixel_values"]
        return rendered

    def render_path(self, batch: Batch, generator: torch.Generator | None = None) -> dict[str, torch.Tensor | None]:
        """`augment` for pictures: with the image where the path begins.

        Args:
            batch (`dict[str, torch.Tensor]`): what `collate` returned; it is left as it is.
            generator (`torch.Generator`, *optional*): as in `augment`.

        Returns:
            `dict`: as `augment`, and `source_pixel_values` (`(batch, 3, global_size, global_size)`, float32): the second
            global view before it was transformed.
        """
        return self._render(batch, generator, random=True)

    def normalize(self, batch: Batch) -> dict[str, torch.Tensor | None]:
        """`augment` without change of colour, transformation or masked patches: the crops normalised, nothing random.

        Args:
            batch (`dict[str, torch.Tensor]`): what `collate` returned.

        Returns:
            `dict`: as `augment`; `intermediate_pixel_values` is None.
        """
        rendered = self._render(batch, None, random=False)
        del rendered["source_pixel_values"]
        return rendered

    @torch.no_grad()
    def _render(
        self, batch: Batch, generator: torch.Generator | None, *, random: bool
    ) -> dict[str, torch.Tensor | None]:
        def render(crops: torch.Tensor, recipe: ColorRecipe) -> torch.Tensor:
            images = crops.flatten(0, -4)  # (B, 3, S, S) as it is, (B, L, 3, s, s) -> (B * L, 3, s, s)
            parameters = draw_color_parameters(recipe, len(images), generator) if random else None
            with torch.autocast(images.device.type, enabled=False):
                rendered = render_color(
                    images, parameters, recipe=recipe, mean=self.mean, std=self.std, exact=self.exact_color
                )
            return rendered.view(crops.shape)

        first, source = (render(batch["global_crops"][:, i], self.global_recipes[i]) for i in range(2))
        local = render(batch["local_crops"], self.local_recipe) if self.num_local else None
        masks = self._masks(len(first), generator, random=random).to(first.device) if self.host in MASK_KINDS else None
        second, between = source, None
        if random and self.path is not None:  # drawn last, so that all else is equal without it
            parameters = self.path.draw(len(first), generator)
            second, between = self.path.render(source, parameters, self.mean, self.std)
        return {
            "global_pixel_values": torch.stack([first, second], dim=1),
            "local_pixel_values": local,
            "intermediate_pixel_values": between if self.num_intermediate else None,
            "bool_masked_pos": masks,
            "source_pixel_values": source,
        }

    def _masks(self, batch_size: int, generator: torch.Generator | None, *, random: bool) -> torch.Tensor:
        grid = self.global_size // self.patch_size
        if not random:
            return torch.zeros(batch_size, 2, grid * grid, dtype=torch.bool)
        return draw_block_masks(self.host, 2 * batch_size, grid, grid, generator).view(batch_size, 2, -1)
