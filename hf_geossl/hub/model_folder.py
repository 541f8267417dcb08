"""Which files of a trained folder are published, and in what form: the model, its code, its card, and nothing private."""

import json
import logging
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, cast

import yaml
from huggingface_hub import save_torch_state_dict
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from transformers import PreTrainedModel

import hf_geossl.modeling
from hf_geossl.data.wording import counted
from hf_geossl.hub.auto_classes import auto_map_of
from hf_geossl.hub.card import CARD, keep_written, render_card
from hf_geossl.hub.export import MAX_SHARD_SIZE, export_model, make_image_processor
from hf_geossl.hub.redaction import redact, redact_values
from hf_geossl.hub.repository import Source
from hf_geossl.hub.results import EVAL_RESULTS, RESULTS, eval_results, held_out_results, measured_results, read_results
from hf_geossl.hub.run_folder import CONFIG, PROCESSOR, find_model, is_pretraining, read_config
from hf_geossl.hub.run_record import ARGUMENTS, RECORD, read_json
from hf_geossl.hub.written_card import license_of
from hf_geossl.methods import METHODS, WRAPPER, run_pictures
from hf_geossl.modeling.image_format import ImageFormat
from hf_geossl.modeling.teacher_student import TeacherStudentModel

logger = logging.getLogger(__name__)

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
PRETRAINING = "pretraining"  # folder of a repository with the whole pretraining model
_OF_THE_TRUNK = (CARD, RECORD, RESULTS, EVAL_RESULTS, *run_pictures())
_LABELS = ("id2label", "label2id")  # texts of the person's own, which the model needs as they are
_CODE = Path(hf_geossl.modeling.__file__).parent
_LIBRARY_CODE = frozenset(path.name for path in _CODE.glob("*.py")) - {"__init__.py"}


def is_managed(path: str) -> bool:
    """Whether a file of a repository is one that publishing writes, so that it may take it away again."""
    return (
        path in (WEIGHTS, INDEX, PROCESSOR, RECORD, ARGUMENTS, RESULTS, EVAL_RESULTS, *run_pictures())
        or path in _LIBRARY_CODE
        or path.startswith(f"{PRETRAINING}/")
        or re.fullmatch(r"model-\d{5}-of-\d{5}\.safetensors", path) is not None
    )


@contextmanager
def folder_of(model_or_folder: str | Path | PreTrainedModel) -> Iterator[Path]:
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
    if getattr(config, "model_type", None) not in (*METHODS, WRAPPER):
        raise TypeError(
            f"publish takes a folder, or a model of {', '.join(METHODS)}, got {type(model_or_folder).__name__}; models of "
            "transformers have push_to_hub, which sends the code of composed ones too"
        )
    with TemporaryDirectory() as temporary:
        described = model_or_folder.config.get_image_format()
        processor = make_image_processor(model_or_folder.config.image_height_width, image_format=described)
        if hasattr(model_or_folder, "teacher"):
            export_model(cast(TeacherStudentModel, model_or_folder), temporary, image_processor=processor)
        else:
            model_or_folder.save_pretrained(temporary, max_shard_size=MAX_SHARD_SIZE)
            processor.save_pretrained(temporary)
        yield Path(temporary)


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


def _as_json(value: object) -> bytes:
    return (json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False) + "\n").encode()


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
    with_heads: bool = False,
) -> Iterator[dict[str, Source]]:
    """The files of a model repository.

    Args:
        folder (`Path`): A run's folder, or one that `save_pretrained` wrote.
        repo_id, results, license, max_shard_size: As in `publish`.
        space (`str`, *optional*): The Space that the card points to.
        remote_card (`str`, *optional*): The card in the repository now; what was written there by hand is kept.
        with_heads (`bool`): Whether the whole pretraining model is published beside it.

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
    content = measured_results(folder, results)
    measured = [] if content is None else read_results(content)
    auto_map = auto_map_of(config)
    shared = {redact(key): value if key in _LABELS else redact_values(value) for key, value in config.items()}
    shared["auto_map"] = auto_map
    shared.pop("_name_or_path", None)
    processor = _processor(folder, config)
    files: dict[str, Source] = {
        CONFIG: _as_json(shared),
        PROCESSOR: _as_json(processor),
        **code_of(folder, {**auto_map, **processor.get("auto_map", {})}),
        **{name: folder / name for name in run_pictures() if (folder / name).is_file()},
        **_run_files(folder),
    }
    if content is not None:
        files[RESULTS] = _as_json(content)
    entries = eval_results([*held_out_results(read_json(folder / RECORD)), *measured])
    if quick := sum(one.quick for one in measured):
        logger.warning(f"{counted(quick, 'number')} of a quick evaluation: on the card as that, not in its metadata")
    if entries:
        files[EVAL_RESULTS] = yaml.safe_dump(entries, sort_keys=False, allow_unicode=True).encode()
    local_card = (folder / CARD).read_text(encoding="utf-8") if (folder / CARD).is_file() else None
    license = license or license_of(local_card) or license_of(remote_card)
    rendered = render_card(folder, repo_id, results=measured, license=license, space=space, with_heads=with_heads)
    written = {"in the folder": local_card, "on the Hub": remote_card}
    files[CARD] = keep_written(folder.resolve().name, rendered, written, license).encode()
    with _sharded(weights, max_shard_size) as sharded:
        yield dict(sorted({**files, **sharded}.items()))


@contextmanager
def pretraining_files(folder: Path, repo_id: str) -> Iterator[dict[str, Source]]:
    """The whole pretraining model of a run, for `publish(..., extra_files=...)`: others go on from it by `--init_from`.

    Args:
        folder (`Path`): Of a run with a whole checkpoint.
        repo_id (`str`): `user/name`.

    Yields:
        `dict[str, Path | bytes]`: Weights of student, teacher and heads, configuration, code and processor of its newest
        whole checkpoint, by path in the repository, in the folder `pretraining`.

    Raises:
        ValueError: If there is none.
    """
    checkpoint, config, _ = find_model(folder)
    if not is_pretraining(config):
        raise ValueError(
            f"{folder.name} has no whole checkpoint with heads and teacher: publish it without --include_pretraining"
        )
    with model_files(checkpoint, repo_id) as files:
        yield {f"{PRETRAINING}/{path}": source for path, source in files.items() if path not in _OF_THE_TRUNK}


def _processor(folder: Path, config: Mapping[str, Any]) -> dict[str, Any]:
    """The image processor to publish: the folder's, or one with ImageNet's normalisation."""
    if (folder / PROCESSOR).is_file():
        processor = redact_values(read_json(folder / PROCESSOR))
    else:
        logger.warning(f"{folder.name} holds no {PROCESSOR}: one with ImageNet's mean and deviation is published")
        with TemporaryDirectory() as temporary:
            size, described = config.get("image_size", 224), config.get("image_format")
            sides = (size, size) if isinstance(size, int) else tuple(size)
            own = None if described is None else ImageFormat.from_dict(described)
            make_image_processor(sides, image_format=own).save_pretrained(temporary)
            processor = read_json(Path(temporary) / PROCESSOR)
    segments = (config.get("architectures") or [""])[0].endswith("ForSemanticSegmentation")
    if segments and str(processor.get("image_processor_type", "")).startswith("ViTImageProcessor"):
        # resizes and normalises alike, and turns logits into masks, which the Hub's pipeline asks for
        processor |= {"image_processor_type": "SegformerImageProcessor", "do_reduce_labels": False}
    return processor


def _run_files(folder: Path) -> dict[str, Source]:
    """The record and the arguments of the run, redacted again, for files may have been changed since."""
    files: dict[str, Source] = {}
    if (folder / RECORD).is_file():
        files[RECORD] = _as_json(redact_values(read_json(folder / RECORD)))
    if (folder / ARGUMENTS).is_file():
        arguments = redact_values(yaml.safe_load((folder / ARGUMENTS).read_text(encoding="utf-8")))
        files[ARGUMENTS] = yaml.safe_dump(arguments, sort_keys=True, allow_unicode=True).encode()
    return files
