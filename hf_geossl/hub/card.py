"""Model cards: what a model is, how to load it, what it was trained on, and what was measured; nothing else."""

import hashlib
import json
import os
import re
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import ModelCard, ModelCardData
from jinja2 import Environment, PackageLoader, StrictUndefined
from transformers import AutoConfig

from hf_geossl.hub.export import PICTURES
from hf_geossl.hub.redaction import as_code, escape_markdown
from hf_geossl.hub.results import Result, held_out_results, model_index
from hf_geossl.hub.run_record import RECORD


@dataclass(frozen=True)
class MethodCard:
    """What a card says of a method.

    Args:
        name, arxiv, about (`str`): Its name, the paper's number, and what it is for.
        pooled (`str`): What `pooler_output` is.
        fields (`tuple[str, ...]`): Configuration fields that say what was trained.
        title, authors (`str`): Of the paper, for the citation; year and number are the arXiv's.
        host (`tuple[str, str, str, str]`, *optional*): Name, number, title and authors of the method that carries it.
    """

    name: str
    arxiv: str
    about: str
    pooled: str
    fields: tuple[str, ...]
    title: str
    authors: str
    host: tuple[str, str, str, str] | None = None

    @property
    def citations(self) -> list[str]:
        """The paper as a BibTeX entry, and that of the host method where there is one."""
        papers = [(self.name, self.arxiv, self.title, self.authors), *([self.host] if self.host else [])]
        return [
            f"@article{{{name.lower()}20{arxiv[:2]},\n  title={{{title}}},\n  author={{{authors}}},\n"
            f"  journal={{arXiv preprint arXiv:{arxiv}}},\n  year={{20{arxiv[:2]}}}\n}}"
            for name, arxiv, title, authors in papers
        ]


METHODS = {
    "gtsa": MethodCard(
        "GTSA",
        "2304.08014",
        "The teacher's targets are pooled where two crops overlap and turned with them, so features keep the geometry of "
        "images that are not centred on an object. The class token is not trained directly.",
        "the mean of the patch tokens",
        ("correspondence_weight", "rotation_weight"),
        "Self-Supervised Learning from Non-Object Centric Images with a Geometric Transformation Sensitive Architecture",
        "Kim, Taeho and Lee, Jong-Min",
    ),
    "loca": MethodCard(
        "LOCA",
        "2212.02400",
        "Patches of a query crop look at visible patches of a reference crop of the same image and learn where they lie in "
        "it, and which cluster the teacher puts that place in: features of places and of what is there.",
        "their mean",
        (
            "location_target",
            "location_weight",
            "num_kept_query_tokens",
            "visible_reference_ratio",
            "reference_selection",
            "use_cluster_loss",
            "num_prototypes",
        ),
        "Location-Aware Self-Supervised Transformers for Semantic Segmentation",
        "Caron, Mathilde and Houlsby, Neil and Schmid, Cordelia",
    ),
    "equicoherent": MethodCard(
        "EquiCoherent",
        "2503.18753",
        "Beside the loss of its host method it reconstructs the images between an image and its transformed state from a "
        "part of the patch features, which therefore keep what the transformation did.",
        "the class token",
        ("host", "split", "patch_features", "num_prototypes"),
        "Self-Supervised Learning Based on Transformed Image Reconstruction for Equivariance-Coherent Feature Representation",
        "Wang, Qin and Quercia, Alessio and Bruns, Benjamin and Morrison, Abigail and Scharr, Hanno and Krajsek, Kai",
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
_TASK_FIELDS = ("num_intermediate", "reconstruct_final", "reconstruction_weight", "equivariant_features")
# of the hosts: name, arXiv number, title and authors
_HOSTS = {
    "ibot": ("iBOT", "2111.07832", "iBOT: Image BERT Pre-Training with Online Tokenizer", "Zhou, Jinghao and others"),
    "dinov2": (
        "DINOv2",
        "2304.07193",
        "DINOv2: Learning Robust Visual Features without Supervision",
        "Oquab, Maxime and others",
    ),
    "dino": (
        "DINO",
        "2104.14294",
        "Emerging Properties in Self-Supervised Vision Transformers",
        "Caron, Mathilde and others",
    ),
    "vicreg": (
        "VICReg",
        "2105.04906",
        "VICReg: Variance-Invariance-Covariance Regularization for Self-Supervised Learning",
        "Bardes, Adrien and Ponce, Jean and LeCun, Yann",
    ),
    "simclr": (
        "SimCLR",
        "2002.05709",
        "A Simple Framework for Contrastive Learning of Visual Representations",
        "Chen, Ting and others",
    ),
}
# by the end of the class's name: the Auto class that opens it, the Hub's task, and what head it has
_HEADS = {
    "ForImageClassification": ("AutoModelForImageClassification", "image-classification", "classification"),
    "ForSemanticSegmentation": ("AutoModelForSemanticSegmentation", "image-segmentation", "segmentation"),
}
_TRUNK = ("AutoModel", "image-feature-extraction", None)
_RESULTS = re.compile(r"<!-- results -->.*<!-- /results -->\n?", re.DOTALL)


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file, or an empty one where there is no file."""
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} seconds"
    return f"{seconds / 60:.1f} minutes" if seconds < 5400 else f"{seconds / 3600:.1f} hours"


def _training_rows(record: Mapping[str, Any]) -> dict[str, str]:
    """What the record of a run says of the training, by the words of the card; what it does not say is left out."""
    weights_step, steps = record.get("weights_step"), record.get("steps")
    emissions, seconds, images = (record.get(name) for name in ("emissions", "seconds", "images"))
    rows = {
        "data": record.get("data"),
        "started from": record.get("base_model"),
        "optimizer steps": steps,
        "weights of step": None if weights_step in (None, steps) else f"{weights_step} (the best checkpoint)",
        "images seen": None if images is None else f"{images:,}",
        "training time": None if not seconds else _duration(seconds),
        "hardware": record.get("hardware"),
        "carbon emitted (codecarbon)": None if not emissions else f"{emissions:.3g} g CO2eq",
        "global batch": record.get("global_batch"),
        "views": record.get("views"),
        "learning rate, peak": record.get("learning_rate"),
        "weight decay": record.get("weight_decay"),
        "teacher momentum": record.get("teacher_momentum"),
        "precision": record.get("precision"),
        "seed": record.get("seed"),
        "software": ", ".join(f"{name} {version}" for name, version in record.get("versions", {}).items()) or None,
    }
    return {label: str(value) for label, value in rows.items() if value is not None}


def _metadata(config: Any, name: str, record: dict[str, Any], results: list[Result], license: str | None) -> str:
    head = _head_of(config)
    emissions = {
        "emissions": record.get("emissions"),  # grams
        "source": "codecarbon",
        "training_type": "pre-training",
        "hardware_used": record.get("hardware"),
    }
    data = ModelCardData(
        library_name="transformers",
        pipeline_tag=head[1],
        license=license,
        datasets=[record["dataset_id"]] if record.get("dataset_id") else None,
        base_model=record.get("base_model"),
        tags=[
            "self-supervised-learning",
            "vision",
            "vit",
            config.model_type,
            *([config.host] if config.model_type == "equicoherent" else []),
            "custom_code",
        ],
        model_name=_as_name(name) if model_index(results) else None,
        eval_results=model_index(results) or None,
        co2_eq_emissions=emissions if record.get("emissions") else None,
    )
    return f"---\n{data.to_yaml()}\n---"


def _head_of(config: Any) -> tuple[str, str, str | None]:
    architecture = (config.architectures or [""])[0]
    return next((head for suffix, head in _HEADS.items() if architecture.endswith(suffix)), _TRUNK)


def _method_of(config: Any) -> MethodCard:
    """The method as this model was trained: with or without images that are reconstructed."""
    method = METHODS[config.model_type]
    if not config.num_decoders:
        if config.model_type != "equicoherent":
            return method
        host, arxiv, title, authors = _HOSTS[config.host]
        about = f"{host} alone, as a baseline: no image is reconstructed."
        return replace(method, name=host, arxiv=arxiv, title=title, authors=authors, about=about)
    if config.model_type == "equicoherent":
        return replace(method, fields=(*method.fields, "transformation", *_TASK_FIELDS), host=_HOSTS[config.host])
    about = (
        f"{method.about} Beside it the images on the way of a transformation are reconstructed from a part of the patch "
        "features (EquiCoherent's task, [arXiv 2503.18753](https://arxiv.org/abs/2503.18753))."
    )
    return replace(method, about=about, fields=(*method.fields, "reconstruction", *_TASK_FIELDS))


def render_card(
    folder: Path,
    name: str,
    *,
    pictures: Sequence[str] | None = None,
    results: Sequence[Result] = (),
    license: str | None = None,
    space: str | None = None,
) -> str:
    """The card of a model folder: nothing that was not measured or set.

    Args:
        folder (`Path`): Holds the configuration and, where a run left it, `training_run.json`.
        name (`str`): What readers load it by.
        pictures (`Sequence[str]`, *optional*): Files of pictures beside the card; by default those in the folder.
        results (`Sequence[Result]`): Measured results, beside those of the run.
        license (`str`, *optional*): Of the weights, as the Hub calls it.
        space (`str`, *optional*): Repository of a Space that shows the model.

    Returns:
        `str`: The card, in Markdown with metadata.
    """
    config = AutoConfig.from_pretrained(folder)
    record, method = read_json(folder / RECORD), _method_of(config)
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
    architecture = (config.architectures or [""])[0]
    fields = (*_TRUNK_FIELDS, *(method.fields if record or architecture.endswith("ForPreTraining") else ()))
    card = environment.get_template("card.md.jinja").render(
        metadata=_metadata(config, name, record, [*held_out, *results], license),
        method=method,
        config=config,
        name=_as_name(name),
        labels=[config.id2label[index] for index in sorted(config.id2label)],
        auto_class=auto_class,
        head=head,
        pretraining=architecture.endswith("ForPreTraining"),
        teacher=getattr(config, "host", None) not in ("vicreg", "simclr"),
        class_token=config.use_class_token,
        registers=config.num_register_tokens,
        image_size=height if height == width else (height, width),
        trunk={field.replace("_", " "): getattr(config, field) for field in fields},
        pictures=[file for file in PICTURES if (folder / file).is_file()] if pictures is None else pictures,
        record=record,
        rows=_training_rows(record),
        held_out=held_out,
        results=list(results),
        license=license,
        space=space,
    )
    return f"{card}\n{_mark(card)}\n"


def write_card(
    folder: str | Path,
    *,
    name: str | None = None,
    results: Sequence[Result] = (),
    license: str | None = None,
    space: str | None = None,
) -> Path:
    """Makes README.md from what lies in a model's folder: configuration, record of the run, pictures, and nothing else.

    Args:
        folder (`str` or `Path`): Of the model.
        name (`str`, *optional*): What readers load it by; the folder's name by default.
        results, license, space: As in `render_card`.

    Returns:
        `Path`: The card.
    """
    folder = Path(folder)
    card = render_card(folder, name or folder.resolve().name, results=results, license=license, space=space)
    with tempfile.TemporaryDirectory(dir=folder, prefix=".card-") as temporary:
        staged = Path(temporary) / "README.md"
        staged.write_text(card, encoding="utf-8")
        os.replace(staged, folder / "README.md")
    return folder / "README.md"


def _as_name(name: str) -> str:
    """A name for the code blocks, which nothing in it can end."""
    return re.sub(r"[^\w./ -]", "_", name)


def _mark(card: str) -> str:
    """The last line of a card that nobody has changed since it was rendered."""
    return f"<!-- rendered by hf_geossl: {hashlib.sha256(card.encode()).hexdigest()[:16]} -->"


def is_rendered(card: str) -> bool:
    """Whether a card is as `render_card` made it, of this or an earlier version, and not changed by hand."""
    text, _, mark = card.rstrip("\n").rpartition("\n")
    return mark == _mark(text)


def parse_card(card: str) -> ModelCard:
    """Reads a card.

    Raises:
        ValueError: If its metadata is not YAML.
    """
    try:
        return ModelCard(card, ignore_metadata_errors=True)
    except yaml.YAMLError as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"the metadata at the top of README.md is not YAML ({reason}): mend it") from error


def update_card(card: str, rendered: str, folder_name: str, license: str | None = None) -> str:
    """Brings a card that was written by hand up to date: its text stays, what was measured is put in.

    Args:
        card (`str`): The card.
        rendered (`str`): What `render_card` makes of the same model now.
        folder_name (`str`): The name by which the card may load the model; that of `rendered` takes its place.
        license (`str`, *optional*): Takes the place of the card's.

    Returns:
        `str`: The card, with the metadata of `rendered` where it has none of its own, with its entries in `model-index`,
        and with its section of results (between the marks `<!-- results -->`) replaced or added at the end.

    Raises:
        ValueError: If the card's metadata is not YAML.
    """
    new_name = re.search(r'from_pretrained\("([^"\n]+)"', rendered)
    if new_name is not None:
        card = card.replace(f'from_pretrained("{folder_name}"', f'from_pretrained("{new_name[1]}"')
    kept, made = parse_card(card), ModelCard(rendered)
    theirs, ours = kept.data.get("eval_results") or [], made.data.get("eval_results") or []
    known = {(entry.unique_identifier, entry.metric_type, entry.metric_name) for entry in ours}
    merged = [e for e in theirs if (e.unique_identifier, e.metric_type, e.metric_name) not in known] + ours
    for key, value in made.data.__dict__.items():
        if kept.data.get(key) is None:
            kept.data[key] = value
    if merged:
        kept.data["eval_results"] = merged
    if license is not None:
        kept.data["license"] = license
    section = _RESULTS.search(rendered)
    text = str(kept)
    if section is None:
        return text
    if _RESULTS.search(text):
        return _RESULTS.sub(lambda _: section[0], text)
    return f"{text.rstrip()}\n\n{section[0]}"
