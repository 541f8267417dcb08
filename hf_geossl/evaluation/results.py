"""Results of an evaluation as they are written: one JSON file a model, which a card and a report read."""

import dataclasses
import json
import os
import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hf_geossl.evaluation.protocol import TaskResult
from hf_geossl.evaluation.registry import ABOUT
from hf_geossl.hub.redaction import redact_values
from hf_geossl.hub.run_record import installed_versions

_NUMBERS = re.compile(r"\[\n[\s\d.,eE+\-nul]*\]")  # lists of numbers and null, which stand in a line
# numbers that differ in one of these are not of the same measurement and do not share a file
_IDENTITY = {
    "model_fingerprint": "weights",
    "dataset": "dataset",
    "train_split": "train split",
    "split": "test split",
    "limit": "limit",
    "quick": "quick",
    "image_size": "image size",
    "data_fingerprint": "data",
    "seed": "seed",
    "bootstrap": "bootstrap",
    "precision": "precision",
}


def describe(name: str, entry: Mapping[str, Any]) -> str:
    """A finished task in a line: its main numbers, with intervals."""
    texts = []
    for metric, value in numbers(entry).items():
        interval = entry.get("intervals", {}).get(metric)
        texts.append(f"{metric} {value:.4g}" + (f" [{interval[0]:.4g}, {interval[1]:.4g}]" if interval else ""))
    seconds = entry.get("measured", {}).get("seconds", 0)
    return f"{name}: {', '.join(texts[:3]) or 'no number is defined'} ({seconds:.0f} s)"


def numbers(entry: Mapping[str, Any]) -> dict[str, float]:
    """The metrics of a task's entry."""
    return {
        key: value for key, value in entry.items() if isinstance(value, (int, float)) and not isinstance(value, bool)
    }


def read_earlier(file: Path | None, about: Mapping[str, Any], overwrite: bool) -> dict[str, Any]:
    """Reads the results that an earlier call has written, if they are of the same measurement; those of another may be dropped.

    Raises:
        ValueError: If the file holds anything else, or results of another measurement.
    """
    if file is None or not file.is_file():
        return {}
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{file.name} is not JSON ({error}): move it away, or name another file") from None
    if not isinstance(content, dict) or not all(isinstance(entry, dict) for entry in content.values()):
        raise ValueError(f"{file.name} holds no results, which are {{task: {{metric: number}}}}: name another file")
    earlier = content.get(ABOUT, {})
    other = [
        f"{what} {earlier.get(key, 'unknown')} instead of {about.get(key)}"
        for key, what in _IDENTITY.items()
        if earlier.get(key) != about.get(key)
    ]
    if not other:
        return content
    if overwrite or not content.keys() - {ABOUT}:  # or nothing could be measured
        return {}
    raise ValueError(
        f"{file.name} holds results of another measurement ({', '.join(other[:3])}): name another file, or replace them by "
        "overwrite (--overwrite)"
    )


def result_entry(
    measured: TaskResult, settings: Mapping[str, object], seconds: float, device: torch.device
) -> dict[str, Any]:
    """Brings a task's result into the form that `evaluate_model` describes; only finite numbers are metrics."""
    metrics = {key: float(value) for key, value in measured.metrics.items()}
    finite = {key: value for key, value in metrics.items() if np.isfinite(value)}
    intervals = {
        key: [float(low), float(high)]
        for key, (low, high) in measured.intervals.items()
        if key in finite and np.isfinite([low, high]).all()
    }
    entry: dict[str, Any] = {**finite, "intervals": intervals}
    if len(finite) < len(metrics):
        entry["undefined"] = sorted(set(metrics) - set(finite))
    details = {key: value for key, value in measured.details.items() if key != "settings"}
    if "floors" in details:
        details["floors"] = floors_by_metric(list(metrics), details["floors"])
    entry |= {"settings": settings, "details": details}
    entry["measured"] = {
        "seconds": round(seconds, 1),
        "device": device.type,
        "date": datetime.now(UTC).date().isoformat(),
        "versions": installed_versions(),
    }
    return redact_values(as_json(entry))


def floors_by_metric(metrics: Sequence[str], floors: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    """Brings floors, what trivial features reach, into the form `{metric: {floor: value}}`.

    They may be that, `{floor: {metric: value}}`, or `{floor: value}` of the main metric, which is the first.
    """
    table: dict[str, dict[str, float]] = {}
    for key, entry in floors.items():
        if not isinstance(entry, Mapping):
            table.setdefault(metrics[0], {})[key] = entry
        elif key in metrics:
            table.setdefault(key, {}).update(entry)
        else:
            for metric in entry:
                if metric in metrics:
                    table.setdefault(metric, {})[key] = entry[metric]
    return table


def as_json(value: object) -> Any:
    """Nested values as JSON holds them; what is no finite number becomes null."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = dataclasses.asdict(value)
    if isinstance(value, Mapping):
        return {str(key): as_json(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple, set)):
        return [as_json(entry) for entry in value]
    if isinstance(value, (np.ndarray, torch.Tensor)):
        return as_json(value.tolist())
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float):
        return value if np.isfinite(value) else None
    if value is None or isinstance(value, (bool, int, str)):
        return value
    return value.name if isinstance(value, Path) else str(value)


def write_json(path: Path, content: Mapping[str, object]) -> None:
    """Writes a JSON file whole or not at all, without paths of the machine and tokens."""
    text = json.dumps(redact_values(as_json(content)), indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    text = _NUMBERS.sub(lambda match: " ".join(match[0].split()).replace("[ ", "[").replace(" ]", "]"), text)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        partial.write_text(text, encoding="utf-8", errors="backslashreplace")  # names that are no UTF-8
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
