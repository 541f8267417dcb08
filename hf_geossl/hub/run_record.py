"""The record of a run in plain values: what its card says, and its arguments without tokens and paths of the machine."""

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub.utils import HFValidationError, validate_repo_id
from safetensors import SafetensorError, safe_open
from transformers import TrainingArguments

from hf_geossl.hub.redaction import redact, redact_values
from hf_geossl.version import __version__

RECORD, ARGUMENTS = "training_run.json", "training_args.yaml"
_DTYPES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}
_PACKAGES = ("torch", "transformers", "datasets", "accelerate")
# of the machine, of the person, or of what is printed; none changes what is learned
_NOT_SHARED = {
    "output_dir",
    "logging_dir",
    "run_name",
    "resume_from_checkpoint",
    "deepspeed",
    "fsdp_config",
    "accelerator_config",
    "local_rank",
    "report_to",
    "project",
}


def installed_versions() -> dict[str, str]:
    """Versions of this library and of those that it is built on, by name.

    Returns:
        `dict[str, str]`: This library's is that of the code itself, which a checkout has without being installed; of
        other packages those that are installed.
    """
    versions = {"hf_geossl": __version__}
    for package in _PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    return versions


def is_hub_id(name: str | None) -> bool:
    """Whether a text has the form `user/name` of a Hub repository and is no path that exists here."""
    if name is None:
        return False
    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return name.count("/") == 1 and not Path(name).exists() and redact(name) == name


def weights_digest(folder: Path) -> str | None:
    """Hashes the weights of a model.

    Args:
        folder (`Path`): Of the model.

    Returns:
        `str`: A hash of the files `model*.safetensors`; None where there are none.
    """
    files = sorted(folder.glob("model*.safetensors"))
    total = hashlib.sha256()
    for path in files:
        with path.open("rb") as file:
            total.update(f"{path.name} {hashlib.file_digest(file, 'sha256').hexdigest()} ".encode())
    return total.hexdigest()[:16] if files else None


def weights_dtypes(folder: Path) -> list[str]:
    """The number formats in a model's weights, such as `["float32"]`; empty where there are no weights to read."""
    dtypes = set()
    for path in sorted(folder.glob("model*.safetensors")):
        try:
            with safe_open(path, framework="pt") as file:
                dtypes |= {file.get_slice(name).get_dtype() for name in file.keys()}  # noqa: SIM118
        except SafetensorError:
            continue
    return sorted(_DTYPES.get(dtype, dtype) for dtype in dtypes)


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file, or an empty one where there is no file."""
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def measured_losses(
    history: Sequence[Mapping[str, Any]], metrics: Sequence[str], lines: int = 8
) -> list[dict[str, float]]:
    """Chooses evenly spread log lines of a run.

    Args:
        history (`list[dict]`): The Trainer's `log_history`.
        metrics (`Sequence[str]`): Logged values that are taken beside the losses.
        lines (`int`): How many at most, the first and the last among them.

    Returns:
        `list[dict[str, float]]`: Each with `step` and the values logged there.
    """
    logged = [entry for entry in history if "loss" in entry]
    if not logged:
        return []
    names = [name for name in logged[-1] if name == "loss" or name.endswith("_loss") or name in metrics]
    chosen = sorted({round(index * (len(logged) - 1) / max(lines - 1, 1)) for index in range(lines)})
    return [{"step": logged[i]["step"], **{n: logged[i][n] for n in names if n in logged[i]}} for i in chosen]


def shared_arguments(args: TrainingArguments) -> dict[str, Any]:
    """The training arguments that others may read: those that differ from transformers' defaults, and this library's own.

    Args:
        args (`TrainingArguments`): The arguments.

    Returns:
        `dict[str, Any]`: Plain values without tokens, and without folders and names of the machine.
    """
    defaults = {entry.name: entry.default for entry in dataclasses.fields(TrainingArguments)}
    masked = json.loads(json.dumps(args.to_dict(), default=str))
    chosen = {
        name: value
        for name, value in masked.items()
        if name not in _NOT_SHARED and not name.startswith("hub_") and value != defaults.get(name, dataclasses.MISSING)
    }
    return redact_values(
        {name: value for name, value in chosen.items() if not (value is None and name not in defaults)}
    )


def write_arguments(arguments: Mapping[str, Any], folder: Path) -> None:
    """Writes `training_args.yaml` to a folder.

    Args:
        arguments (`Mapping[str, Any]`): As `shared_arguments` gives them.
        folder (`Path`): The folder.
    """
    text = yaml.safe_dump(redact_values(dict(arguments)), sort_keys=True, allow_unicode=True)
    (folder / ARGUMENTS).write_text(text, encoding="utf-8")


def write_record(record: Mapping[str, Any], folder: Path) -> None:
    """Writes `training_run.json` to a folder.

    Args:
        record (`Mapping[str, Any]`): Plain values; what is None or an empty list is left out, tokens and paths of the
            machine are removed. A card reads `weights`, `weights_step` (the optimizer step that the exported weights are
            of), `steps` (how many the run made), `precision` (in which it really computed) and what else it finds.
        folder (`Path`): The folder.
    """
    known = redact_values({name: value for name, value in record.items() if value not in (None, [])})
    (folder / RECORD).write_text(json.dumps(known, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
