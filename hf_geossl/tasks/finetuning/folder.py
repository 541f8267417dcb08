"""The folder of a fine-tuned model: weights first, then what was measured of them, their card and pictures."""

import logging
import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from hf_geossl.evaluation.registry import ABOUT, RESULTS
from hf_geossl.evaluation.results import write_json
from hf_geossl.hub.card import write_card
from hf_geossl.hub.export import MAX_SHARD_SIZE
from hf_geossl.hub.run_record import is_hub_id, weights_digest, write_arguments, write_record
from hf_geossl.methods import FINE_TUNING_CURVE, FINE_TUNING_SAMPLES
from hf_geossl.tasks.finetuning.curve import draw_curve
from hf_geossl.tasks.finetuning.kinds import FineTuningTask
from hf_geossl.tasks.finetuning.kinds.base import Floors
from hf_geossl.tasks.finetuning.measuring import Measured, as_result, picture_of
from hf_geossl.tasks.finetuning.models import image_processor_of
from hf_geossl.tasks.finetuning.splits import LabelledDataset, Split
from hf_geossl.training.outputs.attempts import attempt
from hf_geossl.training.pictures.base import save_picture

logger = logging.getLogger(__name__)


def result_name(task: FineTuningTask) -> str:
    """What results and cards call the measurement of a task."""
    return f"finetuned_{task.name}"


def save_folder(model: PreTrainedModel, task: FineTuningTask, folder: Path) -> None:
    """Writes weights, configuration, code and image processor; each file is whole or absent, others stay."""
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder, prefix=".export-") as temporary:
        staged = Path(temporary)
        model.save_pretrained(staged, max_shard_size=MAX_SHARD_SIZE)
        image_processor_of(model, task).save_pretrained(staged)
        for path in staged.glob("*.safetensors"):
            shutil.copymode(staged / "config.json", path)  # safetensors lets nobody else read
        for path in sorted(staged.iterdir()):
            os.replace(path, folder / path.name)


def write_results(
    folder: Path,
    task: FineTuningTask,
    result: Mapping[str, Any],
    data: LabelledDataset,
    split: Split,
    batch_size: int,
    command: str | None = None,
) -> dict[str, Any]:
    """Writes `results.json`, by which a card knows what was measured, where, and of which weights."""
    about = {
        "dataset": data.name,
        "dataset_id": data.dataset if is_hub_id(data.dataset) else None,
        "config_name": data.config_name,
        "split": f"{data.train_split}, held out" if split.held_out else split.samples.description["split"],
        "images": len(split),
        "limit": data.limit,
        "image_size": split.samples.size,
        "batch_size": batch_size,
        "data_fingerprint": split.samples.fingerprint[:16],
        "weights_digest": weights_digest(folder),
        "precision": "float32",
        "command": command,
    }
    content = {
        ABOUT: {key: value for key, value in about.items() if value is not None},
        result_name(task): dict(result),
    }
    write_json(folder / RESULTS, content)
    return content


def describe_folder(
    folder: Path,
    task: FineTuningTask,
    measured: Measured,
    split: Split,
    floors: Floors,
    history: list[dict[str, Any]],
    record: Mapping[str, Any],
    arguments: Mapping[str, Any],
    data: LabelledDataset,
    batch_size: int,
) -> dict[str, Any]:
    """Writes results, curve, samples, record and card of a folder with weights; what fails is a warning."""
    names = record["labels"]
    device = torch.device(record["device"])
    result = as_result(task, measured, split, names, floors, device)
    content = write_results(folder, task, result, data, split, batch_size, record.get("measured_by"))

    def draw() -> None:
        save_picture(draw_curve(history, task, result), folder / FINE_TUNING_CURVE.file)
        save_picture(picture_of(task, measured, split, names, folder.name)(), folder / FINE_TUNING_SAMPLES.file)

    def describe() -> None:
        shared = {key: value for key, value in record.items() if key not in ("labels", "device", "measured_by")}
        write_record(shared, folder)
        write_arguments(arguments, folder)

    attempt("a picture", draw, "the model works without it")
    attempt("the record of the run", describe, "the model works without it")
    attempt("the model card", write_card, f"`geossl card {folder.name}` makes it again", folder)
    return content
