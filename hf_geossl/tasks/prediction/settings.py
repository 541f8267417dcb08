"""How images are predicted: in tiles or whole, and from which score on."""

from dataclasses import dataclass

from hf_geossl.data.images import DEFAULT_MAX_PIXELS, BrokenImageError
from hf_geossl.tasks.prediction.opened_images import OpenedImage
from hf_geossl.tasks.prediction.task_models import TaskModel
from hf_geossl.tasks.prediction.tiling import LARGEST_OVERLAP, Tiling

_MOST_BYTES = 2**31  # of the parts of a map that wait for their neighbours


@dataclass(frozen=True)
class PredictionSettings:
    """How images are predicted.

    Args:
        tile_size (`int`, *optional*): images with a longer side are predicted in tiles of so many pixels of height, and of a width
            in the shape of the model's input. By default images are predicted whole, and only those of more than
            `max_pixels`, which must be TIFF files, in tiles of the size that the model takes.
        tile_overlap (`int`, *optional*): pixels that neighbouring tiles share at least; a quarter of a tile by default, at most
            a third.
        score_threshold (`float`, *optional*, defaults to 0.5): objects of smaller scores are left out.
        iou_threshold (`float`, *optional*, defaults to 0.5): intersection over union from which boxes of tiles are one object.
        batch_size (`int`, *optional*, defaults to 8): tiles, or images of one size, that are predicted at a
            time.
        max_pixels (`int`, *optional*): the largest width x height of an image that is predicted whole.

    Raises:
        ValueError: if a value makes no sense.
    """

    tile_size: int | None = None
    tile_overlap: int | None = None
    score_threshold: float = 0.5
    iou_threshold: float = 0.5
    batch_size: int = 8
    max_pixels: int = DEFAULT_MAX_PIXELS

    def __post_init__(self) -> None:
        for name, least in (("tile_size", 16), ("tile_overlap", 0), ("batch_size", 1), ("max_pixels", 1)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise ValueError(f"{name} must be at least {least}, got {value}")
        for name in ("score_threshold", "iou_threshold"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must be 0 to 1, got {getattr(self, name)}")

    def tiling(self, model: TaskModel, image: OpenedImage) -> Tiling | None:
        """The tiles of an image; None where it is predicted whole.

        Raises:
            BrokenImageError: if it is too large to be classified whole, or its classes too many for tiles of this size.
        """
        large = image.height * image.width > self.max_pixels
        if model.kind == "classification":
            if large:
                raise BrokenImageError(
                    f"{image.width} x {image.height} pixels are more than max_pixels={self.max_pixels}, and images are classified "
                    "whole: scale it down, or raise --max_pixels"
                )
            return None
        if not large and (self.tile_size is None or max(image.height, image.width) <= self.tile_size):
            return None
        height, width = model.sides
        if self.tile_size is not None:
            height, width = self.tile_size, max(1, round(self.tile_size * width / height))
        overlap = min(height, width) // 4 if self.tile_overlap is None else self.tile_overlap
        if overlap > min(height, width) * LARGEST_OVERLAP:
            raise ValueError(
                f"tile_overlap must be at most {int(min(height, width) * LARGEST_OVERLAP)}, a third of the tiles of {width} x "
                f"{height} pixels, got {overlap}"
            )
        tiling = Tiling.of((image.height, image.width), (height, width), overlap)
        size = tiling.mixed_values() * max(1, len(model.names)) * 4
        if model.kind != "detection" and size > _MOST_BYTES:
            raise BrokenImageError(
                f"the seams of its tiles of {width} x {height} with {len(model.names)} classes take {size / 2**30:.1f} GiB, more "
                f"than {_MOST_BYTES / 2**30:.0f}: give a smaller --tile_overlap or --tile_size"
            )
        return tiling
