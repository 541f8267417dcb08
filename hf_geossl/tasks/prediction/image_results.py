"""The files of one image's predictions, and its record."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image
from transformers.utils import ModelOutput

from hf_geossl.tasks.prediction.map_files import PNG_LEVEL, MapKind, Pixels, whole_file, write_map, write_tiff_map
from hf_geossl.tasks.prediction.opened_images import OpenedImage, TiffImage
from hf_geossl.tasks.prediction.overlays import (
    Entry,
    boxes_legend,
    boxes_overlay,
    depth_legend,
    depth_overlay,
    label_legend,
    mask_legend,
    mask_overlay,
    shown_size,
    with_legend,
)
from hf_geossl.tasks.prediction.predictors import predict_classes, predict_map, predict_objects
from hf_geossl.tasks.prediction.settings import PredictionSettings
from hf_geossl.tasks.prediction.task_models import TaskModel
from hf_geossl.tasks.prediction.tiling import Tiling

if TYPE_CHECKING:  # the page of a Space, where datasets is not installed, shows predictions and records none
    from hf_geossl.tasks.prediction.records import Record, Records

Drawn = tuple[Image.Image, list[Entry]]  # a picture and its legend

OVERLAYS = "overlays"
_FOLDERS = {"segmentation": "masks", "depth": "depth"}


def predict_image(
    model: TaskModel,
    image: OpenedImage,
    tiling: Tiling | None,
    settings: PredictionSettings,
    name: str,
    records: "Records",
    overlays: bool,
    outputs: ModelOutput | None = None,
) -> "Record":
    """Predicts an image, and writes its map and its picture.

    Args:
        model ([`TaskModel`]): the model.
        image ([`OpenedImage`]): the image.
        tiling ([`Tiling`], *optional*): its tiles.
        settings ([`PredictionSettings`]): how.
        name (`str`): of the image.
        records ([`Records`]): give the files' names.
        overlays (`bool`): whether a picture is written.
        outputs (`ModelOutput`, *optional*): of the model for the whole image, where it was predicted together with others.

    Returns:
        `dict`: "files" and what was predicted, plain values; "shown", the size of the picture without its legend.
    """
    files: list[str] = []
    sketch = None
    if model.kind in _FOLDERS:
        as_tiff = model.kind == "depth" or isinstance(image, TiffImage)
        files.append(records.name_for(name, _FOLDERS[model.kind], ".tif" if as_tiff else ".png"))
        sketch = MapSketch(model, image)
        parts = sketch.passing(predict_map(model, image, tiling, settings.batch_size, outputs))
        write_image_map(parts, sketch.kind, image, records.path_of(files[0]))
    result, drawn = _result(model, image, tiling, settings, sketch, overlays, outputs)
    if drawn is not None:
        files.append(records.name_for(name, OVERLAYS, ".png"))
        with whole_file(records.path_of(files[-1])) as file:
            with_legend(*drawn).save(file, "PNG", compress_level=PNG_LEVEL)
        result["shown"] = list(drawn[0].size)
    return {"files": files, **result}


def show_prediction(model: TaskModel, image: OpenedImage, settings: PredictionSettings) -> Drawn:
    """Predicts an image whole, without any file.

    Args:
        model ([`TaskModel`]): the model.
        image ([`OpenedImage`]): the image.
        settings ([`PredictionSettings`]): how.

    Returns:
        `tuple`: the picture of what was predicted, and its legend.
    """
    sketch = MapSketch(model, image) if model.kind in _FOLDERS else None
    if sketch is not None:
        for _ in sketch.passing(predict_map(model, image, None, settings.batch_size)):
            pass
    drawn = _result(model, image, None, settings, sketch, True)[1]
    assert drawn is not None
    return drawn


def _result(
    model: TaskModel,
    image: OpenedImage,
    tiling: Tiling | None,
    settings: PredictionSettings,
    sketch: "MapSketch | None",
    draw: bool,
    outputs: ModelOutput | None = None,
) -> tuple[dict[str, Any], Drawn | None]:
    """What is remembered of an image's prediction, and its picture."""
    if sketch is not None:
        return sketch.result(), sketch.draw() if draw else None
    if model.kind == "classification":
        probabilities = predict_classes(model, image, outputs)
        result = {"probabilities": [round(float(value), 6) for value in probabilities]}
        if not draw:
            return result, None
        picture = image.picture()
        enlarged = picture.resize(shown_size(picture), Image.Resampling.BILINEAR)
        return result, (enlarged, label_legend(probabilities, model.names))
    thresholds = {"score_threshold": settings.score_threshold, "iou_threshold": settings.iou_threshold}
    objects = predict_objects(model, image, tiling, settings.batch_size, outputs=outputs, **thresholds)
    result = {
        "boxes": np.round(objects.boxes.astype(float), 2).tolist(),
        "labels": objects.labels.tolist(),
        "scores": np.round(objects.scores.astype(float), 6).tolist(),
    }
    if not draw:
        return result, None
    overlay = boxes_overlay(image.picture(), objects, model.names, (image.width, image.height))
    return result, (overlay, boxes_legend(objects, model.names))


def write_image_map(parts: Iterator[Pixels], kind: MapKind, image: OpenedImage, path: Path) -> None:
    """Writes a map of an image: of a TIFF image in parts, with its place on the Earth."""
    size = (image.height, image.width)
    if isinstance(image, TiffImage):
        write_tiff_map(parts, size, kind, path, image.map_tags, image.has_nodata)
    else:
        write_map(parts, size, kind, path)


class MapSketch:
    """Turns predicted values into those of the file, part by part, and sketches them for the picture meanwhile.

    Args:
        model ([`TaskModel`]): of segmentation or depth.
        image ([`OpenedImage`]): the image.
    """

    def __init__(self, model: TaskModel, image: OpenedImage) -> None:
        self.model, self.image = model, image
        classes = model.kind == "segmentation"
        self.kind = MapKind.of_classes(len(model.names)) if classes else MapKind.of_depths()
        self.sketch = np.zeros((image.preview.height, image.preview.width), self.kind.dtype)
        self.counts = np.zeros(max(1, len(model.names)), np.int64)
        self._low, self._high = np.inf, -np.inf

    def passing(self, parts: Iterator[tuple[tuple[int, int, int, int], np.ndarray]]) -> Iterator[Pixels]:
        """Passes values of a map `(channels, height, width)` on as those of the file `(height, width)`."""
        preview = self.image.preview
        for box, values in parts:
            made = (
                values.argmax(axis=0).astype(self.kind.dtype) if self.model.kind == "segmentation" else values[0].copy()
            )
            missing = self.image.missing(box)
            known = made if missing is None else made[~missing]
            if self.model.kind == "segmentation":
                self.counts += np.bincount(known.ravel(), minlength=len(self.counts))
            elif known.size:
                self._low, self._high = min(self._low, float(known.min())), max(self._high, float(known.max()))
            if missing is not None:
                made[missing] = self.kind.nodata
            rows, at_rows = preview.centers(box[0], box[2], rows=True)
            columns, at_columns = preview.centers(box[1], box[3], rows=False)
            self.sketch[np.ix_(at_rows, at_columns)] = made[np.ix_(rows, columns)]
            yield box, made

    @property
    def shares(self) -> list[float]:
        """Of each class the share of the pixels that have a value."""
        return [float(count) for count in self.counts / max(1, self.counts.sum())]

    def result(self) -> dict[str, Any]:
        """What is remembered of the map."""
        if self.model.kind == "segmentation":
            return {"pixels": self.counts.tolist()}
        return {"range": [self._low, self._high] if self._low <= self._high else []}

    def draw(self) -> Drawn:
        """The picture and its legend."""
        picture = self.image.picture()
        if self.model.kind == "segmentation":
            count = len(self.model.names)
            painted = mask_overlay(picture, self.sketch, count, int(self.kind.nodata))
            return painted, mask_legend(self.shares, self.model.names)
        painted, ends = depth_overlay(picture, self.sketch)
        return painted, depth_legend(ends, self.model.depth_unit)
