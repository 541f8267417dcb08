"""Exports the trunk of a pretraining model: weights, configuration, code, image processor, and the record of the run."""

import copy
import os
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from transformers import BaseImageProcessor, DPTImageProcessor, SegformerImageProcessor, YolosImageProcessor

from hf_geossl.hub.run_record import write_arguments, write_record
from hf_geossl.modeling.image_format import IMAGENET_MEAN, IMAGENET_STD, ImageFormat
from hf_geossl.modeling.image_processing_vit import GeometricImageProcessor
from hf_geossl.modeling.teacher_student import TeacherStudentModel

MAX_SHARD_SIZE = "5GB"


def make_image_processor(
    size: tuple[int, int],
    mean: Sequence[float] = IMAGENET_MEAN,
    std: Sequence[float] = IMAGENET_STD,
    image_format: ImageFormat | None = None,
    *,
    task: str | None = None,
) -> BaseImageProcessor:
    """The image processor that fits a model.

    Args:
        size (`(height, width)`): In pixels.
        mean, std (three `float`): Normalisation of images in [0, 1]; ImageNet's by default.
        image_format (`ImageFormat`, *optional*): What the images are; with its own mean and deviation, where it is not RGB
            of 8 bits.
        task (`str`, *optional*): What the model does: "classification", "segmentation", "depth" or "detection". By default
            nothing yet.

    Returns:
        `BaseImageProcessor`: Resizes bilinearly to `size`, and normalises. For RGB of 8 bits, to which it converts grey,
        palette and transparent images, transformers' own `SegformerImageProcessor`, which does to pixels what its
        `ViTImageProcessor` does, and turns logits into masks, as pipelines ask for, and for depth and detection those
        whose results pipelines read; `GeometricImageProcessor` for others. Of a model that does something already it
        resizes bicubically, as images are read in its training.
    """
    height, width = size
    if image_format is not None and not image_format.is_rgb8:
        return GeometricImageProcessor(image_format.to_dict(), size={"height": height, "width": width})
    shared: dict[str, Any] = {
        "size": {"height": height, "width": width},
        "image_mean": list(mean),
        "image_std": list(std),
        "resample": 2 if task is None else 3,
        "do_convert_rgb": True,
    }
    if task == "depth":
        return DPTImageProcessor(**shared, do_pad=False, keep_aspect_ratio=False, ensure_multiple_of=1)
    if task == "detection":
        return YolosImageProcessor(**shared, do_pad=False)
    return SegformerImageProcessor(**shared, do_reduce_labels=False)


def export_model(
    model: TeacherStudentModel,
    output_dir: str | Path,
    *,
    weights: str | None = None,
    image_processor: BaseImageProcessor | None = None,
    record: Mapping[str, Any] | None = None,
    arguments: Mapping[str, Any] | None = None,
) -> Path:
    """Writes the trunk of a pretraining model as a folder that every Auto class opens; `hub.card.write_card` describes it.

    Files are written beside the folder first and then moved in one by one; files of other names stay.

    Args:
        model (`PreTrainedModel`): A `...ForPreTraining` model.
        output_dir (`str` or `Path`): The folder.
        weights (`"teacher"` or `"student"`, *optional*): Whose trunk; the teacher's by default, where there is one.
        image_processor (*optional*): Saved beside the model.
        record (`Mapping`, *optional*): What is known of the run (see `hub.run_record.write_record`), for `training_run.json`;
            whose weights they are is added.
        arguments (`Mapping`, *optional*): The run's arguments as `shared_arguments` gives them, for `training_args.yaml`.

    Returns:
        `Path`: The folder.

    Raises:
        ValueError: For other `weights`, or a teacher that the method does not have.
    """
    if weights is None:
        weights = "student" if model.teacher is None else "teacher"
    if weights not in ("teacher", "student"):
        raise ValueError(f"weights must be 'teacher' or 'student', got {weights!r}")
    if weights == "teacher" and model.teacher is None:
        raise ValueError("weights must be 'student': this method has no teacher, got 'teacher'")
    prefix = model.base_model_prefix
    source = getattr(model.teacher, prefix) if weights == "teacher" else getattr(model, prefix)
    trunk = copy.deepcopy(source)  # not made anew, which would draw random numbers
    trunk.config.__dict__.pop("use_cache", None)  # the Trainer's, meant for text
    if not trunk.config.use_mask_token:  # only pretraining has one then
        trunk.embeddings.mask_token = None
    folder = Path(output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder, prefix=".export-") as temporary:
        staged = Path(temporary)
        trunk.save_pretrained(staged, max_shard_size=MAX_SHARD_SIZE)
        if image_processor is not None:
            image_processor.save_pretrained(staged)
        if record is not None:
            write_record({"weights": weights, **record}, staged)
        if arguments is not None:
            write_arguments(arguments, staged)
        for path in staged.glob("*.safetensors"):
            shutil.copymode(staged / "config.json", path)  # safetensors lets nobody else read
        for path in sorted(staged.iterdir()):
            if path.is_file():
                os.replace(path, folder / path.name)
            else:
                shutil.rmtree(path)
    return folder
