"""Model cards: what a model is, how to load it, what it was trained on, and what was measured; nothing else."""

import logging
import os
import re
import tempfile
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCardData
from jinja2 import Environment, PackageLoader, StrictUndefined
from transformers import AutoConfig, PreTrainedConfig

from hf_geossl.hub.headlines import COLUMNS, headlines
from hf_geossl.hub.method_card import MethodCard, method_card
from hf_geossl.hub.redaction import as_code, escape_markdown, find_secret
from hf_geossl.hub.results import Result, held_out_results, measured_results, model_index, read_results
from hf_geossl.hub.run_folder import read_config
from hf_geossl.hub.run_record import RECORD, read_json, weights_dtypes
from hf_geossl.hub.written_card import is_rendered, license_of, parse_card, sign_card, update_card
from hf_geossl.methods import FEATURES, run_pictures

logger = logging.getLogger(__name__)

CARD = "README.md"
_TRUNK_FIELDS = (
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "intermediate_size",
    "patch_size",
    "image_size",
    "drop_path_rate",
)
# by the end of the class's name: the Auto class that opens it, the Hub's task, and what head it has
_HEADS = {
    "ForImageClassification": ("AutoModelForImageClassification", "image-classification", "classification"),
    "ForSemanticSegmentation": ("AutoModelForSemanticSegmentation", "image-segmentation", "segmentation"),
    "ForDepthEstimation": ("AutoModelForDepthEstimation", "depth-estimation", "depth"),
    "ForObjectDetection": ("AutoModelForObjectDetection", "object-detection", "detection"),
}
_TRUNK = ("AutoModel", "image-feature-extraction", None)


def render_card(
    folder: Path,
    name: str,
    *,
    results: Sequence[Result] = (),
    license: str | None = None,
    space: str | None = None,
    with_heads: bool = False,
) -> str:
    """The card of a model folder: nothing that was not measured or set.

    Args:
        folder (`Path`): Holds the configuration and, where a run left them, `training_run.json` and pictures.
        name (`str`): What readers load it by.
        results (`Sequence[Result]`): Measured results, beside those of the run.
        license (`str`, *optional*): Of the weights, as the Hub calls it.
        space (`str`, *optional*): Repository of a Space that shows the model.
        with_heads (`bool`): Whether the whole pretraining model is published beside its trunk.

    Returns:
        `str`: The card, in Markdown with metadata.
    """
    config = AutoConfig.from_pretrained(folder)
    record, method = read_json(folder / RECORD), method_card(config)
    auto_class, _, head = _head_of(config)
    held_out = held_out_results(record)
    height, width = config.image_height_width
    environment = Environment(
        loader=PackageLoader("hf_geossl.hub", "."),
        undefined=StrictUndefined,
        trim_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["plain"], environment.filters["code"] = escape_markdown, as_code
    pretraining = _architecture(config).endswith("ForPreTraining")
    fields = (*_TRUNK_FIELDS, *(method.fields if (record and not head) or pretraining else ()))
    rows = {field.replace("_", " "): str(getattr(config, field)) for field in fields if hasattr(config, field)}
    pictures = [picture for file, picture in run_pictures().items() if (folder / file).is_file()]
    shown = [picture for picture in pictures if not picture.is_curve]  # what a method does says more than its features
    top = headlines(results, record)
    reached = {column for row in top for column in row.floors}
    return sign_card(
        environment.get_template("card.md.jinja").render(
            metadata=_metadata(config, method, name, record, [*held_out, *results], license),
            title=_as_name(name).rpartition("/")[2],
            method=method,
            config=config,
            name=_as_name(name),
            rgb8=config.get_image_format().is_rgb8,
            trained="steps" in record or "weights" in record,
            trained_on=re.sub(r" \((scenes|folder|hub|parquet|webdataset|photographs)\)$", "", record.get("data", "")),
            started_from=record.get("init_from") or record.get("base_model"),
            converted_from=record.get("converted_from"),
            headlines=top,
            columns=[column for column in COLUMNS if column in reached],
            measured_on=_measured_on(results, record),
            labels=[config.id2label[index] for index in sorted(config.id2label)],
            auto_class=auto_class,
            head=head,
            pretraining=pretraining,
            size="(image.height, image.width)" if config.get_image_format().is_rgb8 else "stored.shape[:2]",
            recipe=_recipe_to_go_on(config.model_type),
            with_heads=with_heads or pretraining,
            image_size=height if height == width else (height, width),
            rows=_rows(record, rows, weights_dtypes(folder)),
            pictures=pictures,
            lead=next((picture for picture in shown if picture != FEATURES), shown[0] if shown else None),
            record=record,
            held_out=held_out,
            results=list(results),
            license=license,
            space=space,
        )
    )


def write_card(
    folder: str | Path, *, name: str | None = None, license: str | None = None, space: str | None = None
) -> Path:
    """Makes README.md from what lies in a model's folder: configuration, weights, record of the run, pictures, results.

    A card that was written or changed by hand keeps its text; metadata and results are put in.

    Args:
        folder (`str` or `Path`): Of the model.
        name (`str`, *optional*): What readers load it by; the folder's name by default.
        license (`str`, *optional*): Of the weights, as the Hub calls it; that of the card in the folder by default.
        space (`str`, *optional*): Repository of a Space that shows the model.

    Returns:
        `Path`: The card.

    Raises:
        ValueError: If the folder holds no model's configuration, its results are of another form, or the text that was
            written by hand holds a token.
    """
    folder = Path(folder)
    read_config(folder)  # says what is wrong with a folder that holds no model of this library
    path, content = folder / CARD, measured_results(folder)
    written = path.read_text(encoding="utf-8") if path.is_file() else None
    license = license or license_of(written)
    rendered = render_card(
        folder,
        name or folder.resolve().name,
        results=[] if content is None else read_results(content),
        license=license,
        space=space,
    )
    card = keep_written(folder.resolve().name, rendered, {"in the folder": written}, license)
    with tempfile.TemporaryDirectory(dir=folder, prefix=".card-") as temporary:
        staged = Path(temporary) / CARD
        staged.write_text(card, encoding="utf-8")
        os.replace(staged, path)
    return path


def keep_written(folder_name: str, rendered: str, written: Mapping[str, str | None], license: str | None) -> str:
    """The card to show: the first one with a text written by hand, brought up to date, or the rendered one.

    Args:
        folder_name (`str`): The name by which a written card may load the model.
        rendered (`str`): As `render_card` made it.
        written (`Mapping[str, str | None]`): Cards that are there, by the place that a message names.
        license (`str`, *optional*): Of the weights.

    Returns:
        `str`: The card.

    Raises:
        ValueError: If a text holds what looks like a token.
    """
    for place, card in written.items():
        if card is None or is_rendered(card):
            continue
        line = find_secret(card)
        if line is not None:
            raise ValueError(
                f"line {line} of {CARD} holds what looks like a token or password: take it out before publishing"
            )
        updated = update_card(card, rendered, folder_name, license)
        if parse_card(card).text.strip():  # not metadata alone, such as the Hub writes for a new repository
            logger.warning(
                f"the {CARD} {place} was written by hand: its text stays, and metadata and results are put in"
            )
            return updated
    return rendered


def _measured_on(results: Sequence[Result], record: Mapping[str, Any]) -> str:
    """What the numbers at the top were measured on, as the end of a sentence."""
    if results:
        return "; ".join(dict.fromkeys(result.data for result in results if result.data)) or "data that is not named"
    instruments = record.get("instruments", {})
    data = f" of {instruments['data']}" if instruments.get("data") else " of the run"
    return f"{instruments.get('images')} images{data}, after step {instruments.get('step')}"


def _rows(record: Mapping[str, Any], fields: Mapping[str, str], dtypes: Sequence[str]) -> dict[str, str]:
    """The rows of the table of a model; what the record of its run does not say is left out."""
    step, steps = record.get("weights_step"), record.get("steps")
    emissions, seconds, images = (record.get(name) for name in ("emissions", "seconds", "images"))
    other_step = f"of optimizer step {step}, the best checkpoint's" if step not in (None, steps) else None
    run = {
        "data": record.get("data"),
        "converted from": record.get("converted_from"),
        "started from": record.get("init_from") or record.get("base_model"),
        "trained": record.get("trained_of_trunk"),
        "optimizer steps": steps,
        "images seen": None if images is None else f"{images:,}",
        "training time": _duration(seconds) if seconds else None,
        "hardware": record.get("hardware"),
        "carbon emitted (codecarbon)": f"{emissions:.3g} g CO2eq" if emissions else None,
        "global batch": record.get("global_batch"),
        "views": record.get("views"),
        "learning rate, peak": record.get("learning_rate"),
        "weight decay": record.get("weight_decay"),
        "teacher momentum": record.get("teacher_momentum"),
        "precision": record.get("precision"),
        "seed": record.get("seed"),
    }
    software = ", ".join(f"{name} {version}" for name, version in record.get("versions", {}).items())
    weights = ", ".join([*dtypes, *([other_step] if other_step else [])])
    rows = {**run, "weights": weights or None, **fields, "software": software or None}
    return {label: str(value) for label, value in rows.items() if value is not None}


def _recipe_to_go_on(model_type: str) -> str:
    recipe = f"{model_type}_posttrain"
    return recipe if (files("hf_geossl.training.recipes") / f"{recipe}.yaml").is_file() else "RECIPE"


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} seconds"
    return f"{seconds / 60:.1f} minutes" if seconds < 5400 else f"{seconds / 3600:.1f} hours"


def _metadata(
    config: PreTrainedConfig,
    method: MethodCard,
    name: str,
    record: Mapping[str, Any],
    results: list[Result],
    license: str | None,
) -> str:
    emissions = {
        "emissions": record.get("emissions"),  # grams
        "source": "codecarbon",
        "training_type": "pre-training",
        "hardware_used": record.get("hardware"),
    }
    tags = ["self-supervised-learning", "vision", "vit", config.model_type] if method.paper else ["vision", "vit"]
    data = ModelCardData(
        library_name="transformers",
        pipeline_tag=_head_of(config)[1],
        license=license,
        datasets=[record["dataset_id"]] if record.get("dataset_id") else None,
        base_model=record.get("base_model"),
        tags=[*tags, *method.tags, "custom_code"],
        model_name=_as_name(name) if model_index(results) else None,
        eval_results=model_index(results) or None,
        co2_eq_emissions=emissions if record.get("emissions") else None,
    )
    return f"---\n{data.to_yaml()}\n---"


def _architecture(config: PreTrainedConfig) -> str:
    return (config.architectures or [""])[0]


def _head_of(config: PreTrainedConfig) -> tuple[str, str, str | None]:
    return next((head for suffix, head in _HEADS.items() if _architecture(config).endswith(suffix)), _TRUNK)


def _as_name(name: str) -> str:
    """A name for the code blocks, which nothing in it can end."""
    return re.sub(r"[^\w./ -]", "_", name)
