"""What a model predicts of an image, whole or in tiles: maps in parts, objects, classes."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torchvision.ops import batched_nms
from transformers.utils import ModelOutput

from hf_geossl.data.readers.tiff_windows import Box
from hf_geossl.tasks.prediction.opened_images import OpenedImage
from hf_geossl.tasks.prediction.task_models import Inputs, TaskModel
from hf_geossl.tasks.prediction.tiling import Tiling, blend

Part = tuple[Box, np.ndarray]  # a box, and the values of its pixels (channels, height, width), float32

# as transformers' post_process_semantic_segmentation and post_process_depth_estimation do
_RESIZED = {"segmentation": "bilinear", "depth": "bicubic"}
_CUBIC = -0.75  # the slope of bicubic weights at a pixel's distance, torch's
_BAND = 2**24  # values of a map that are made at a time
_AT_EDGE = 2  # pixels from the edge of a tile within which a box counts as cut
_COVERED = 0.6  # share of a cut box which, covered by a whole one of its class, makes it a part of that


@dataclass(frozen=True)
class Objects:
    """Objects of an image, surest first.

    Args:
        boxes (`numpy.ndarray` of shape `(objects, 4)`): x1, y1, x2, y2 in pixels of the image, float32.
        labels (`numpy.ndarray` of shape `(objects,)`): numbers of their classes.
        scores (`numpy.ndarray` of shape `(objects,)`): 0 to 1, float32.
    """

    boxes: np.ndarray
    labels: np.ndarray
    scores: np.ndarray


def whole_box(image: OpenedImage) -> Box:
    """The box of a whole image."""
    return 0, 0, image.height, image.width


def whole_input(model: TaskModel, image: OpenedImage) -> Inputs:
    """The model's input of a whole image, a batch of one; `BrokenImageError` where there is none."""
    return model.prepare(image.read(whole_box(image)))


def outputs_of_each(model: TaskModel, inputs: Sequence[Inputs]) -> list[ModelOutput]:
    """Runs the model on inputs of one shape together, and gives what it makes of each, as of a batch of one."""
    outputs = model.predict(inputs)
    tensors = {name: value for name, value in outputs.items() if isinstance(value, torch.Tensor) and value.ndim}
    return [
        type(outputs)(**{name: value[index : index + 1] for name, value in tensors.items()})
        for index in range(len(inputs))
    ]


def predict_classes(model: TaskModel, image: OpenedImage, outputs: ModelOutput | None = None) -> np.ndarray:
    """Classifies an image.

    Args:
        model ([`TaskModel`]): of classification.
        image ([`OpenedImage`]): read whole.
        outputs (`ModelOutput`, *optional*): of the model for it, where there are some already.

    Returns:
        `numpy.ndarray` of shape `(classes,)`: probabilities, float32; of a model of several labels each by itself, of one that
        regresses its values.
    """
    made: Any = outputs or model.predict([whole_input(model, image)])
    logits = made.logits[0].float()
    problem = getattr(model.module.config, "problem_type", None)
    if problem == "regression":
        return logits.cpu().numpy()
    return (logits.sigmoid() if problem == "multi_label_classification" else logits.softmax(dim=0)).cpu().numpy()


def predict_map(
    model: TaskModel,
    image: OpenedImage,
    tiling: Tiling | None,
    batch_size: int,
    outputs: ModelOutput | None = None,
) -> Iterator[Part]:
    """Predicts a value of each pixel: probabilities of classes, or depth.

    What a model gives is resized to the size of what it was given, an image or a tile, as the processors of transformers do it:
    logits bilinearly, depths bicubically. Probabilities are taken after that.

    Args:
        model ([`TaskModel`]): of segmentation or depth.
        image ([`OpenedImage`]): the image.
        tiling ([`Tiling`], *optional*): its tiles; the image is predicted whole by default.
        batch_size (`int`): tiles that are predicted at a time.
        outputs (`ModelOutput`, *optional*): of the model for the whole image, where there are some already.

    Yields:
        `tuple`: parts that cover the image once; those of one height from left to right, and then those below.
    """
    if tiling is not None:
        yield from blend(tiling, _tiles(model, image, tiling, batch_size))
        return
    raw = _raw_map(model, outputs or model.predict([whole_input(model, image)]))
    rows = max(1, _BAND // (raw.shape[1] * image.width))
    for top in range(0, image.height, rows):
        height = min(rows, image.height - top)
        band = _final(model, resized_rows(raw, image.height, image.width, top, height, _RESIZED[model.kind]))
        yield (top, 0, height, image.width), band[0].cpu().numpy()


def _tiles(model: TaskModel, image: OpenedImage, tiling: Tiling, batch_size: int) -> Iterator[np.ndarray]:
    channels = max(1, len(model.names))
    size, mode = (tiling.rows.size, tiling.columns.size), _RESIZED[model.kind]
    for boxes in _batches(tiling.boxes, batch_size):
        read = [_tile_input(model, image, box) for box in boxes]
        inputs = [one for one in read if one is not None]
        raw = iter(_raw_map(model, model.predict(inputs)).split(1) if inputs else ())
        for one in read:  # resized one by one: a tile of many classes takes much memory
            if one is None:
                yield np.zeros((channels, *size), np.float32)
                continue
            # under no name, under which it would stay beside the next one
            yield _final(model, F.interpolate(next(raw), size, mode=mode, align_corners=False))[0].cpu().numpy()


def _batches(boxes: Sequence[Box], size: int) -> Iterator[Sequence[Box]]:
    for start in range(0, len(boxes), size):
        yield boxes[start : start + size]


def _tile_input(model: TaskModel, image: OpenedImage, box: Box) -> dict[str, torch.Tensor] | None:
    """The input of a tile; None where no pixel of it has a value, so that nothing is predicted there."""
    pixels, missing = image.read(box), image.missing(box)
    return None if missing is not None and missing.all() else model.prepare(pixels)


def _raw_map(model: TaskModel, outputs: Any) -> torch.Tensor:
    """Logits `(batch, classes, height, width)`, or depths of one channel, at the model's own resolution, float32."""
    values: torch.Tensor = outputs.predicted_depth if model.kind == "depth" else outputs.logits
    return (values[:, None] if values.ndim == 3 else values).float()


def _final(model: TaskModel, values: torch.Tensor) -> torch.Tensor:
    """Probabilities of logits, which they replace, since maps of many classes take much memory; depths as they are."""
    if model.kind == "depth":
        return values
    values = values.sub_(values.amax(dim=1, keepdim=True)).exp_()
    return values.div_(values.sum(dim=1, keepdim=True))


def resized_rows(
    values: torch.Tensor, height: int, width: int, top: int, rows: int, mode: str = "bilinear"
) -> torch.Tensor:
    """Some rows of a map that is resized, without making the others.

    Args:
        values (`torch.Tensor` of shape `(batch, channels, h, w)`): float32.
        height, width (`int`): that it is resized to.
        top, rows (`int`): the first row, and how many.
        mode (`str`): `"bilinear"` or `"bicubic"`.

    Returns:
        `torch.Tensor` of shape `(batch, channels, rows, width)`: those rows of `interpolate(..., align_corners=False)`.
    """
    last = values.shape[2] - 1
    places = torch.arange(top, top + rows, device=values.device, dtype=torch.float64)
    places = (places + 0.5) * (values.shape[2] / height) - 0.5
    places = places if mode == "bicubic" else places.clamp(0, last)
    above = places.floor().long()
    share = (places - above).float()[:, None]
    if mode == "bicubic":
        weights = {-1: _far(1 + share), 0: _near(share), 1: _near(1 - share), 2: _far(2 - share)}
    else:
        weights = {0: 1 - share, 1: share}
    mixed = torch.zeros_like(values[:, :, :1]).expand(-1, -1, rows, -1)
    for step, weight in weights.items():
        mixed = mixed + values[:, :, (above + step).clamp(0, last)] * weight
    return F.interpolate(mixed, (rows, width), mode=mode, align_corners=False)


def _near(distance: torch.Tensor) -> torch.Tensor:
    """The weight of a bicubic neighbour at up to a pixel (Keys 1981, "Cubic convolution interpolation", eq. 15)."""
    return ((_CUBIC + 2) * distance - (_CUBIC + 3)) * distance.square() + 1


def _far(distance: torch.Tensor) -> torch.Tensor:
    """That of one at 1 to 2 pixels."""
    return ((_CUBIC * distance - 5 * _CUBIC) * distance + 8 * _CUBIC) * distance - 4 * _CUBIC


def predict_objects(
    model: TaskModel,
    image: OpenedImage,
    tiling: Tiling | None,
    batch_size: int,
    *,
    score_threshold: float,
    iou_threshold: float,
    outputs: ModelOutput | None = None,
) -> Objects:
    """Finds objects.

    Of tiles those are joined that are one object: a box that ends at the edge of its tile is left out where another of its class,
    of a neighbour that sees more of it, covers most of it; of others that overlap the surest one stays.

    Args:
        model ([`TaskModel`]): of detection.
        image ([`OpenedImage`]): the image.
        tiling ([`Tiling`], *optional*): its tiles; the image is taken whole by default.
        batch_size (`int`): tiles that are predicted at a time.
        score_threshold (`float`): objects of smaller scores are left out.
        iou_threshold (`float`): overlap, as intersection over union, from which boxes of one class in tiles are one object.
        outputs (`ModelOutput`, *optional*): of the model for the whole image, where there are some already.

    Returns:
        [`Objects`]: of the image.
    """
    found: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]] = []
    if outputs is not None:
        objects = _detected(model, outputs, score_threshold, [(image.height, image.width)])[0]
        found.append(_placed(objects, whole_box(image), image))
    remaining = [] if outputs is not None else tiling.boxes if tiling is not None else [whole_box(image)]
    for boxes in _batches(remaining, batch_size):
        read = [(box, _tile_input(model, image, box)) for box in boxes]
        with_values = [(box, one) for box, one in read if one is not None]
        if not with_values:
            continue
        of_tiles = model.predict([one for _, one in with_values])
        sizes = [(height, width) for (_, _, height, width), _ in with_values]
        for (box, _), objects in zip(with_values, _detected(model, of_tiles, score_threshold, sizes), strict=True):
            found.append(_placed(objects, box, image))
    if not found:
        return Objects(np.zeros((0, 4), np.float32), np.zeros(0, np.int64), np.zeros(0, np.float32))
    placed, labels, scores, cut = (torch.cat(parts) for parts in zip(*found, strict=True))
    if tiling is not None:
        kept = _whole_ones(placed, labels, cut)
        placed, labels, scores = placed[kept], labels[kept], scores[kept]
        kept = batched_nms(placed, scores, labels, iou_threshold)
        placed, labels, scores = placed[kept], labels[kept], scores[kept]
    order = scores.argsort(descending=True, stable=True)
    return Objects(placed[order].numpy(), labels[order].numpy(), scores[order].numpy())


def _detected(
    model: TaskModel, outputs: Any, threshold: float, sizes: Sequence[tuple[int, int]]
) -> list[dict[str, torch.Tensor]]:
    """Scores, labels and boxes (x1, y1, x2, y2 in pixels) of each image of a batch, by the processor where it can."""
    own = getattr(model.processor, "post_process_object_detection", None)
    if own is not None:
        made: list[dict[str, torch.Tensor]] = own(outputs, threshold=threshold, target_sizes=list(sizes))
        return made
    result = []
    for logits, boxes, (height, width) in zip(outputs.logits, outputs.pred_boxes, sizes, strict=True):
        scores, labels = logits.softmax(dim=-1)[:, :-1].max(dim=-1)  # the last class is "no object"
        x, y, wide, high = boxes.unbind(-1)
        corners = torch.stack([x - wide / 2, y - high / 2, x + wide / 2, y + high / 2], dim=-1)
        corners = corners * corners.new_tensor([width, height, width, height])
        sure = scores > threshold
        result.append({"scores": scores[sure], "labels": labels[sure], "boxes": corners[sure]})
    return result


def _placed(
    objects: dict[str, torch.Tensor], box: Box, image: OpenedImage
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Boxes of a tile in the image, inside of the tile; their labels and scores; and which end at an edge inside the image."""
    top, left, height, width = box
    boxes = objects["boxes"].detach().cpu().float().reshape(-1, 4)
    boxes = boxes.clamp(min=0).minimum(boxes.new_tensor([width, height, width, height]))
    x1, y1, x2, y2 = boxes.unbind(-1)
    cut = ((x1 < _AT_EDGE) & (left > 0)) | ((x2 > width - _AT_EDGE) & (left + width < image.width))
    cut |= ((y1 < _AT_EDGE) & (top > 0)) | ((y2 > height - _AT_EDGE) & (top + height < image.height))
    filled = (x2 > x1) & (y2 > y1)
    placed = boxes + boxes.new_tensor([left, top, left, top])
    labels, scores = objects["labels"].detach().cpu().long(), objects["scores"].detach().cpu().float()
    return placed[filled], labels[filled], scores[filled], cut[filled]


def _whole_ones(boxes: torch.Tensor, labels: torch.Tensor, cut: torch.Tensor) -> torch.Tensor:
    """Which boxes stay: all that are not cut, and those cut ones that no other larger one of their class covers."""
    areas = (boxes[:, 2:] - boxes[:, :2]).prod(dim=1)
    stay = torch.ones(len(boxes), dtype=torch.bool)
    for index in cut.nonzero().flatten().tolist():
        others = (labels == labels[index]) & (areas > areas[index])
        shared = torch.minimum(boxes[others, 2:], boxes[index, 2:]) - torch.maximum(boxes[others, :2], boxes[index, :2])
        covered = shared.clamp(min=0).prod(dim=1) / areas[index]
        stay[index] = not bool((covered > _COVERED).any())
    return stay
