"""Tables and sheets of all images' predictions, made of their records."""

import csv
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from hf_geossl.data.contact_sheet import MOST, Thumbnails, draw_sheet, rank_of
from hf_geossl.data.rasters import Raster
from hf_geossl.data.wording import counted
from hf_geossl.tasks.prediction.image_results import OVERLAYS
from hf_geossl.tasks.prediction.map_files import PNG_LEVEL, class_colors, whole_file
from hf_geossl.tasks.prediction.overlays import Entry, depth_halves, depth_scale, with_legend
from hf_geossl.tasks.prediction.records import Record, Records
from hf_geossl.tasks.prediction.task_models import TaskModel

SUMMARY, SHEET = "predict.json", "contact_sheet.png"


def write_summaries(
    model: TaskModel, records: Records, names: Sequence[str], settings: dict[str, Any], broken: dict[str, str]
) -> dict[str, Any]:
    """Writes the tables, the contact sheet and `predict.json` of a folder of predictions.

    Args:
        model ([`TaskModel`]): the model.
        records ([`Records`]): of the images.
        names (`Sequence[str]`): of the images, in order; others in the folder are left out.
        settings (`dict`): of the run.
        broken (`dict[str, str]`): image -> why it could not be used.

    Returns:
        `dict`: what `predict.json` holds.
    """
    done = [records.by_image[name] for name in names if name in records.by_image and name not in broken]
    if model.kind == "classification":
        _write_labels(model, done, records.folder / "labels.csv")
    elif model.kind == "detection":
        _write_boxes(model, done, records.folder)
    if settings["overlays"] and done:
        sheet = _draw_contact_sheet(model, done, records)
        with whole_file(records.folder / SHEET) as file:
            sheet.save(file, "PNG", compress_level=PNG_LEVEL)
    summary: dict[str, Any] = {
        "task": model.kind,
        "settings": settings,
        "classes": list(model.names),
        "images": len(done),
        "broken": {"count": len(broken), "images": broken},
    }
    if model.kind == "segmentation":
        pixels = np.sum([record["pixels"] for record in done] or [[0] * len(model.names)], axis=0)
        summary["pixels"] = dict(zip(model.names, pixels.tolist(), strict=True))
    with whole_file(records.folder / SUMMARY) as file:
        file.write_text(json.dumps(summary, indent=1), encoding="utf-8")
    return summary


def _write_labels(model: TaskModel, done: Sequence[Record], path: Path) -> None:
    """A row an image: its class, and the probability of each."""
    several = getattr(model.module.config, "problem_type", None) == "multi_label_classification"
    with whole_file(path) as file, open(file, "w", newline="", encoding="utf-8") as opened:
        writer = csv.writer(opened)
        writer.writerow(["image", "label", "probability", *model.names])
        for record in done:
            values = record["probabilities"]
            best = int(np.argmax(values))
            label = model.names[best]
            if several:
                label = "; ".join(name for name, value in zip(model.names, values, strict=True) if value >= 0.5)
            writer.writerow([record["image"], label, values[best], *values])


def _write_boxes(model: TaskModel, done: Sequence[Record], folder: Path) -> None:
    """The objects of all images as COCO's JSON, and as a table with a row an object."""
    coco: dict[str, list[dict[str, Any]]] = {
        "images": [],
        "categories": [{"id": number, "name": name} for number, name in enumerate(model.names)],
        "annotations": [],
    }
    rows: list[list[object]] = []
    for number, record in enumerate(done, start=1):
        height, width = record["size"]
        coco["images"].append({"id": number, "file_name": record["image"], "width": width, "height": height})
        for box, label, score in zip(record["boxes"], record["labels"], record["scores"], strict=True):
            x1, y1, x2, y2 = box
            rows.append([record["image"], model.names[label], score, x1, y1, x2, y2])
            wide, high = round(x2 - x1, 2), round(y2 - y1, 2)
            coco["annotations"].append(
                {
                    "id": len(rows),
                    "image_id": number,
                    "category_id": label,
                    "bbox": [x1, y1, wide, high],
                    "area": round(wide * high, 2),
                    "iscrowd": 0,
                    "score": score,
                }
            )
    with whole_file(folder / "boxes.json") as file:
        file.write_text(json.dumps(coco), encoding="utf-8")
    with whole_file(folder / "boxes.csv") as file, open(file, "w", newline="", encoding="utf-8") as opened:
        writer = csv.writer(opened)
        writer.writerow(["image", "label", "score", "x1", "y1", "x2", "y2"])
        writer.writerows(rows)


def _draw_contact_sheet(model: TaskModel, done: Sequence[Record], records: Records) -> Image.Image:
    """Pictures of up to 48 images, with the classes' colours below."""
    most = MOST // 2 if model.kind == "depth" else MOST
    chosen = sorted((one for one in done if "shown" in one), key=lambda one: rank_of(one["image"]))[:most]
    thumbnails = Thumbnails()
    for record in chosen:
        path = next(records.path_of(name) for name in record["files"] if name.startswith(f"{OVERLAYS}/"))
        with Image.open(path) as picture:
            shown = picture.convert("RGB").crop((0, 0, *record["shown"]))
        name = _caption(model, record)
        if model.kind == "depth":  # whose overlay is two pictures
            shown, depth = depth_halves(shown)
            thumbnails.add(f"{name}: depth", Raster(np.asarray(depth), "PNG"))
        thumbnails.add(name, Raster(np.asarray(shown), "PNG"))
    some = f", {len(chosen)} of them here" if len(chosen) < len(done) else ""
    sheet = draw_sheet(thumbnails, {}, f"{model.name}: {counted(len(done), 'image')}{some}")
    return with_legend(sheet, _legend(model, done))


def _caption(model: TaskModel, record: Record) -> str:
    if model.kind != "classification":
        return str(record["image"])
    best = int(np.argmax(record["probabilities"]))
    return f"{record['image']}: {model.names[best]}"


def _legend(model: TaskModel, done: Sequence[Record]) -> list[Entry]:
    """The classes that occur in any image, with their colours."""
    if model.kind == "depth":
        return depth_scale()
    counts = np.zeros(len(model.names), np.int64)
    for record in done:
        if model.kind == "segmentation":
            counts += np.array(record["pixels"])
        elif model.kind == "detection":
            counts += np.bincount(record["labels"], minlength=len(counts)).astype(np.int64)
    colors = class_colors(len(counts)).tolist()
    order = np.argsort(-counts, kind="stable")
    found: list[Entry] = [(model.names[index], tuple(colors[index])) for index in order if counts[index]]
    return found or ([("nothing found", None)] if model.kind == "detection" else [])
