"""`evaluate_model`: what a model's features are worth, task by task, as JSON that a card can take."""

import dataclasses
import hashlib
import json
import logging
import os
import re
import shlex
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm.auto import tqdm

from hf_geossl.evaluation.encoders import TIMM, Encoder, load_encoder, mixed_precision
from hf_geossl.evaluation.options import DEFAULT_CACHE, EvaluationData, EvaluationOptions, TaskResult
from hf_geossl.evaluation.registry import (
    TASK_FILES,
    check_tasks,
    load_task,
    make_settings,
    missing_package,
    named_tasks,
)
from hf_geossl.evaluation.samples import SCENES, Columns, folder_hash
from hf_geossl.hub.redaction import redact, redact_values
from hf_geossl.hub.run_record import installed_versions, is_hub_id, weights_digest
from hf_geossl.training.pictures.base import save_picture

logger = logging.getLogger(__name__)

RESULTS = "results.json"
ABOUT, FAILED = "about", "failed"
DEFAULT_TASKS = ("knn", "linear")
_NUMBERS = re.compile(r"\[\n[\s\d.,eE+\-nul]*\]")  # lists of numbers and null, which stand in a line
# numbers that differ in one of these are not of the same measurement and do not share a file
_IDENTITY = {
    "model_fingerprint": "weights",
    "dataset": "dataset",
    "train_split": "train split",
    "split": "test split",
    "limit": "limit",
    "image_size": "image size",
    "data_fingerprint": "data",
    "seed": "seed",
    "bootstrap": "bootstrap",
    "precision": "precision",
}


def evaluate_model(
    model: Any,
    tasks: str | Iterable[str] = DEFAULT_TASKS,
    dataset: str = SCENES,
    *,
    limit: int | None = None,
    output: str | Path | None = None,
    settings: Mapping[str, Mapping[str, Any]] | None = None,
    image_size: int | None = None,
    train_split: str = "train",
    test_split: str = "test",
    columns: Columns | None = None,
    config_name: str | None = None,
    dataset_revision: str | None = None,
    token: str | None = None,
    batch_size: int = 64,
    num_workers: int = 0,
    seed: int = 0,
    bootstrap: int = 1000,
    cache_dir: str | Path | None = DEFAULT_CACHE,
    device: str | None = None,
    trust_remote_code: bool = False,
    revision: str | None = None,
    pictures: bool = True,
    overwrite: bool = False,
    progress: bool = True,
) -> dict[str, Any]:
    """Measures what a model's features are worth.

    Every finished task is written at once. A second call with the same model, data and seed measures only what is missing
    or has other settings; what cannot be measured with them has no numbers then, those of other settings are dropped.

    Args:
        model (`str`, `Path`, `nn.Module` or `Encoder`): A folder or Hub id that `AutoModel` opens, `"timm:NAME"`, or a
            vision transformer of this library, transformers or timm.
        tasks (`Iterable[str]` or `str`): Names of `hf_geossl.evaluation.registry.TASK_FILES`, or `"all"`, which leaves those
            out that the model has no head for.
        dataset (`str`): `"scenes"`, a folder, or the id of a dataset on the Hub, see `load_samples`; for the task propagation
            also a folder of clips, see `folder_clips`.
        limit (`int`, *optional*): At most so many images of each split.
        output (`str` or `Path`, *optional*): JSON file; pictures go to a folder of its name beside it. By default
            `results.json` in the model's folder, from where `publish` takes it; nothing is written for other models.
        settings (`dict`, *optional*): Of single tasks, such as `{"segmentation": {"steps": 1000}}`.
        image_size (`int`, *optional*): Side of the images in pixels, a multiple of the patch size; the model's own by
            default.
        train_split, test_split (`str`): What heads are trained on, and what is measured.
        columns (`Columns`, *optional*): What the dataset's columns are called.
        config_name, dataset_revision, token (`str`, *optional*): Of a dataset on the Hub; the mode of the scenes ("topdown",
            "object") is their `config_name`.
        batch_size, num_workers, seed, bootstrap, cache_dir, progress: See `EvaluationOptions`.
        device (`str`, *optional*): A GPU if there is one.
        trust_remote_code, revision: Of a model on the Hub, see `load_encoder`.
        pictures (`bool`): Whether to draw pictures of what is measured, where there is a file of results.
        overwrite (`bool`): Measure finished tasks again, and replace results of another model, data or seed.

    Returns:
        `dict`: `{task: {metric: number, "intervals": {metric: [low, high]}, "settings": {...}, "details": {...}}}`, as it
        is written. A metric without a finite value is named in `"undefined"`. `"about"` tells of model, data and
        seed, and under `"failed"` in a sentence each which tasks could not be measured.

    Raises:
        ValueError: If there is no such model, dataset, task or setting, or the file holds other results.
    """
    asked_for = named_tasks(tasks)
    names = check_tasks(asked_for)
    unknown = set(settings or {}) - set(names)
    if unknown:
        raise ValueError(f"settings are given for {', '.join(sorted(unknown))}, which is not among the tasks asked for")
    failed: dict[str, str] = {}
    chosen: dict[str, Any] = {}
    for name in names:
        try:
            task = load_task(name)
            chosen[name] = (task, make_settings(name, task, (settings or {}).get(name, {})))
        except ImportError as error:
            failed[name] = str(error)
    file = default_output(model) if output is None else Path(output)
    if file is not None and file.is_dir():
        raise ValueError(f"{file.name} is a folder: name a JSON file for the results, such as {file.name}/{RESULTS}")
    if file is not None:
        file.parent.mkdir(parents=True, exist_ok=True)
        if not os.access(file.parent, os.W_OK):
            raise ValueError(f"the folder of {file.name} cannot be written to: name a file elsewhere for the results")
    cache = None if cache_dir is None else Path(cache_dir)
    options = EvaluationOptions(batch_size, num_workers, seed, bootstrap, cache, progress)
    encoder = load_encoder(model, device=device, trust_remote_code=trust_remote_code, revision=revision)
    for name in [name for name in chosen if name not in asked_for]:
        lack = chosen[name][0].lacks(encoder)
        if lack:
            _say(progress, f"{encoder.name}, {name} is left out: {lack}")
            del chosen[name]
    data = EvaluationData(
        dataset,
        _image_size(encoder, image_size),
        limit,
        train_split,
        test_split,
        columns or Columns(),
        config_name,
        dataset_revision,
        token,
    )
    about = _about(encoder, data, options)
    if isinstance(model, (str, Path)) and (digest := weights_digest(Path(model))) is not None:
        about["weights_digest"] = digest
    results = _former(file, about, overwrite)
    about["pictures"] = results.pop(ABOUT, {}).get("pictures", {})
    given = {"revision": revision, "dataset_revision": dataset_revision, "device": device}
    if trust_remote_code:
        given["trust_remote_code"] = ""
    run = _Run(model, encoder, data, file if pictures else None, given)

    def save() -> None:
        ordered = {name: results[name] for name in TASK_FILES if name in results}
        about["command"] = run.command(ordered, about)
        about[FAILED] = failed
        results.clear()
        results.update(ordered)
        if file is not None:
            write_json(file, {**ordered, ABOUT: about})

    for name, reason in failed.items():
        logger.warning(f"{encoder.name}, {name} was not measured: {reason}")
    if "features" not in about["pictures"] and not data.is_clips:
        about["pictures"] = run.draw("", {"features": run.features})
    for name, (task, own) in chosen.items():
        plain = as_json(dataclasses.asdict(own))
        if not overwrite and results.get(name, {}).get("settings") == plain:
            _say(progress, f"{encoder.name}, {name}: kept, measured before")
            continue
        start = time.monotonic()
        try:
            measured = task.measure(encoder, data, options, own)
        except Exception as error:  # the others go on, and the caller is told
            failed[name] = _reason(name, error)
            former = ""
            if name in results and results[name].get("settings") != plain:
                del results[name]
                former = "; its former numbers, of other settings, are dropped"
            logger.warning(f"{encoder.name}, {name} was not measured: {failed[name]}{former}")
            logger.debug(name, exc_info=True)
            continue
        results[name] = _entry(measured, plain, time.monotonic() - start, encoder)
        _say(progress, f"{encoder.name}, {describe(name, results[name])}")
        save()
        drawn = run.draw(f"{name}_", measured.pictures)
        if drawn:
            results[name]["pictures"] = drawn
            save()
    save()
    asked = {name: results[name] for name in chosen if name in results}
    return as_json(redact_values({**asked, ABOUT: about}))


def default_output(model: Any) -> Path | None:
    """`results.json` in the model's folder; None for what is no folder."""
    return Path(model) / RESULTS if isinstance(model, (str, Path)) and Path(model).is_dir() else None


def describe(name: str, entry: Mapping[str, Any]) -> str:
    """A finished task in a line: its main numbers, with intervals."""
    told = []
    for metric, value in numbers(entry).items():
        interval = entry.get("intervals", {}).get(metric)
        told.append(f"{metric} {value:.4g}" + (f" [{interval[0]:.4g}, {interval[1]:.4g}]" if interval else ""))
    seconds = entry.get("measured", {}).get("seconds", 0)
    return f"{name}: {', '.join(told[:3]) or 'no number is defined'} ({seconds:.0f} s)"


def numbers(entry: Mapping[str, Any]) -> dict[str, float]:
    """The metrics of a task's entry."""
    return {
        key: value for key, value in entry.items() if isinstance(value, (int, float)) and not isinstance(value, bool)
    }


class _Run:
    """What is the same for all tasks: how the call would be repeated, and where pictures go."""

    def __init__(
        self, model: Any, encoder: Encoder, data: EvaluationData, file: Path | None, given: Mapping[str, str | None]
    ) -> None:
        self.encoder, self.data, self.file, self.given = encoder, data, file, given
        self.name = None
        if isinstance(model, (str, Path)):
            self.name = f"{TIMM}{encoder.name}" if str(model).startswith(TIMM) else encoder.name

    def command(self, results: Mapping[str, Any], about: Mapping[str, Any]) -> str:
        """The command that measures all that there is; of a model given as an object, the call."""
        if self.name is None:
            tasks = ", ".join(repr(name) for name in results)
            return f"evaluate_model({about['model']}, [{tasks}], {about['dataset']!r}, seed={about['seed']})"
        words = ["geossl", "evaluate", self.name, "--tasks", ",".join(results), "--dataset", about["dataset"]]
        defaults = {"train_split": "train", "split": "test", "seed": 0, "bootstrap": 1000, "limit": None}
        for key, default in defaults.items():
            if about.get(key) != default:
                words += [f"--{'test_split' if key == 'split' else key}", str(about[key])]
        if about["image_size"] != _image_size(self.encoder, None):
            words += ["--image_size", str(about["image_size"])]
        for key, told in self.given.items():
            words += [] if told is None else [f"--{key}", told] if told else [f"--{key}"]
        if "config_name" in about:
            words += ["--dataset_config", about["config_name"]]
        for key, value in about.get("columns", {}).items():
            option = f"--{key}" if key in ("depth_scale", "reduce_labels") else f"--{key}_column"
            words += [option] if value is True else [option, str(value)]
        for name, entry in results.items():
            changed = entry["settings"]
            try:
                defaults_of = as_json(dataclasses.asdict(load_task(name).settings()))
            except ImportError:
                continue
            for key, value in changed.items():
                if value != defaults_of.get(key):
                    words += ["--set", f"{name}.{key}={json.dumps(value)}"]
        return shlex.join(words)

    def features(self) -> Any:
        """Principal components of the patch features of some test images."""
        from hf_geossl.evaluation.pictures import IMAGES, feature_pca

        images = torch.stack([sample["image"] for sample in islice(self.data.test, IMAGES)])
        with torch.no_grad(), mixed_precision(self.encoder.device):
            patches = self.encoder.tokens(self.encoder.normalize(images)).patches.float().cpu()
        title = f"{self.encoder.name}: patch features of {self.data.test.name}, principal components as colours"
        return feature_pca(images.permute(0, 2, 3, 1).numpy(), patches.numpy(), title)

    def draw(self, prefix: str, pictures: Mapping[str, Any]) -> dict[str, str]:
        """Writes pictures beside the file; returns where, relative to it. What cannot be drawn costs no number."""
        drawn: dict[str, str] = {}
        if self.file is None:
            return drawn
        folder = self.file.parent / self.file.stem
        for name, make in pictures.items():
            path = folder / f"{prefix}{name}.png"
            try:
                picture = make()
                folder.mkdir(parents=True, exist_ok=True)
                save_picture(picture, path)
            except Exception as error:
                logger.warning(f"the picture {path.name} was not drawn: {_reason('it', error)}")
                logger.debug(path.name, exc_info=True)
                continue
            drawn[name] = path.relative_to(self.file.parent).as_posix()
        return drawn


def _image_size(encoder: Encoder, asked: int | None) -> int:
    patch = encoder.patch_size
    if asked is None:
        return max(1, round(encoder.image_size / patch)) * patch
    if asked < patch or asked % patch:
        nearest = max(1, round(asked / patch)) * patch
        raise ValueError(
            f"image_size must be a multiple of the patch size {patch}, got {asked}; {nearest} is the nearest"
        )
    return asked


def _about(encoder: Encoder, data: EvaluationData, options: EvaluationOptions) -> dict[str, Any]:
    if data.is_clips:
        fingerprints = images = [f"{folder_hash(Path(data.dataset))} {data.size} {data.limit} {data.test_split}"]
        count = None
    else:
        test = data.test
        fingerprints, images, count = [test.fingerprint], [test.images_fingerprint], test.count
        try:
            train = data.train
            fingerprints.append(train.fingerprint)
            images.append(train.images_fingerprint)
        except ValueError:  # tasks without a head need no train split, and the others will say so
            fingerprints.append("")
    shown = Path(data.dataset).resolve().name if Path(data.dataset).is_dir() else data.dataset
    about = {
        "model": encoder.name,
        "model_fingerprint": encoder.fingerprint[:16],
        "dataset": shown,
        "dataset_id": data.dataset if not data.is_scenes and is_hub_id(data.dataset) else None,
        "config_name": data.config_name,
        "split": data.test_split,
        "train_split": data.train_split,
        "images": count,
        "limit": data.limit,
        "image_size": data.size,
        "data_fingerprint": _short_hash(fingerprints),
        "images_fingerprint": _short_hash(images),
        "seed": options.seed,
        "bootstrap": options.bootstrap,
        "columns": _changed(data.columns) or None,
        "precision": "bfloat16" if encoder.device.type == "cuda" else "float32",
    }
    return {key: value for key, value in as_json(redact_values(about)).items() if value is not None}


def _short_hash(parts: Sequence[str]) -> str:
    return hashlib.sha256("".join(parts).encode()).hexdigest()[:16]


def _changed(given: Any) -> dict[str, Any]:
    """The fields of a dataclass that are not at their defaults."""
    default = type(given)()
    return {
        field.name: getattr(given, field.name)
        for field in dataclasses.fields(given)
        if getattr(given, field.name) != getattr(default, field.name)
    }


def _former(file: Path | None, about: dict[str, Any], overwrite: bool) -> dict[str, Any]:
    """The results that a former call has left in the file, if they are of the same measurement."""
    if file is None or not file.is_file():
        return {}
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{file.name} is not JSON ({error}): move it away, or name another file") from None
    if not isinstance(found, dict) or not all(isinstance(entry, dict) for entry in found.values()):
        raise ValueError(f"{file.name} holds no results, which are {{task: {{metric: number}}}}: name another file")
    former = found.get(ABOUT, {})
    other = [
        f"{what} {former.get(key, 'unknown')} instead of {about.get(key)}"
        for key, what in _IDENTITY.items()
        if former.get(key) != about.get(key)
    ]
    if not other:
        return found
    if overwrite:
        return {}
    raise ValueError(
        f"{file.name} holds results of another measurement ({', '.join(other[:3])}): name another file, or replace them by "
        "overwrite (--overwrite)"
    )


def _entry(measured: TaskResult, settings: Any, seconds: float, encoder: Encoder) -> dict[str, Any]:
    """A task's result in the form that is written: only finite numbers stand as metrics."""
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
        "device": encoder.device.type,
        "date": datetime.now(UTC).date().isoformat(),
        "versions": installed_versions(),
    }
    return redact_values(as_json(entry))


def floors_by_metric(metrics: Sequence[str], floors: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    """What a model that knows nothing reaches, in one form.

    Args:
        metrics (`Sequence[str]`): Of the task, the main one first.
        floors (`dict`): `{metric: {floor: value}}`, `{floor: {metric: value}}`, or `{floor: value}` of the main metric.

    Returns:
        `dict[str, dict[str, float]]`: `{metric: {floor: value}}`.
    """
    found: dict[str, dict[str, float]] = {}
    for key, entry in floors.items():
        if not isinstance(entry, Mapping):
            found.setdefault(metrics[0], {})[key] = entry
        elif key in metrics:
            found.setdefault(key, {}).update(entry)
        else:
            for metric in entry:
                if metric in metrics:
                    found.setdefault(metric, {})[key] = entry[metric]
    return found


def as_json(value: Any) -> Any:
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


def write_json(path: Path, content: Any) -> None:
    """Writes a JSON file whole or not at all, without paths of the machine and tokens."""
    text = json.dumps(redact_values(as_json(content)), indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    text = _NUMBERS.sub(lambda found: " ".join(found[0].split()).replace("[ ", "[").replace(" ]", "]"), text)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        partial.write_text(text, encoding="utf-8")
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def _reason(name: str, error: Exception) -> str:
    """An error in a sentence that may leave the machine."""
    if isinstance(error, ModuleNotFoundError) and not (error.name or "").startswith("hf_geossl"):
        return missing_package(name, error)
    known = isinstance(error, (ValueError, TypeError, ImportError, OSError, RuntimeError))
    return ("" if known else f"{type(error).__name__}: ") + redact(str(error) or type(error).__name__)[:400]


def _say(progress: bool, line: str) -> None:
    if progress:
        tqdm.write(line, file=sys.stderr)
