"""Which model the folder of a run holds: the exported trunk, and its checkpoints with the whole pretraining model."""

import json
import re
from pathlib import Path
from typing import Any

from hf_geossl.methods import METHODS, WRAPPER

MANIFEST = "COMPLETE.json"  # of a checkpoint: the list of its files, written last
CONFIG, PROCESSOR = "config.json", "preprocessor_config.json"


def file_sizes(folder: Path) -> dict[str, int]:
    """Bytes of all files in a folder by relative path, without the list itself."""
    return {
        str(path.relative_to(folder)): path.stat().st_size
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != MANIFEST
    }


def why_not_whole(checkpoint: Path) -> str | None:
    """Compares a checkpoint with its list of files.

    Args:
        checkpoint (`Path`): The folder.

    Returns:
        `str` or `None`: What is wrong, or None where the checkpoint is whole.
    """
    try:
        files = json.loads((checkpoint / MANIFEST).read_text())["files"]
    except FileNotFoundError:
        return f"it has no {MANIFEST}, so it was never finished"
    except (ValueError, KeyError, TypeError):
        return f"its {MANIFEST} is damaged"
    sizes = file_sizes(checkpoint)
    wrong = [name for name, size in files.items() if sizes.get(name) != size]
    return f"{wrong[0]} has {sizes.get(wrong[0], 'no')} bytes of {files[wrong[0]]}" if wrong else None


def list_checkpoints(output_dir: str | Path) -> list[Path]:
    """The folders `checkpoint-N` of a run, newest first."""
    folder = Path(output_dir)
    if not folder.is_dir():
        return []
    numbered = [
        (int(match.group(1)), path)
        for path in folder.iterdir()
        if (match := re.fullmatch(r"checkpoint-(\d+)", path.name))
    ]
    return [path for _, path in sorted(numbered, reverse=True)]


def read_config(folder: Path) -> dict[str, Any]:
    """The configuration of a model of this library.

    Args:
        folder (`Path`): The model's.

    Returns:
        `dict[str, Any]`: The content of config.json.

    Raises:
        ValueError: If there is no folder, or no model of this library in it.
    """
    _check_folder(folder)
    config = _read_config(folder)
    if config is None:
        raise ValueError(
            f"{folder.name} holds no {CONFIG}: "
            + (unfinished(folder) or "give the folder that geossl pretrain or save_pretrained wrote")
        )
    _check_type(config, folder)
    return config


def unfinished(folder: Path) -> str | None:
    """What to do with the folder of a run that has not ended, in words; None if it is no such folder."""
    newest = next((found for found in list_checkpoints(folder) if why_not_whole(found) is None), None)
    if newest is None:
        return None
    return f"the run has not ended; go on with it by --resume_from_checkpoint true, or give its {folder.name}/{newest.name}"


def find_model(folder: Path) -> tuple[Path, dict[str, Any], str]:
    """Chooses what to show of a folder: the newest whole checkpoint with a pretraining model, else the trunk in it.

    Args:
        folder (`Path`): Of a run, one of its checkpoints, a whole pretraining model, or a trunk.

    Returns:
        `tuple[Path, dict, str]`: The folder with the weights, the content of its config.json, and, where it is a checkpoint
        of the given one, words that say so.

    Raises:
        ValueError: If there is no folder, or no model of this library in it.
    """
    _check_folder(folder)
    config = _read_config(folder)
    place = ""
    if config is None or not is_pretraining(config):
        for checkpoint in list_checkpoints(folder):
            inner = _read_config(checkpoint)
            if inner is not None and is_pretraining(inner) and why_not_whole(checkpoint) is None:
                config, folder, place = inner, checkpoint, f" in {checkpoint.name}"
                break
    if config is None:
        raise ValueError(f"{folder.name} holds no model: there is no {CONFIG} in it, and no whole checkpoint-N folder")
    _check_type(config, folder)
    return folder, config, place


def _check_folder(folder: Path) -> None:
    if not folder.is_dir():
        raise ValueError(
            f"there is no folder {folder.name!r}: give the one that geossl pretrain or save_pretrained wrote"
        )


def _check_type(config: dict[str, Any], folder: Path) -> None:
    backbone = config.get("backbone_config")
    if isinstance(backbone, dict) and backbone.get("model_type") in METHODS:
        raise ValueError(
            f"{folder.name} holds {(config.get('architectures') or ['a model'])[0]} over a trunk of this library: "
            f"transformers opens it, and `hf upload USER/NAME {folder.name}` publishes it, for its folder is whole"
        )
    if config.get("model_type") not in (*METHODS, WRAPPER):
        raise ValueError(
            f"{folder.name} holds a model of type {config.get('model_type')!r}, and this library's are {', '.join(METHODS)}"
        )


def is_pretraining(config: dict[str, Any]) -> bool:
    """Whether a config.json is that of a pretraining model with its heads."""
    return any(str(name).endswith("ForPreTraining") for name in config.get("architectures") or [])


def processor_files(folder: Path) -> list[Path]:
    """Where a model's image processor is stated: in its folder, or beside it where it is a checkpoint of a run."""
    places = [folder, folder.parent] if re.fullmatch(r"checkpoint-\d+", folder.name) else [folder]
    return [path for place in places if (path := place / PROCESSOR).is_file()]


def _read_config(folder: Path) -> dict[str, Any] | None:
    path = folder / CONFIG
    if not path.is_file():
        return None
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(
            f"{CONFIG} of {folder.name} cannot be read ({first_line(error)}): write the folder again"
        ) from error
    if not isinstance(config, dict):
        raise ValueError(f"{CONFIG} of {folder.name} is no configuration of a model")
    return config


def first_line(error: BaseException) -> str:
    """The beginning of an error's message, for another one."""
    lines = str(error).strip().splitlines()
    return lines[0][:200] if lines else type(error).__name__
