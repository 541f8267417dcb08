"""The views of LOCA: a reference, a random query of the same size, and small focal queries to be located in it."""

from dataclasses import dataclass, replace

import numpy as np
import torch
from PIL import Image

from hf_geossl.modeling.geometry import batched_query_positions
from hf_geossl.views.base import Batch, Views, describe_crops, percent
from hf_geossl.views.channels import ChannelJitter
from hf_geossl.views.color import ColorJitter, ColorRecipe
from hf_geossl.views.crops import cut_crops_without_antialias, draw_distorted_crop, make_random, read_pixels
from hf_geossl.views.image_settings import IMAGE_KEYWORDS, ImageSettings
from hf_geossl.views.photometric import Normalization
from hf_geossl.views.resizing import prepare
from hf_geossl.views.settings import Settings, area_share, group, probability, setting
from hf_geossl.views.transformation_path import TransformationPath

BLUR_RADIUS = 11  # a tenth of 224 pixels is the authors' kernel; it is the same for the small views
# What the authors' configuration evidently meant, for reference, random query and focal queries. Its numbers land on
# another argument of the blur, so that their program blurs nothing.
INTENDED_BLUR = (1.0, 0.1, 0.5)


@dataclass(frozen=True)
class LOCACrops(Settings):
    """Which crops LOCA takes of an image; their sizes are whole patches."""

    reference_size: int = setting(224, "Side of the reference and of the random query in pixels.")
    focal_size: int = setting(96, "Side of the focal queries in pixels.")
    num_focal: int = setting(9, "How many focal queries.", low=0)
    patch_size: int = setting(16, "Side of the model's patches in pixels; both sizes are multiples of it.", low=1)
    reference_scale: tuple[float, float] = area_share((0.32, 1.0), "reference and random query")
    focal_scale: tuple[float, float] = area_share((0.05, 0.32), "a focal query")
    aspect_ratio: tuple[float, float] = setting((0.75, 1.33), "Smallest and largest width / height of a crop.", above=0)
    reference_flip_probability: float = probability(0.0, "How often the reference is mirrored left to right.")
    query_flip_probability: float = probability(0.5, "How often a query is mirrored, each by itself.")
    exact_resize: bool = setting(
        False,
        "Leave the resized crops float32, not rounded, as the authors' program does; a batch is four times as large.",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("reference_size", "focal_size"):
            size = getattr(self, name)
            if size < 1 or size % self.patch_size:
                raise ValueError(f"{name} must be a multiple of patch_size = {self.patch_size} pixels, got {size}")


@dataclass(frozen=True)
class LOCAColor(ColorJitter):
    """How the colours of LOCA's views change, by TensorFlow's operations."""

    brightness: float = setting(0.4, "What is added to values in 0..1 is uniform in [-x, x].", low=0)
    contrast: float = setting(
        0.4, "The factor of contrast, about each channel's mean, is uniform in [max(0, 1 - x), 1 + x].", low=0
    )
    saturation: float = setting(0.2, "The factor of the S of HSV is uniform in [max(0, 1 - x), 1 + x].", low=0)
    hue: float = setting(
        0.1, "The hue turns by a number uniform in [-x, x], in full turns of the colour circle.", low=0, high=0.5
    )
    solarize_probability: float = probability(0.2, "How often the bright values of the random query are inverted.")
    blur: str = setting(
        "off",
        "off is what the authors' program does, intended what its configuration evidently meant: every reference, half of "
        "the focal and a tenth of the random queries are blurred.",
        words=("off", "intended"),
    )

    def recipes(self) -> tuple[ColorRecipe, ColorRecipe, ColorRecipe]:
        """The recipes of the reference, the random query and the focal queries."""
        operations = {"operations": "tensorflow", "blur_border": "zero", "blur_kernel_radius": BLUR_RADIUS}
        blurred = INTENDED_BLUR if self.blur == "intended" else (0.0, 0.0, 0.0)
        reference, random_query, focal = (self.recipe(blur_probability=blur, **operations) for blur in blurred)
        return reference, replace(random_query, solarize_probability=self.solarize_probability), focal


@dataclass(frozen=True, init=False)
class LOCAViews(Views):
    """Views for LOCA with their geometry: where each patch of a query lies in the reference is what the model predicts.

    All crops of an image are drawn independently of each other; a query may miss the reference. Queries are mirrored,
    the reference is not, as the authors run it.

    Args:
        crops ([`LOCACrops`]): `reference_size`, `focal_size`, `num_focal`, `patch_size`, `reference_scale`,
            `focal_scale`, `aspect_ratio`, `reference_flip_probability`, `query_flip_probability`, `exact_resize`.
        color ([`LOCAColor`]): `brightness`, `contrast`, `saturation`, `hue`, `color_jitter_probability`,
            `grayscale_probability`, `solarize_probability`, `blur`, `blur_sigma`.
        path ([`TransformationPath`]): `reconstruction` is the transformation that the reference goes through once more,
            for a model that reconstructs the images between, of which `num_intermediate` are rendered; None by default.
        normalization ([`Normalization`]): `mean` and `std` of each channel.
        image ([`ImageSettings`]): `channels`, `channel_names`, `dtype`, `value_range`; RGB of 8 bits by default.
        channel_jitter ([`ChannelJitter`]): `channel_drop_probability`, `noise_probability`, `noise_sigma`, for channels
            that are not red, green and blue.

    Raises:
        TypeError, ValueError: An unknown setting, or one out of its range.

    Source: LOCA (arXiv 2212.02400), as the authors' code draws its views.
    """

    crops: LOCACrops = group(LOCACrops())
    color: LOCAColor = group(LOCAColor())
    path: TransformationPath = group(
        TransformationPath(None), {"reconstruction": "transformation", "num_intermediate": "num_intermediate"}
    )
    normalization: Normalization = group(Normalization())
    image: ImageSettings = group(ImageSettings(), IMAGE_KEYWORDS)
    channel_jitter: ChannelJitter = group(ChannelJitter())

    @property
    def global_size(self) -> int:
        """Side of the reference in pixels."""
        return self.crops.reference_size

    def views(self, image: Image.Image | np.ndarray | torch.Tensor, seed: int | None = None) -> Batch:
        """Crops of one image and the record of their geometry, see `Views.views`.

        Returns:
            `dict[str, torch.Tensor]`: `reference_crop` and `random_query_crop` (`(channels, reference_size,
            reference_size)`) and `focal_query_crops` (`(num_focal, channels, focal_size, focal_size)`), mirrored already
            (of images of 8 bits float32 in 0..255 with `exact_resize`); and for all views in the order reference, random query, focal queries
            `crop_boxes`, `flips` and `quarter_turns` (all 0).
        """
        pixels = read_pixels(image, self.image_format)
        height, width, _ = pixels.shape
        source = prepare(pixels)
        rng, crops = make_random(seed), self.crops
        scales = [crops.reference_scale] * 2 + [crops.focal_scale] * crops.num_focal
        boxes = [draw_distorted_crop(rng, width, height, scale, crops.aspect_ratio) for scale in scales]
        shares = [crops.reference_flip_probability] + [crops.query_flip_probability] * (1 + crops.num_focal)
        flips = [rng.random() < share for share in shares]
        large = cut_crops_without_antialias(
            source, boxes[:2], crops.reference_size, flips=flips[:2], unrounded=crops.exact_resize
        )
        return {
            "reference_crop": large[0],
            "random_query_crop": large[1],
            "focal_query_crops": cut_crops_without_antialias(
                source, boxes[2:], crops.focal_size, flips=flips[2:], unrounded=crops.exact_resize
            ),
            "crop_boxes": torch.tensor(boxes, dtype=torch.float32),
            "flips": torch.tensor(flips),
            "quarter_turns": torch.zeros(len(boxes), dtype=torch.int64),
        }

    def main_crops(self, batch: Batch) -> torch.Tensor:
        """The references `(batch, channels, reference_size, reference_size)`; uint8 of images of 8 bits."""
        crops = batch["reference_crop"]
        return crops if crops.dtype == torch.uint8 or self.in_units else crops.round().to(torch.uint8)

    def describe(self) -> str:
        """The views in one line of words, for a model card."""
        crops, color = self.crops, self.color
        parts = [f"a reference and a random query {describe_crops(crops.reference_size, crops.reference_scale)}"]
        if crops.num_focal:
            parts.append(f"{crops.num_focal} focal queries {describe_crops(crops.focal_size, crops.focal_scale)}")
        parts += [
            f"width / height from {crops.aspect_ratio[0]:g} to {crops.aspect_ratio[1]:g}",
            f"patches of {crops.patch_size} pixels",
            f"mirrored in {percent(crops.reference_flip_probability)} (reference) and "
            f"{percent(crops.query_flip_probability)} (queries)",
        ]
        colors = [
            f"colour jitter {color.brightness:g}/{color.contrast:g}/{color.saturation:g}/{color.hue:g} "
            f"of TensorFlow's kind in {percent(color.color_jitter_probability)}",
            f"grey in {percent(color.grayscale_probability)}",
            f"random query solarised in {percent(color.solarize_probability)}",
        ]
        parts += self.describe_photometrics(color, colors)
        if color.blur == "off":
            parts.append("no blur")
        else:
            parts.append(
                f"blur in {'/'.join(map(percent, INTENDED_BLUR))} (reference/random query/focal, "
                f"sigma {color.blur_sigma[0]:g} to {color.blur_sigma[1]:g})"
            )
        if self.normalization != Normalization():
            parts.append(self.normalization.describe())
        if crops.exact_resize:
            parts.append("resized without rounding")
        if self.path.transformation is not None:
            parts.append(f"the reference once more, {self.path.describe(self.image_format.is_rgb)}")
        return ", ".join(parts)

    def augment(self, batch: Batch, generator: torch.Generator | None = None) -> dict[str, torch.Tensor | None]:
        """Colours and normalises crops, and locates the queries' patches in the references; see `Views.augment`.

        Returns:
            `dict`: the arguments of `LOCAForPreTraining.forward`, images in float32 and positions in int64; those of
            the focal queries are None without focal queries. With `reconstruction` also `transformed_pixel_values` (the
            reference transformed) and `intermediate_pixel_values` (the points at k / (num_intermediate + 1) of the path
            to it).
        """
        return self._render(batch, generator, random=True)

    def normalize(self, batch: Batch) -> dict[str, torch.Tensor | None]:
        """`augment` without change of colour: the crops normalised, nothing random, nothing transformed."""
        return self._render(batch, None, random=False)

    @torch.no_grad()
    def _render(
        self, batch: Batch, generator: torch.Generator | None, *, random: bool
    ) -> dict[str, torch.Tensor | None]:
        crops = self.crops
        reference_recipe, random_query_recipe, focal_recipe = self.color.recipes()

        def render(key: str, recipe: ColorRecipe) -> torch.Tensor:
            images = batch[key].flatten(0, -4)  # (B, C, S, S) as it is, (B, Q, C, s, s) -> (B * Q, C, s, s)
            parameters = self.draw_photometrics(recipe, len(images), generator) if random else None
            return self.render(images, parameters, recipe, unrounded=crops.exact_resize).view(batch[key].shape)

        def positions(queries: slice, size: int) -> torch.Tensor:
            return batched_query_positions(
                batch["crop_boxes"][:, 0],
                batch["crop_boxes"][:, queries],
                query_size=size,
                query_grid=size // crops.patch_size,
                reference_grid=crops.reference_size // crops.patch_size,
                reference_flips=batch["flips"][:, 0],
                query_flips=batch["flips"][:, queries],
            )

        # The random query draws last: only it may need one more number a view.
        reference = render("reference_crop", reference_recipe)
        focal = render("focal_query_crops", focal_recipe) if crops.num_focal else None
        rendered = {
            "reference_pixel_values": reference,
            "random_query_pixel_values": render("random_query_crop", random_query_recipe),
            "focal_query_pixel_values": focal,
            "random_query_positions": positions(slice(1, 2), crops.reference_size)[:, 0],
            "focal_query_positions": positions(slice(2, None), crops.focal_size) if crops.num_focal else None,
        }
        if random and self.path.transformation is not None:  # drawn last, so that all else is equal without it
            transformed, between = self.transform(self.path, reference, generator)
            rendered |= {"transformed_pixel_values": transformed, "intermediate_pixel_values": between}
        return rendered
