"""The views of LOCA: a reference, a random query of the same size, and small focal queries that are found in it."""

import math
import random
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from hf_geossl.modeling.geometry import batched_query_positions
from hf_geossl.views.base import Batch, Box, Views, check_crops_and_normalization, make_random, read_pixels
from hf_geossl.views.color import ColorRecipe, draw_color_parameters
from hf_geossl.views.photometric import IMAGENET_MEAN, IMAGENET_STD, render_color
from hf_geossl.views.transformation_path import TransformationPath

DISTORTED_ATTEMPTS = 100
BLUR_RADIUS = 11  # a tenth of 224 pixels is the authors' kernel; it is the same for the small views
# What the authors' configuration evidently meant. Its numbers land on another argument of the blur, so that their
# program blurs nothing.
INTENDED_BLUR = {"reference": 1.0, "focal": 0.5, "random": 0.1}


class LOCAViews(Views):
    """Views for LOCA with their geometry: where each patch of a query lies in the reference is what the model predicts.

    All crops of an image are drawn independently of each other; a query may miss the reference. Queries are mirrored, the
    reference is not, as the authors run it.

    Args:
        reference_size (`int`): side of the reference and of the random query in pixels.
        focal_size (`int`): side of the focal queries in pixels.
        num_focal (`int`): how many focal queries, 0 or more.
        patch_size (`int`): side of the model's patches in pixels; both sizes are multiples of it.
        reference_scale (`tuple[float, float]`): smallest and largest share of the image's area, for the reference and
            the random query.
        focal_scale (`tuple[float, float]`): the same for the focal queries.
        aspect_ratio (`tuple[float, float]`): smallest and largest width / height of a crop.
        reference_flip_probability (`float`): how often the reference is mirrored left to right.
        query_flip_probability (`float`): how often a query is mirrored, each by itself.
        brightness (`float`): what is added is uniform in `[-x, x]`, for values in 0..1.
        contrast (`float`): the factor is uniform in `[max(0, 1 - x), 1 + x]`, about the mean of each channel.
        saturation (`float`): the factor of the S of HSV is uniform in `[max(0, 1 - x), 1 + x]`.
        hue (`float`): the turn is uniform in `[-x, x]`, in full turns of the colour circle, at most 0.5.
        color_jitter_probability (`float`): how often a view gets these four, in a random order.
        grayscale_probability (`float`): how often a view loses its colour.
        solarize_probability (`float`): how often the bright values of the random query are inverted.
        blur (`str`): "off" is what the authors' program does, "intended" what its configuration evidently meant: every
            reference, half of the focal and a tenth of the random queries.
        blur_sigma (`tuple[float, float]`): smallest and largest standard deviation of that blur in pixels of the view.
        mean, std (`tuple[float, float, float]`): normalisation of red, green and blue, for images in [0, 1].
        exact_color (`bool`): render colours by TensorFlow's operations one by one instead of one affine map a view.
        exact_resize (`bool`): keep the resized crops as float32 without rounding, as the original does; a batch is four
            times as large.
        reconstruction (`str`, *optional*): the transformation, see `TransformationPath`, that the reference goes through
            once more, for a model that reconstructs the images on its way; none by default.
        num_intermediate (`int`): how many images on the way are rendered, 0 or more.

    Raises:
        ValueError: sizes, counts, scales, ratios, probabilities, normalisation, colour or blur settings out of range.

    Source: LOCA (arXiv 2212.02400), as the authors' code draws its views.
    """

    def __init__(
        self,
        reference_size: int = 224,
        focal_size: int = 96,
        num_focal: int = 9,
        patch_size: int = 16,
        reference_scale: tuple[float, float] = (0.32, 1.0),
        focal_scale: tuple[float, float] = (0.05, 0.32),
        aspect_ratio: tuple[float, float] = (0.75, 1.33),
        *,
        reference_flip_probability: float = 0.0,
        query_flip_probability: float = 0.5,
        brightness: float = 0.4,
        contrast: float = 0.4,
        saturation: float = 0.2,
        hue: float = 0.1,
        color_jitter_probability: float = 0.8,
        grayscale_probability: float = 0.2,
        solarize_probability: float = 0.2,
        blur: str = "off",
        blur_sigma: tuple[float, float] = (0.1, 2.0),
        mean: tuple[float, float, float] = IMAGENET_MEAN,
        std: tuple[float, float, float] = IMAGENET_STD,
        exact_color: bool = False,
        exact_resize: bool = False,
        reconstruction: str | None = None,
        num_intermediate: int = 2,
    ) -> None:
        if patch_size < 1:
            raise ValueError(f"patch_size must be at least 1 pixel, got {patch_size}")
        for name, size in (("reference_size", reference_size), ("focal_size", focal_size)):
            if size < 1 or size % patch_size:
                raise ValueError(f"{name} must be a multiple of patch_size = {patch_size} pixels, got {size}")
        if num_focal < 0:
            raise ValueError(f"num_focal must be 0 or more, got {num_focal}")
        check_crops_and_normalization(
            {"reference_scale": reference_scale, "focal_scale": focal_scale}, aspect_ratio, mean, std
        )
        for name, share in (
            ("reference_flip_probability", reference_flip_probability),
            ("query_flip_probability", query_flip_probability),
        ):
            if not 0 <= share <= 1:
                raise ValueError(f"{name} must lie in [0, 1], got {share}")
        if blur not in ("off", "intended"):
            raise ValueError(
                f"blur must be 'off' (as the authors' program runs) or 'intended' (as its configuration reads), got {blur!r}"
            )

        def recipe(kind: str, solarize: float) -> ColorRecipe:
            return ColorRecipe(
                brightness=brightness,
                contrast=contrast,
                saturation=saturation,
                hue=hue,
                color_jitter_probability=color_jitter_probability,
                grayscale_probability=grayscale_probability,
                blur_probability=INTENDED_BLUR[kind] if blur == "intended" else 0.0,
                blur_sigma=blur_sigma,
                solarize_probability=solarize,
                operations="tensorflow",
                blur_border="zero",
                blur_kernel_radius=BLUR_RADIUS,
            )

        self.global_size = self.reference_size = reference_size
        self.focal_size, self.num_focal, self.patch_size = focal_size, num_focal, patch_size
        self.reference_scale, self.focal_scale = reference_scale, focal_scale
        self.aspect_ratio = aspect_ratio
        self.reference_flip_probability = reference_flip_probability
        self.query_flip_probability = query_flip_probability
        self.blur = blur
        self.reference_recipe = recipe("reference", 0.0)
        self.focal_recipe = recipe("focal", 0.0)
        self.random_query_recipe = recipe("random", solarize_probability)
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
            `dict[str, torch.Tensor]`: `reference_crop` and `random_query_crop` (`(3, reference_size, reference_size)`)
            and `focal_query_crops` (`(num_focal, 3, focal_size, focal_size)`), uint8 (float32 in 0..255 with
            `exact_resize`) and mirrored already; and for all views in the order reference, random query, focal queries
            `crop_boxes` (`(2 + num_focal, 4)`, float32, x1, y1, x2, y2 in pixels of the source image, integers),
            `flips` (`(2 + num_focal,)`, bool: mirrored left to right) and `quarter_turns` (`(2 + num_focal,)`, int64,
            all 0).

        Raises:
            BrokenImageError, TypeError: as `read_pixels`.
        """
        pixels = read_pixels(image)
        height, width, _ = pixels.shape
        rng = make_random(seed)
        scales = [self.reference_scale] * 2 + [self.focal_scale] * self.num_focal
        boxes = [draw_distorted_crop(rng, width, height, scale, self.aspect_ratio) for scale in scales]
        shares = [self.reference_flip_probability] + [self.query_flip_probability] * (1 + self.num_focal)
        flips = [rng.random() < share for share in shares]
        large = cut_crops_without_antialias(
            pixels, boxes[:2], self.reference_size, flips=flips[:2], unrounded=self.exact_resize
        )
        return {
            "reference_crop": large[0],
            "random_query_crop": large[1],
            "focal_query_crops": cut_crops_without_antialias(
                pixels, boxes[2:], self.focal_size, flips=flips[2:], unrounded=self.exact_resize
            ),
            "crop_boxes": torch.tensor(boxes, dtype=torch.float32),
            "flips": torch.tensor(flips),
            "quarter_turns": torch.zeros(len(boxes), dtype=torch.int64),
        }

    def main_crops(self, batch: Batch) -> torch.Tensor:
        """The references of a batch.

        Args:
            batch (`dict[str, torch.Tensor]`): what `collate` returned.

        Returns:
            `torch.Tensor` of shape `(batch, 3, reference_size, reference_size)`: uint8.
        """
        crops = batch["reference_crop"]
        return crops if crops.dtype == torch.uint8 else crops.round().to(torch.uint8)

    def describe(self) -> str:
        """The views in one line, for a model card; whatever changes them changes the line.

        Returns:
            `str`: counts, sizes, shares of the image, mirroring and colour settings.
        """

        def share(value: float) -> str:
            return f"{100 * value:g}%"

        def crops(size: int, scale: tuple[float, float]) -> str:
            return f"of {size} x {size} pixels from {share(scale[0])} to {share(scale[1])} of the image"

        color = self.random_query_recipe
        parts = [f"a reference and a random query {crops(self.reference_size, self.reference_scale)}"]
        if self.num_focal:
            parts.append(f"{self.num_focal} focal queries {crops(self.focal_size, self.focal_scale)}")
        parts += [
            f"width / height from {self.aspect_ratio[0]:g} to {self.aspect_ratio[1]:g}",
            f"patches of {self.patch_size} pixels",
            f"mirrored in {share(self.reference_flip_probability)} (reference) and "
            f"{share(self.query_flip_probability)} (queries)",
            f"colour jitter {color.brightness:g}/{color.contrast:g}/{color.saturation:g}/{color.hue:g} "
            f"of TensorFlow's kind in {share(color.color_jitter_probability)}",
            f"grey in {share(color.grayscale_probability)}",
            f"random query solarised in {share(color.solarize_probability)}",
        ]
        if self.blur == "off":
            parts.append("no blur")
        else:
            shares = (self.reference_recipe, self.focal_recipe, self.random_query_recipe)
            parts.append(
                f"blur in {'/'.join(share(recipe.blur_probability) for recipe in shares)} (reference/focal/random query, "
                f"sigma {color.blur_sigma[0]:g} to {color.blur_sigma[1]:g})"
            )
        if (tuple(self.mean), tuple(self.std)) != (IMAGENET_MEAN, IMAGENET_STD):
            numbers = [" ".join(f"{value:g}" for value in values) for values in (self.mean, self.std)]
            parts.append(f"normalised by mean {numbers[0]} and std {numbers[1]}")
        if self.exact_color:
            parts.append("colours operation by operation")
        if self.exact_resize:
            parts.append("resized without rounding")
        if self.path is not None:
            parts.append(f"the reference once more, {self.path.describe()}")
        return ", ".join(parts)

    def augment(self, batch: Batch, generator: torch.Generator | None = None) -> dict[str, torch.Tensor | None]:
        """Colours and normalises the crops of a batch, and finds the queries' patches in the references, on the device.

        Args:
            batch (`dict[str, torch.Tensor]`): what `collate` returned; it is left as it is.
            generator (`torch.Generator`, *optional*): source of all random numbers, on any device; torch's global CPU
                generator if absent. On an accelerator it makes the host wait for the numbers of blurred and solarised
                views.

        Returns:
            `dict`: the arguments of `LOCAForPreTraining.forward`: `reference_pixel_values` and
            `random_query_pixel_values` (`(batch, 3, reference_size, reference_size)`, float32),
            `focal_query_pixel_values` (`(batch, num_focal, 3, focal_size, focal_size)`, float32),
            `random_query_positions` (`(batch, N)`, int64: raster index into the reference's patches, -1 outside, for the
            patches of the query in raster order) and `focal_query_positions` (`(batch, num_focal, n)`, int64, the same);
            those of the focal queries are None without focal queries. With `reconstruction` also
            `transformed_pixel_values` (`(batch, 3, reference_size, reference_size)`, float32: the reference transformed) and
            `intermediate_pixel_values` (`(batch, num_intermediate, 3, reference_size, reference_size)`, float32: the points
            at k / (num_intermediate + 1) of the way there).
        """
        return self._render(batch, generator, random=True)

    def normalize(self, batch: Batch) -> dict[str, torch.Tensor | None]:
        """`augment` without change of colour: the crops normalised, nothing random, nothing transformed.

        Args:
            batch (`dict[str, torch.Tensor]`): what `collate` returned.

        Returns:
            `dict`: as `augment`.
        """
        return self._render(batch, None, random=False)

    @torch.no_grad()
    def _render(
        self, batch: Batch, generator: torch.Generator | None, *, random: bool
    ) -> dict[str, torch.Tensor | None]:
        def render(key: str, recipe: ColorRecipe) -> torch.Tensor:
            crops = batch[key]
            images = crops.flatten(0, -4)  # (B, 3, S, S) as it is, (B, Q, 3, s, s) -> (B * Q, 3, s, s)
            parameters = draw_color_parameters(recipe, len(images), generator) if random else None
            with torch.autocast(images.device.type, enabled=False):
                rendered = render_color(
                    images,
                    parameters,
                    recipe=recipe,
                    mean=self.mean,
                    std=self.std,
                    exact=self.exact_color,
                    unrounded=self.exact_resize,
                )
            return rendered.view(crops.shape)

        def positions(queries: slice, size: int) -> torch.Tensor:
            return batched_query_positions(
                batch["crop_boxes"][:, 0],
                batch["crop_boxes"][:, queries],
                query_size=size,
                query_grid=size // self.patch_size,
                reference_grid=self.reference_size // self.patch_size,
                reference_flips=batch["flips"][:, 0],
                query_flips=batch["flips"][:, queries],
            )

        # The random query draws last: only it may need one more number a view.
        reference = render("reference_crop", self.reference_recipe)
        focal = render("focal_query_crops", self.focal_recipe) if self.num_focal else None
        rendered = {
            "reference_pixel_values": reference,
            "random_query_pixel_values": render("random_query_crop", self.random_query_recipe),
            "focal_query_pixel_values": focal,
            "random_query_positions": positions(slice(1, 2), self.reference_size)[:, 0],
            "focal_query_positions": positions(slice(2, None), self.focal_size) if self.num_focal else None,
        }
        if random and self.path is not None:  # drawn last, so that all else is equal without it
            ends = self.path.draw(len(reference), generator)
            transformed, between = self.path.render(reference, ends, self.mean, self.std)
            rendered |= {"transformed_pixel_values": transformed, "intermediate_pixel_values": between}
        return rendered


def draw_distorted_crop(
    rng: random.Random, width: int, height: int, scale: tuple[float, float], aspect_ratio: tuple[float, float]
) -> Box:
    """Draws a crop as TensorFlow does: aspect ratio uniform, then height uniform among those whose area fits.

    Small areas are more frequent than with `draw_crop`, and a crop that is smaller than the image never touches its last
    column or row. After 100 misfits the whole image.

    Args:
        rng (`random.Random`): source of the numbers.
        width, height (`int`): of the image in pixels.
        scale (`tuple[float, float]`): smallest and largest share of the image's area, in (0, 1].
        aspect_ratio (`tuple[float, float]`): smallest and largest width / height of the crop.

    Returns:
        `tuple[int, int, int, int]`: x1, y1, x2, y2 in pixels, at least one pixel wide and high.

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


def cut_crops_without_antialias(
    pixels: torch.Tensor, boxes: Sequence[Box], size: int, *, flips: Sequence[bool], unrounded: bool = False
) -> torch.Tensor:
    """Cuts boxes out of an image, resizes each to a square and mirrors some: bilinear between the four nearest pixels.

    Args:
        pixels (`torch.Tensor` of shape `(height, width, 3)`): uint8.
        boxes (`Sequence[tuple[int, int, int, int]]`): x1, y1, x2, y2 in pixels, inside the image, not empty.
        size (`int`): side of the crops in pixels.
        flips (`Sequence[bool]`): for each box whether the crop is mirrored left to right.
        unrounded (`bool`): keep float32, as the original; else uint8, which rounds after each axis and differs by one
            grey level at most from the rounded float32.

    Returns:
        `torch.Tensor` of shape `(len(boxes), 3, size, size)`: uint8, or float32 in 0..255.

    Source: TensorFlow `image.resize` as LOCA calls it (half-pixel centres, no antialiasing).
    """
    images = pixels[None].permute(0, 3, 1, 2)  # channels last to torch's eyes, which `[None]` after `permute` is not
    if unrounded:
        images = images.float()
    crops = images.new_empty(len(boxes), size, size, 3).permute(0, 3, 1, 2)
    for target, (x1, y1, x2, y2), flip in zip(crops, boxes, flips, strict=True):
        resized = F.interpolate(images[:, :, y1:y2, x1:x2], (size, size), mode="bilinear", align_corners=False)
        target.copy_((resized.flip(-1) if flip else resized)[0])
    return crops
