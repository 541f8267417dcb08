"""Which files of a trained folder are published, and in what form: the model, its code, its card, and nothing private."""

import json
import logging
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import yaml
from huggingface_hub import save_torch_state_dict
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file

import hf_geossl.modeling
from hf_geossl.hub.auto_classes import auto_map_of
from hf_geossl.hub.card import METHODS, is_rendered, parse_card, read_json, render_card, update_card
from hf_geossl.hub.export import MAX_SHARD_SIZE, PICTURES, export_model, make_image_processor
from hf_geossl.hub.redaction import find_secret, redact, redact_values
from hf_geossl.hub.repository import Source
from hf_geossl.hub.results import (
    ABOUT,
    EVAL_RESULTS,
    RESULTS,
    eval_results,
    held_out_results,
    load_results,
    read_results,
)
from hf_geossl.hub.run_record import ARGUMENTS, RECORD, weights_digest

logger = logging.getLogger(__name__)

WEIGHTS, INDEX, CARD, CONFIG = "model.safetensors", "model.safetensors.index.json", "README.md", "config.json"
PROCESSOR = "preprocessor_config.json"
_LABELS = ("id2label", "label2id")  # texts of the person's own, which the model needs as they are
_CODE = Path(hf_geossl.modeling.__file__).parent
_LIBRARY_CODE = frozenset(path.name for path in _CODE.glob("*.py")) - {"__init__.py"}


def is_managed(path: str) -> bool:
    """Whether a file of a repository is one that publishing writes, so that it may take it away again."""
    return (
        path in (WEIGHTS, INDEX, PROCESSOR, RECORD, ARGUMENTS, RESULTS, EVAL_RESULTS, *PICTURES)
        or path in _LIBRARY_CODE
        or re.fullmatch(r"model-\d{5}-of-\d{5}\.safetensors", path) is not None
    )


@contextmanager
def folder_of(model_or_folder: Any) -> Iterator[Path]:
    """The folder of a model, written for the while where there is none yet.

    Args:
        model_or_folder (`str`, `Path` or `PreTrainedModel`): A folder is taken as it is; of a `...ForPreTraining` model
            the trunk is written that `export_model` takes, any other model as it is.

    Raises:
        TypeError: For anything else.
    """
    if isinstance(model_or_folder, (str, Path)):
        yield Path(model_or_folder)
        return
    config = getattr(model_or_folder, "config", None)
    if getattr(config, "model_type", None) not in METHODS:
        raise TypeError(
            f"publish takes a folder, or a model of {', '.join(METHODS)}, got {type(model_or_folder).__name__}"
        )
    with TemporaryDirectory() as temporary:
        processor = make_image_processor(model_or_folder.config.image_height_width)
        if hasattr(model_or_folder, "teacher"):
            export_model(model_or_folder, temporary, image_processor=processor)
        else:
            model_or_folder.save_pretrained(temporary, max_shard_size=MAX_SHARD_SIZE)
            processor.save_pretrained(temporary)
        yield Path(temporary)


def read_config(folder: Path) -> dict[str, Any]:
    """The configuration of a model that can be published.

    Raises:
        ValueError: If there is no folder, or no model of this library in it.
    """
    if not folder.is_dir():
        raise ValueError(
            f"there is no folder {folder.name!r}: give the one that geossl pretrain or save_pretrained wrote"
        )
    try:
        config = read_json(folder / CONFIG)
    except ValueError as error:
        raise ValueError(f"{CONFIG} of {folder.name} is not JSON ({error}): write the folder again") from error
    if not config:
        raise ValueError(
            f"{folder.name} holds no {CONFIG}: give the folder that geossl pretrain or save_pretrained wrote"
        )
    if config.get("model_type") not in METHODS:
        raise ValueError(
            f"{folder.name} holds a model of type {config.get('model_type')!r}, and publish takes {', '.join(METHODS)}"
        )
    return config


def _weights_of(folder: Path) -> dict[str, Path]:
    """The weights, every tensor's place checked; refuses what is not safetensors, missing or cut short."""
    if (folder / INDEX).is_file():
        names = sorted(set(read_json(folder / INDEX).get("weight_map", {}).values()))
        found = {INDEX: folder / INDEX, **{name: folder / name for name in names}}
    else:
        names, found = [WEIGHTS], {WEIGHTS: folder / WEIGHTS}
    for name in names:
        if Path(name).name != name or not (folder / name).is_file():
            pickled = sorted(path.name for pattern in ("*.bin", "*.pt", "*.pth") for path in folder.glob(pattern))
            hint = f" (it holds {', '.join(pickled[:3])}, and only safetensors are published)" if pickled else ""
            raise ValueError(
                f"{folder.name} holds no {Path(name).name}{hint}: save the model with save_pretrained first"
            )
        try:
            with safe_open(folder / name, framework="pt"):
                pass
        except SafetensorError as error:
            raise ValueError(f"{name} of {folder.name} is damaged ({error}): save the model again") from error
    return found


@contextmanager
def _sharded(weights: dict[str, Path], max_shard_size: str | int) -> Iterator[dict[str, Path]]:
    """The weights in files of at most `max_shard_size`, where there is one that is larger."""
    limit = max_shard_size if isinstance(max_shard_size, int) else _bytes_of(max_shard_size)
    if len(weights) > 1 or weights[WEIGHTS].stat().st_size <= limit:
        yield weights
        return
    with TemporaryDirectory() as temporary:
        save_torch_state_dict(load_file(weights[WEIGHTS]), temporary, max_shard_size=limit)
        yield {path.name: path for path in sorted(Path(temporary).iterdir())}


def _bytes_of(size: str) -> int:
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(KB|MB|GB)", size.strip().upper())
    if match is None:
        raise ValueError(f"max_shard_size must be like '5GB' or a number of bytes, got {size!r}")
    return int(float(match[1]) * {"KB": 10**3, "MB": 10**6, "GB": 10**9}[match[2]])


def code_of(folder: Path, auto_map: Mapping[str, str]) -> dict[str, Path]:
    """The modeling files that the classes of an `auto_map` need, and no others.

    Args:
        folder (`Path`): A model's folder; files that it holds itself are its code, others are this library's.
        auto_map (`dict[str, str]`): `"module.Class"` for each Auto class.

    Returns:
        `dict[str, Path]`: By file name.
    """

    def place(name: str) -> Path:
        return folder / name if (folder / name).is_file() else _CODE / name

    found: dict[str, Path] = {}
    waiting = sorted({f"{reference.partition('.')[0]}.py" for reference in auto_map.values()})
    while waiting:
        name = waiting.pop()
        if name not in found:
            found[name] = place(name)
            if not found[name].is_file():
                raise ValueError(f"the code in {folder.name} needs {name}, which is not there: save the model again")
            imported = re.findall(r"^\s*from\s+\.(\w+)\s+import", found[name].read_text(encoding="utf-8"), re.MULTILINE)
            waiting += [f"{module}.py" for module in imported]
    return dict(sorted(found.items()))


def _as_json(value: Any) -> bytes:
    return (json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False) + "\n").encode()


def license_of(card: str | None) -> str | None:
    """The licence in a card's metadata."""
    found = parse_card(card).data.get("license") if card else None
    return found if isinstance(found, str) else None


def _of_these_weights(content: dict[str, Any], folder: Path, *, asked_for: bool) -> dict[str, Any] | None:
    """Results, unless they tell that other weights were measured; an error where these were asked for."""
    measured = content.get(ABOUT, {}).get("weights_digest")
    if measured in (None, weights_digest(folder)):
        return content
    message = (
        f"the results are of other weights than {folder.name} holds now: measure again (geossl evaluate --overwrite)"
    )
    if asked_for:
        raise ValueError(message)
    logger.warning(f"{message}; they are not published")
    return None


def _card(folder: Path, rendered: str, license: str | None, remote_card: str | None) -> str:
    """The card to publish: what was written by hand, here or on the Hub, keeps its text."""
    path = folder / CARD
    local = path.read_text(encoding="utf-8") if path.is_file() else None
    for written in (local, remote_card):
        if written is None or is_rendered(written):
            continue
        secret = find_secret(written)
        if secret is not None:
            raise ValueError(
                f"line {secret} of {CARD} holds what looks like a token or password: take it out before publishing"
            )
        updated = update_card(written, rendered, folder.resolve().name, license)
        if not parse_card(written).text.strip():
            continue  # metadata alone, such as the Hub writes for a new repository
        where = "in the folder" if written is local else "on the Hub"
        logger.warning(f"the {CARD} {where} was written by hand: its text stays, and metadata and results are put in")
        return updated
    return rendered


@contextmanager
def model_files(
    folder: Path,
    repo_id: str,
    *,
    results: Mapping[str, Any] | str | Path | None = None,
    license: str | None = None,
    space: str | None = None,
    max_shard_size: str | int = MAX_SHARD_SIZE,
    remote_card: str | None = None,
) -> Iterator[dict[str, Source]]:
    """The files of a model repository.

    Args:
        folder (`Path`): A run's folder, or one that `save_pretrained` wrote.
        repo_id, results, license, max_shard_size: As in `publish`.
        space (`str`, *optional*): The Space that the card points to.
        remote_card (`str`, *optional*): The card in the repository now; what was written there by hand is kept.

    Yields:
        `dict[str, Path | bytes]`: By path in the repository: weights, configuration with its `auto_map`, the code
        that it needs, image processor, card, pictures, results, and what is known of the run; no pickle, no token, no
        path of the machine.

    Raises:
        ValueError: If the folder holds no model of this library, its weights are missing or damaged, or results are
            not numbers.
    """
    config = read_config(folder)
    weights = _weights_of(folder)
    given = results if results is not None else folder / RESULTS if (folder / RESULTS).is_file() else None
    content = None if given is None else _of_these_weights(load_results(given), folder, asked_for=results is not None)
    measured = [] if content is None else read_results(content)
    auto_map = auto_map_of(config)
    shared = {redact(key): value if key in _LABELS else redact_values(value) for key, value in config.items()}
    shared["auto_map"] = auto_map
    shared.pop("_name_or_path", None)
    files: dict[str, Source] = {CONFIG: _as_json(shared), **code_of(folder, auto_map)}
    if (folder / PROCESSOR).is_file():
        processor = redact_values(read_json(folder / PROCESSOR))
    else:
        logger.warning(f"{folder.name} holds no {PROCESSOR}: one with ImageNet's mean and deviation is published")
        with TemporaryDirectory() as temporary:
            size = config.get("image_size", 224)
            make_image_processor((size, size) if isinstance(size, int) else tuple(size)).save_pretrained(temporary)
            processor = read_json(Path(temporary) / PROCESSOR)
    segments = (config.get("architectures") or [""])[0].endswith("ForSemanticSegmentation")
    if segments and str(processor.get("image_processor_type", "")).startswith("ViTImageProcessor"):
        # resizes and normalises alike, and turns logits into masks, which the Hub's pipeline asks for
        processor |= {"image_processor_type": "SegformerImageProcessor", "do_reduce_labels": False}
    files[PROCESSOR] = _as_json(processor)
    pictures = [name for name in PICTURES if (folder / name).is_file()]
    files |= {name: folder / name for name in pictures}
    if (folder / RECORD).is_file():
        files[RECORD] = _as_json(redact_values(read_json(folder / RECORD)))
    if (folder / ARGUMENTS).is_file():
        arguments = redact_values(yaml.safe_load((folder / ARGUMENTS).read_text(encoding="utf-8")))
        files[ARGUMENTS] = yaml.safe_dump(arguments, sort_keys=True, allow_unicode=True).encode()
    if content is not None:
        files[RESULTS] = _as_json(content)
    entries = eval_results([*held_out_results(read_json(folder / RECORD)), *measured])
    if entries:
        files[EVAL_RESULTS] = yaml.safe_dump(entries, sort_keys=False, allow_unicode=True).encode()
    license = license or license_of((folder / CARD).read_text() if (folder / CARD).is_file() else None)
    license = license or license_of(remote_card)
    rendered = render_card(folder, repo_id, pictures=pictures, results=measured, license=license, space=space)
    files[CARD] = _card(folder, rendered, license, remote_card).encode()
    with _sharded(weights, max_shard_size) as sharded:
        yield dict(sorted({**files, **sharded}.items()))
