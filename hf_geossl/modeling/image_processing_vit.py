"""The image processor of models whose images are not RGB of 8 bits: any number of channels, any type, any value range."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from transformers.image_processing_utils import BaseImageProcessor, BatchFeature
from transformers.utils import logging

from .image_format import TYPE_RANGES, ImageFormat

logger = logging.get_logger(__name__)

_LUMINANCE = (0.299, 0.587, 0.114)  # of red, green and blue
_MODES = {"L": 1, "LA": 2, "RGB": 3, "RGBA": 4}  # of Pillow, with their channels
_MAX_CHANNELS = 20
_ORIENTATION = (
    0x0112  # of EXIF; 5 and above are transposed, and then these axes of (channels, height, width) are flipped
)
_FLIPS = {2: (2,), 3: (1, 2), 4: (1,), 6: (2,), 7: (1, 2), 8: (1,)}
# what callers of any image processor pass, and what does not matter here
_IGNORED = ("device", "disable_grouping", "backend", "use_fast")


class GeometricImageProcessor(BaseImageProcessor):
    """Makes the input of a model from PIL images, arrays and tensors of stored values.

    transformers' pipelines open files themselves, as colours of 8 bits: models of other types want arrays, without a pipeline.

    Images are of shape `(height, width)`, `(height, width, channels)` or `(channels, height, width)`, one or a list, or a
    batch of them in one array. They may have all channels of the file, from which those of `image_format` are taken in
    its order, or the model's channels alone. Values are those that the files store; the value range maps them to 0..1,
    mean and deviation normalise them. Values that are no numbers become the low end of the range. Images of another type
    than the model's are scaled as in training, with a warning: 8 bits, 16 bits and fractions of 0 to 1 by the whole range
    of their type where the model's range is its type's. PIL images are turned as their EXIF orientation says.

    Args:
        image_format (`dict`): as `ImageFormat.to_dict` gives it; the model's `config.image_format`.
        size (`dict`, *optional*): `{"height": ..., "width": ...}` in pixels; 224 x 224 by default.
        do_resize (`bool`, defaults to `True`): Whether images are resized, bilinearly and antialiased.
        do_rescale (`bool`, defaults to `True`): Whether values are stored ones, to be mapped by the value range.
        do_normalize (`bool`, defaults to `True`): Whether mean and deviation are applied.
        image_mean, image_std (`Sequence[float]`, *optional*): those of `image_format` by default.

    Raises:
        ValueError: For a format that makes no sense.
    """

    _auto_class = "AutoImageProcessor"  # type: ignore[assignment]  # saving takes this file along
    model_input_names = ["pixel_values"]

    def __init__(
        self,
        image_format: Mapping[str, Any] | None = None,
        size: Mapping[str, int] | int | None = None,
        do_resize: bool = True,
        do_rescale: bool = True,
        do_normalize: bool = True,
        image_mean: Sequence[float] | None = None,
        image_std: Sequence[float] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        described = ImageFormat.from_dict(image_format or {})
        self.image_format = described.to_dict()
        self.size = _size(224 if size is None else size)
        self.do_resize, self.do_rescale, self.do_normalize = do_resize, do_rescale, do_normalize
        self.image_mean = list(described.mean if image_mean is None else image_mean)
        self.image_std = list(described.std if image_std is None else image_std)

    def preprocess(
        self,
        images: Any,
        return_tensors: str | None = None,
        *,
        size: Mapping[str, int] | int | None = None,
        do_resize: bool | None = None,
        do_rescale: bool | None = None,
        do_normalize: bool | None = None,
        image_mean: Sequence[float] | None = None,
        image_std: Sequence[float] | None = None,
        input_data_format: str | None = None,
        **kwargs: Any,
    ) -> BatchFeature:
        """Makes `pixel_values` of images.

        Args:
            images: One image or a list; see the class.
            return_tensors (`str`, *optional*): `"pt"` or `"np"` for one array, a list of arrays by default.
            size, do_resize, do_rescale, do_normalize, image_mean, image_std: in place of the processor's own.
            input_data_format (`str`, *optional*): `"channels_first"` or `"channels_last"`, where arrays of both kinds
                would have such a shape.

        Returns:
            `BatchFeature`: `pixel_values` of shape `(batch, channels, height, width)`, float32.

        Raises:
            ValueError: If an image lacks a channel, or its shape is no image's.
            TypeError: If it is no image at all, or for an unknown argument.
        """
        unknown = sorted(set(kwargs) - set(_IGNORED))
        if unknown:
            raise TypeError(f"{type(self).__name__} has no {', '.join(unknown)}")
        described = ImageFormat.from_dict(self.image_format)
        target = self.size if size is None else _size(size)
        made = []
        for image in _listed(images):
            pixels = _read(image, described, input_data_format)  # (channels, height, width)
            if self.do_rescale if do_rescale is None else do_rescale:
                pixels = described.to_unit(pixels, channels_last=False)
            pixels = torch.nan_to_num(pixels.float(), nan=0.0, posinf=0.0, neginf=0.0)
            if self.do_resize if do_resize is None else do_resize:
                sides = (target["height"], target["width"])
                pixels = F.interpolate(pixels[None], sides, mode="bilinear", antialias=True, align_corners=False)[0]
            if self.do_normalize if do_normalize is None else do_normalize:
                mean = pixels.new_tensor(self.image_mean if image_mean is None else image_mean)[:, None, None]
                std = pixels.new_tensor(self.image_std if image_std is None else image_std)[:, None, None]
                pixels = (pixels - mean) / std
            made.append(pixels)
        if return_tensors == "pt":
            return BatchFeature(data={"pixel_values": torch.stack(made)})
        return BatchFeature(data={"pixel_values": [pixels.numpy() for pixels in made]}, tensor_type=return_tensors)

    def post_process_semantic_segmentation(
        self, outputs: Any, target_sizes: Sequence[tuple[int, int]] | None = None
    ) -> list[torch.Tensor]:
        """Turns logits into maps of class numbers, resized to `(height, width)` of each image where sizes are given."""
        logits = outputs.logits
        if target_sizes is None:
            return list(logits.argmax(dim=1))
        return [
            F.interpolate(one[None].float(), tuple(map(int, sides)), mode="bilinear", align_corners=False)[0].argmax(0)
            for one, sides in zip(logits, target_sizes, strict=True)
        ]

    def post_process_depth_estimation(
        self, outputs: Any, target_sizes: Sequence[tuple[int, int]] | None = None
    ) -> list[dict[str, torch.Tensor]]:
        """Gives the `predicted_depth` of each image, resized to its `(height, width)` where sizes are given, as DPT's does."""
        depths = outputs.predicted_depth
        if target_sizes is None:
            return [{"predicted_depth": one} for one in depths]
        return [
            {"predicted_depth": F.interpolate(one[None, None], tuple(map(int, sides)), mode="bicubic")[0, 0]}
            for one, sides in zip(depths, target_sizes, strict=True)
        ]

    def post_process_object_detection(
        self, outputs: Any, threshold: float = 0.5, target_sizes: Sequence[tuple[int, int]] | None = None
    ) -> list[dict[str, torch.Tensor]]:
        """Reads the objects of each image whose score is above a threshold, as the processor of YOLOS does.

        Args:
            outputs: `logits (batch, detections, categories + 1)` and `pred_boxes (batch, detections, 4)`, as center x, center
                y, width and height in shares of the image.
            threshold (`float`, defaults to 0.5): From 0 to 1.
            target_sizes (*optional*): `(height, width)` of each image in pixels; boxes are shares without.

        Returns:
            `list[dict]`: `scores (objects,)`, `labels (objects,)` and `boxes (objects, 4)` as x1, y1, x2, y2.
        """
        scores, labels = outputs.logits.softmax(-1)[..., :-1].max(-1)
        centers, sides = outputs.pred_boxes[..., :2], outputs.pred_boxes[..., 2:]
        boxes = torch.cat([centers - sides / 2, centers + sides / 2], dim=-1)
        if target_sizes is not None:
            scales = [(int(width), int(height)) * 2 for height, width in target_sizes]
            boxes = boxes * boxes.new_tensor(scales)[:, None]
        found = zip(scores, labels, boxes, scores > threshold, strict=True)
        return [
            {"scores": score[chosen], "labels": label[chosen], "boxes": box[chosen]}
            for score, label, box, chosen in found
        ]


def _size(size: Mapping[str, int] | int | Sequence[int]) -> dict[str, int]:
    if isinstance(size, int):
        return {"height": size, "width": size}
    if isinstance(size, Mapping):
        if "shortest_edge" in size:
            return {"height": size["shortest_edge"], "width": size["shortest_edge"]}
        return {"height": size["height"], "width": size["width"]}
    height, width = size
    return {"height": height, "width": width}


def _listed(images: Any) -> list[Any]:
    if isinstance(images, list | tuple):
        if not images:
            raise ValueError("images must hold at least one image, got an empty list")
        return [image for entry in images for image in _listed(entry)]
    return list(images) if getattr(images, "ndim", 0) == 4 else [images]


def _read(image: Any, described: ImageFormat, data_format: str | None) -> torch.Tensor:
    """The model's channels of one image as stored values, `(channels, height, width)`."""
    if hasattr(image, "convert") and hasattr(image, "mode"):
        return _read_pil(image, described)
    if not isinstance(image, torch.Tensor):
        if not hasattr(image, "__array__"):
            raise TypeError(f"an image must be a PIL image, an array or a tensor, got {type(image).__name__}")
        pixels = _tensor(np.asarray(image))
        first = False
    else:
        pixels, first = image.detach().cpu(), True  # torch's images have their channels first
    if pixels.ndim == 2:
        pixels = pixels[None]
    elif pixels.ndim != 3 or 0 in pixels.shape:
        raise ValueError(f"an image must have shape (height, width), or that with channels, got {tuple(pixels.shape)}")
    elif not _has_channels_first(tuple(pixels.shape), described, data_format, first):
        pixels = pixels.permute(2, 0, 1)
    return _choose(_of_stored_type(pixels, described), described)


def _tensor(values: np.ndarray) -> torch.Tensor:
    if values.dtype.kind not in "biuf":
        raise TypeError(f"an image must hold numbers, got {values.dtype}")
    return torch.from_numpy(np.array(values, dtype=values.dtype.newbyteorder("=")))  # a copy, which may be written to


def _read_pil(image: Any, described: ImageFormat) -> torch.Tensor:
    orientation = image.getexif().get(_ORIENTATION, 1)
    if image.mode == "P" or (image.mode not in (*_MODES, "I", "F") and not image.mode.startswith("I;16")):
        image = image.convert("RGBA" if "transparency" in image.info else "L" if image.mode == "1" else "RGB")
    pixels = _tensor(np.asarray(image))
    pixels = pixels[None] if pixels.ndim == 2 else pixels.permute(2, 0, 1)
    if image.mode in ("LA", "RGBA") and not isinstance(described.channels, tuple):
        share = pixels[-1:].float() / 255  # laid over white, as in training
        pixels = (pixels[:-1] * share + 255 * (1 - share)).round().to(torch.uint8)
    return _choose(_of_stored_type(_upright(pixels, orientation), described), described)


def _upright(pixels: torch.Tensor, orientation: int) -> torch.Tensor:
    """Turns `(channels, height, width)` as EXIF says."""
    return (pixels.transpose(1, 2) if orientation >= 5 else pixels).flip(_FLIPS.get(orientation, ()))


def _of_stored_type(pixels: torch.Tensor, described: ImageFormat) -> torch.Tensor:
    """Scales values of another type than the model's to those that its files store, as in training.

    In memory whole numbers of 32 and 64 bits, and floats above 1, are taken for stored values.
    """
    if pixels.dtype == torch.bool:
        pixels = pixels.to(torch.uint8) * 255
    if pixels.dtype in (torch.uint32, torch.uint64):  # torch compares none of these
        pixels = pixels.to(torch.int64)
    stored, own = described.dtype, str(pixels.dtype).rpartition(".")[2]
    floats = pixels.is_floating_point()
    if own == stored or (floats and stored.startswith("float")):
        return pixels
    by_type = described.is_uint8 or described.range_source == "type" or (own == "uint8" and described.takes_pictures)
    fractions = floats and bool((pixels >= 0).all() and (pixels <= 1).all())
    if own in ("uint8", "uint16") or fractions:
        low, high = (0.0, 1.0) if fractions else TYPE_RANGES[own]
        how = f"{low:g} to {high:g} becomes the whole range" if by_type else "values are taken as they are"
        if own == "uint8" and not fractions:
            how += (
                "; pipelines make 8 bits of every file and clip it at 255: open such files as arrays of stored values"
            )
        logger.warning_once(f"images of {own} for a model of {stored} ({described.describe()}): {how}")
        if not by_type:
            return pixels
        start, end = described.value_range[0]
        scaled = (pixels.double() - low) / (high - low) * (end - start) + start
        return (scaled + 0.5).floor() if described.is_uint8 else scaled
    if by_type and stored.startswith("float") and bool((pixels < 0).any() or (pixels > 1).any()):
        raise ValueError(
            f"an image of {own} has no fixed range for a model of {described.describe()}: give 8 or 16 bits without sign, "
            "or floats of 0 to 1"
        )
    return pixels


def _fits(count: int, described: ImageFormat) -> bool:
    if isinstance(described.channels, tuple):
        return count == described.num_channels or max(described.channels) <= count <= _MAX_CHANNELS
    return count in (1, 3, 4) if described.channels == "rgb" else count in (1, 2, 3, 4)


def _has_channels_first(shape: tuple[int, ...], described: ImageFormat, data_format: str | None, first: bool) -> bool:
    if data_format is not None:
        return str(getattr(data_format, "value", data_format)) in ("channels_first", "FIRST")
    ends = [_fits(shape[0], described), _fits(shape[2], described)]
    return first if ends[0] == ends[1] else ends[0]


def _choose(pixels: torch.Tensor, described: ImageFormat) -> torch.Tensor:
    count, numbers = pixels.shape[0], described.channels
    if isinstance(numbers, tuple):
        if count >= max(numbers):
            return pixels[[number - 1 for number in numbers]]
        if count == len(numbers):
            return pixels
        raise ValueError(
            f"an image must have the {len(numbers)} channels of the model ({', '.join(described.names)}), or all "
            f"{max(numbers)} or more of the file, got {count}"
        )
    if numbers == "rgb":
        if count < 3:
            return pixels[:1].expand(3, -1, -1)
        return pixels[:3]
    if count < 3:
        return pixels[:1]
    weights = torch.tensor(_LUMINANCE, dtype=torch.float64)[:, None, None]
    gray = (pixels[:3].double() * weights).sum(0, keepdim=True)
    return (gray.round() if described.is_uint8 or pixels.dtype == torch.uint8 else gray).float()
