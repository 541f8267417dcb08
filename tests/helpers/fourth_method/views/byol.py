"""The views of BYOL: two crops of an image."""

from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image

from hf_geossl.views.base import Batch, Views, describe_crops
from hf_geossl.views.color import ColorParameters, ColorRecipe, draw_color_parameters
from hf_geossl.views.crops import cut_crops, draw_crop, make_random, read_pixels
from hf_geossl.views.photometric import Normalization, render_color
from hf_geossl.views.settings import Settings, group, setting


@dataclass(frozen=True)
class BYOLCrops(Settings):
    """Which crops BYOL takes of an image."""

    global_size: int = setting(224, "Side of the views in pixels.", low=1)
    global_scale: tuple[float, float] = setting((0.08, 1.0), "Share of the image's area.", above=0, high=1)


@dataclass(frozen=True, init=False)
class BYOLViews(Views):
    """Two crops of an image, coloured alike."""

    crops: BYOLCrops = group(BYOLCrops())
    color: ColorRecipe = group(ColorRecipe())
    normalization: Normalization = group(Normalization())

    @property
    def global_size(self) -> int:
        """Side of the views in pixels."""
        return self.crops.global_size

    def views(self, image: Image.Image | np.ndarray | torch.Tensor, seed: int | None = None) -> Batch:
        """Two crops; see `Views.views`."""
        pixels, rng, crops = read_pixels(image), make_random(seed), self.crops
        height, width, _ = pixels.shape
        boxes = [draw_crop(rng, width, height, crops.global_scale, (3 / 4, 4 / 3)) for _ in range(2)]
        return {
            "global_crops": cut_crops(pixels, boxes, crops.global_size),
            "crop_boxes": torch.tensor(boxes, dtype=torch.float32),
            "flips": torch.zeros(2, dtype=torch.bool),
            "quarter_turns": torch.zeros(2, dtype=torch.int64),
        }

    def augment(self, batch: Batch, generator: torch.Generator | None = None) -> dict[str, torch.Tensor | None]:
        """Colours and normalises."""
        count = batch["crop_boxes"].shape[:2].numel()
        return self._render(batch, draw_color_parameters(self.color, count, generator))

    def normalize(self, batch: Batch) -> dict[str, torch.Tensor | None]:
        """Normalises alone."""
        return self._render(batch, None)

    def _render(self, batch: Batch, parameters: ColorParameters | None) -> dict[str, torch.Tensor | None]:
        crops = batch["global_crops"]
        images = render_color(crops.flatten(0, 1), parameters, recipe=self.color, mean=self.mean, std=self.std)
        return {"global_pixel_values": images.view(crops.shape)}

    def main_crops(self, batch: Batch) -> torch.Tensor:
        """The first crops."""
        return batch["global_crops"][:, 0]

    def describe(self) -> str:
        """The views in one line of words."""
        return f"2 crops {describe_crops(self.crops.global_size, self.crops.global_scale)}"
