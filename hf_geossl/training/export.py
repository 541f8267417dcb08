"""The folder that a run leaves: trunk weights, configuration, code, image processor and model card."""

import copy
import os
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from transformers import ViTImageProcessor

from hf_geossl.training.photometric import IMAGENET_MEAN, IMAGENET_STD

if TYPE_CHECKING:
    from hf_geossl.training.trainer import TeacherStudentTrainer

PICTURE = "features.png"
POSITIONS_PICTURE = "positions.png"
RECONSTRUCTIONS_PICTURE = "reconstructions.png"


@dataclass(frozen=True)
class MethodCard:
    """
    What a card says of a method.

    Args:
        name, paper, about (`str`): Its name, a link, and what it is for.
        pooled (`str`): What `pooler_output` is.
        fields (`tuple[str, ...]`): Configuration fields that say what was trained.
    """

    name: str
    paper: str
    about: str
    pooled: str
    fields: tuple[str, ...]


METHODS = {
    "gtsa": MethodCard(
        "GTSA",
        "[arXiv 2304.08014](https://arxiv.org/abs/2304.08014)",
        "The teacher's targets are pooled where two crops overlap and turned with them, so features keep the geometry of "
        "images that are not centred on an object. The class token is not trained directly.",
        "the mean of the patch tokens",
        ("correspondence_weight", "rotation_weight"),
    ),
    "loca": MethodCard(
        "LOCA",
        "[arXiv 2212.02400](https://arxiv.org/abs/2212.02400)",
        "Patches of a query crop look at visible patches of a reference crop of the same image and learn where they lie in "
        "it, and which cluster the teacher puts that place in: features of places and of what is there.",
        "their mean",
        (
            "location_target",
            "num_kept_query_tokens",
            "visible_reference_ratio",
            "reference_selection",
            "use_cluster_loss",
            "num_prototypes",
        ),
    ),
    "equicoherent": MethodCard(
        "EquiCoherent",
        "[arXiv 2503.18753](https://arxiv.org/abs/2503.18753)",
        "Beside the loss of its host method it reconstructs the images between an image and its transformed state from a "
        "part of the patch features, which therefore keep what the transformation did.",
        "the class token",
        (
            "host",
            "transformation",
            "num_intermediate",
            "reconstruction_weight",
            "split",
            "patch_features",
            "equivariant_features",
            "num_prototypes",
        ),
    ),
}
_TRUNK_FIELDS = (
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "intermediate_size",
    "patch_size",
    "image_size",
    "drop_path_rate",
)


def make_image_processor(
    size: tuple[int, int],
    mean: Sequence[float] = IMAGENET_MEAN,
    std: Sequence[float] = IMAGENET_STD,
) -> ViTImageProcessor:
    """
    The image processor that fits a model.

    Args:
        size (`(height, width)`): In pixels.
        mean, std (three `float`): Normalisation of images in [0, 1]; ImageNet's by default.

    Returns:
        `ViTImageProcessor`: Resizes bilinearly to `size`, and normalises.
    """
    height, width = size
    return ViTImageProcessor(
        size={"height": height, "width": width}, image_mean=list(mean), image_std=list(std), resample=2
    )


def export_model(
    model: Any,
    output_dir: str | Path,
    *,
    weights: str | None = None,
    image_processor: Any = None,
    run: "TeacherStudentTrainer | None" = None,
) -> Path:
    """
    Writes the trunk of a pretraining model as a folder that every Auto class opens.

    Files are written beside the folder first and then moved in one by one; files of other names stay.

    Args:
        model (`PreTrainedModel`): A `...ForPreTraining` model.
        output_dir (`str` or `Path`): The folder.
        weights (`"teacher"` or `"student"`, *optional*): Whose trunk; the teacher's by default, where there is one.
        image_processor (*optional*): Saved beside the model.
        run (`TeacherStudentTrainer`, *optional*): The run to describe on the model card; no card without one.

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
        trunk.save_pretrained(temporary)
        if image_processor is not None:
            image_processor.save_pretrained(temporary)
        if run is not None:
            card = render_card(run, folder, weights)
            (Path(temporary) / "README.md").write_text(card, encoding="utf-8")
        for path in Path(temporary).glob("*.safetensors"):
            shutil.copymode(Path(temporary) / "config.json", path)  # safetensors lets nobody else read
        for path in sorted(Path(temporary).iterdir()):
            if path.is_file():
                os.replace(path, folder / path.name)
            else:
                shutil.rmtree(path)
    return folder


def _versions() -> dict[str, str]:
    found = {}
    for package in ("hf_geossl", "torch", "transformers", "datasets", "accelerate"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def _measured_losses(history: list[dict[str, Any]], metrics: Sequence[str], lines: int = 8) -> list[dict[str, float]]:
    """Evenly spread log lines, the first and the last among them."""
    logged = [entry for entry in history if "loss" in entry]
    if not logged:
        return []
    names = [name for name in logged[-1] if name == "loss" or name.endswith("_loss") or name in metrics]
    chosen = sorted({round(index * (len(logged) - 1) / max(lines - 1, 1)) for index in range(lines)})
    return [{"step": logged[i]["step"], **{n: logged[i][n] for n in names if n in logged[i]}} for i in chosen]


def _from_to(start: float, end: float | None) -> str:
    return f"{start:g}" if end is None or end == start else f"{start:g} to {end:g}"


def _held_out(run: "TeacherStudentTrainer") -> dict[str, Any] | None:
    """What the last evaluation measured, each value with the one of knowing nothing where that is known."""
    measured = [entry for entry in run.state.log_history if "eval_loss" in entry and "eval_images" in entry]
    if not measured or run.eval_dataset is None:
        return None
    last, chances = measured[-1], run.chance_levels()
    names = [name for name in last if name == "eval_loss" or name.endswith("_loss") or name[5:] in run.metrics]
    return {
        "data": run.describe_data(run.eval_dataset),
        "images": last["eval_images"],
        "step": last["step"],
        "values": [(name[5:].replace("_", " "), last[name], chances.get(name[5:])) for name in names],
    }


def render_card(run: "TeacherStudentTrainer", folder: Path, weights: str) -> str:
    """
    The model card of a run: data, steps, configuration, versions and measured losses; nothing that was not measured.

    Args:
        run (`TeacherStudentTrainer`): The run.
        folder (`Path`): Where the model lies; its name is the model's on the card.
        weights (`str`): Whose trunk.

    Returns:
        `str`: The card, in Markdown.
    """
    args, config, state = run.args, run.model.config, run.state
    method = METHODS[config.model_type]
    environment = Environment(
        loader=PackageLoader("hf_geossl.training", "."),
        undefined=StrictUndefined,
        trim_blocks=True,
        keep_trailing_newline=True,
    )
    stream = run.train_dataset
    return environment.get_template("card.md.jinja").render(
        method=method,
        model_type=config.model_type,
        class_token=getattr(config, "use_class_token", True),
        registers=config.num_register_tokens,
        weights=weights,
        name=folder.resolve().name,
        config=config,
        trunk={name.replace("_", " "): getattr(config, name) for name in (*_TRUNK_FIELDS, *method.fields)},
        picture=PICTURE if (folder / PICTURE).is_file() else None,
        positions_picture=POSITIONS_PICTURE if (folder / POSITIONS_PICTURE).is_file() else None,
        reconstructions_picture=RECONSTRUCTIONS_PICTURE if (folder / RECONSTRUCTIONS_PICTURE).is_file() else None,
        data=f"{stream.source.name} ({stream.source.kind})" if stream is not None else None,
        dataset_id=stream.source.name if stream is not None and stream.source.kind == "hub" else None,
        steps=state.global_step,
        images=f"{state.global_step * args.global_batch_size:,}",
        global_batch=args.global_batch_size,
        views=run.views.describe(),
        learning_rate=f"{args.learning_rate:.3g}",
        weight_decay=_from_to(args.weight_decay, args.weight_decay_end),
        teacher_momentum=None
        if run.model.teacher is None
        else _from_to(args.teacher_momentum, args.teacher_momentum_end),
        precision="bf16" if args.bf16 else "fp16" if args.fp16 else "fp32",
        seed=args.seed,
        losses=_measured_losses(state.log_history, run.metrics),
        held_out=_held_out(run),
        versions=_versions(),
    )
