"""`evaluate_model`: measures a model's features, task by task, as JSON that a card can take."""

import dataclasses
import hashlib
import json
import logging
import os
import shlex
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack

import torch
from PIL import Image
from tqdm.auto import tqdm

from hf_geossl.evaluation.arguments import EvaluationArguments, EvaluationKeywords, image_size_of
from hf_geossl.evaluation.duration import duration_line
from hf_geossl.evaluation.encoders import Encoder, mixed_precision
from hf_geossl.evaluation.loading import ModelLike, load_encoder
from hf_geossl.evaluation.options import EvaluationData, EvaluationOptions
from hf_geossl.evaluation.protocol import EvaluationProtocol, load_protocol
from hf_geossl.evaluation.reading.sample_store import SampleStore
from hf_geossl.evaluation.registry import (
    ABOUT,
    DEFAULT_TASKS,
    FAILED,
    RESULTS,
    SCENES,
    TASKS,
    TIMM,
    check_tasks,
    missing_package,
    named_tasks,
)
from hf_geossl.evaluation.results import as_json, describe, read_earlier, result_entry, write_json
from hf_geossl.evaluation.samples import Columns, folder_hash
from hf_geossl.evaluation.settings import bounded, differences, make_settings
from hf_geossl.hub.redaction import redact, redact_values
from hf_geossl.hub.run_record import is_hub_id, weights_digest
from hf_geossl.training.pictures.base import save_picture

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

logger = logging.getLogger(__name__)


def evaluate_model(
    model: ModelLike,
    tasks: str | Iterable[str] = DEFAULT_TASKS,
    dataset: str = SCENES,
    *,
    output: str | Path | None = None,
    settings: Mapping[str, Mapping[str, object]] | None = None,
    pictures: bool = True,
    overwrite: bool = False,
    store: SampleStore | None = None,
    **keywords: Unpack[EvaluationKeywords],
) -> dict[str, Any]:
    """Measures a model's features.

    Every finished task is written at once. A second call with the same model, data and seed measures only what is missing
    or has other settings; what cannot be measured with them has no numbers then, those of other settings are dropped.

    Args:
        model (`str`, `Path`, `nn.Module` or `Encoder`): A folder or Hub id that `AutoModel` opens, `"timm:NAME"`, or a
            vision transformer of this library, transformers or timm.
        tasks (`Iterable[str]` or `str`): Names of `hf_geossl.evaluation.registry.TASKS`, or `"all"`, which leaves those out
            that the model has no head for.
        dataset (`str`): `"scenes"`, a folder, or the id of a dataset on the Hub, see `load_samples`; for the task propagation
            also a folder of clips, see `folder_clips`.
        output (`str` or `Path`, *optional*): JSON file; pictures go to a folder of its name beside it. By default
            `results.json` in the model's folder, from where `publish` takes it; nothing is written for other models.
        settings (`dict`, *optional*): Of single tasks, such as `{"segmentation": {"steps": 1000}}`.
        pictures (`bool`): Whether to draw pictures of what is measured, where there is a file of results.
        overwrite (`bool`): Measure finished tasks again, and replace results of another model, data or seed.
        store (`SampleStore`, *optional*): Where decoded images are kept; give all calls the same one to decode them once for
            several models. Its own, for all tasks of the call, by default.
        keywords: `limit`, `image_size`, `seed`, `device` and the others of `EvaluationArguments`.

    Returns:
        `dict`: `{task: {metric: number, "intervals": {metric: [low, high]}, "settings": {...}, "details": {...}}}`, as it
        is written. A metric without a finite value is named in `"undefined"`. `"about"` describes model, data and
        seed, and under `"failed"` in a sentence each which tasks could not be measured.

    Raises:
        ImportError: If every task needs a package that is missing.
        ValueError: If there is no such model, dataset, task or setting, or the file holds other results.
    """
    arguments, names = EvaluationArguments(**keywords), named_tasks(tasks)
    chosen, failed, shorter = _choose(names, settings or {}, arguments)
    if not chosen:
        raise ImportError(next(iter(failed.values())))
    file = _checked_output(default_output(model) if output is None else Path(output))
    options = arguments.options
    encoder = load_encoder(
        model,
        device=arguments.device,
        trust_remote_code=arguments.trust_remote_code,
        revision=arguments.revision,
    )
    for name in [name for name in chosen if name not in names]:  # those of "all"
        if missing := chosen[name][0].missing_requirement(encoder):
            _say(options.progress, f"{encoder.name}, {name} is left out: {missing}")
            del chosen[name]
    data = arguments.data(dataset, encoder, store)
    together = [feature for _, own in chosen.values() for feature in getattr(own, "features", ())]
    options = replace(options, together=tuple(dict.fromkeys(together)))
    about = _about(encoder, data, options, arguments.quick)
    if isinstance(model, (str, Path)) and (digest := weights_digest(Path(model))) is not None:
        about["weights_digest"] = digest
    results = read_earlier(file, about, overwrite)
    about["pictures"] = results.pop(ABOUT, {}).get("pictures", {})
    run = _Run(
        _name_in_commands(model, encoder), encoder, data, options, arguments, file, pictures, about, results, failed
    )
    for name, reason in failed.items():
        logger.warning(f"{encoder.name}, {name} was not measured: {reason}")
    run.draw_features()
    if words := [f"{name} by {shorter[name]}" for name in chosen if name in shorter]:
        asked = "--quick" if arguments.quick else f"--limit {arguments.most_images}"
        _say(options.progress, f"{encoder.name}: shortened for {asked}: {'; '.join(words)}")
    run.say_duration({name: own for name, (_, own) in chosen.items() if overwrite or not run.is_measured(name, own)})
    with options.feature_cache() as run.options:
        for name, (protocol, own) in chosen.items():
            run.measure(name, protocol, own, overwrite)
    run.save()
    measured = {name: run.results[name] for name in chosen if name in run.results}
    return as_json(redact_values({**measured, ABOUT: about}))


def default_output(model: ModelLike) -> Path | None:
    """`results.json` in the model's folder; None for what is no folder."""
    return Path(model) / RESULTS if isinstance(model, (str, Path)) and Path(model).is_dir() else None


def _choose(
    tasks: Sequence[str], settings: Mapping[str, Mapping[str, object]], arguments: EvaluationArguments
) -> tuple[dict[str, tuple[EvaluationProtocol, Any]], dict[str, str], dict[str, str]]:
    """Protocols and their settings by task; in a sentence each which cannot be imported, and in words what is shortened."""
    names = check_tasks(tasks)
    if unknown := set(settings) - set(names):
        raise ValueError(f"settings are given for {', '.join(sorted(unknown))}, which is not among the tasks")
    chosen: dict[str, tuple[EvaluationProtocol, Any]] = {}
    failed, shorter = dict[str, str](), dict[str, str]()
    for name in names:
        try:
            protocol = load_protocol(name)
        except ImportError as error:
            failed[name] = str(error)
        else:
            given = settings.get(name, {})
            whole: Any = make_settings(name, protocol.settings, given)
            own = bounded(whole, given, limit=arguments.most_images, quick=arguments.quick)
            chosen[name] = protocol, own
            if own != whole:
                shorter[name] = differences(own, whole)
    return chosen, failed, shorter


def _checked_output(file: Path | None) -> Path | None:
    """The file of results, whose folder is there and can be written to."""
    if file is None:
        return None
    if file.is_dir():
        raise ValueError(f"{file.name} is a folder: name a JSON file for the results, such as {file.name}/{RESULTS}")
    file.parent.mkdir(parents=True, exist_ok=True)
    if not os.access(file.parent, os.W_OK):
        raise ValueError(f"the folder of {file.name} cannot be written to: name a file elsewhere for the results")
    return file


@dataclass
class _Run:
    """One call of `evaluate_model`: what is the same for all tasks, and the results so far."""

    name: str | None  # of the model in commands; None of a model that was given as an object
    encoder: Encoder
    data: EvaluationData
    options: EvaluationOptions
    arguments: EvaluationArguments
    file: Path | None
    pictures: bool
    about: dict[str, Any]
    results: dict[str, Any]
    failed: dict[str, str] = field(default_factory=dict)

    def is_measured(self, name: str, settings: "DataclassInstance") -> bool:
        """Whether an earlier call has measured the task with these settings."""
        return self.results.get(name, {}).get("settings") == as_json(dataclasses.asdict(settings))

    def say_duration(self, settings: Mapping[str, object]) -> None:
        """Says about how long the tasks will take."""
        if self.options.progress and (line := duration_line(self.encoder, self.data, self.options, settings)):
            _say(True, f"{self.encoder.name}: {line}")

    def measure(self, name: str, protocol: EvaluationProtocol, settings: "DataclassInstance", overwrite: bool) -> None:
        """Measures a task, unless that has been done, and writes what came out."""
        plain, model = as_json(dataclasses.asdict(settings)), self.encoder.name
        if not overwrite and self.is_measured(name, settings):
            _say(self.options.progress, f"{model}, {name}: has been measured before")
            return
        start = time.monotonic()
        try:
            measured = protocol.measure(self.encoder, self.data, self.options, settings)
        except Exception as error:  # the others go on, and the caller reads why
            self.failed[name] = _reason(name, error)
            dropped = ""
            if name in self.results and self.results[name].get("settings") != plain:
                del self.results[name]
                dropped = "; its former numbers, of other settings, are dropped"
            logger.warning(f"{model}, {name} was not measured: {self.failed[name]}{dropped}")
            logger.debug(name, exc_info=True)
            return
        self.results[name] = result_entry(measured, plain, time.monotonic() - start, self.encoder.device)
        _say(self.options.progress, f"{model}, {describe(name, self.results[name])}")
        self.save()
        if drawn := self.draw(f"{name}_", measured.pictures):
            self.results[name]["pictures"] = drawn
            self.save()

    def save(self) -> None:
        """Writes all results, in the order of the tasks."""
        self.results = {name: self.results[name] for name in TASKS if name in self.results}
        self.about["command"] = self.command()
        self.about[FAILED] = self.failed
        if self.file is not None:
            write_json(self.file, {**self.results, ABOUT: self.about})

    def command(self) -> str:
        """The command that measures all that there is; of a model given as an object, the call."""
        about = self.about
        if self.name is None:
            tasks = ", ".join(repr(name) for name in self.results)
            return f"evaluate_model({about['model']}, [{tasks}], {about['dataset']!r}, seed={about['seed']})"
        words = ["geossl", "evaluate", self.name, "--tasks", ",".join(self.results), "--dataset", about["dataset"]]
        defaults = {"train_split": "train", "split": "test", "seed": 0, "bootstrap": 1000, "limit": None}
        for key, default in defaults.items():
            if about.get(key) != default:
                words += [f"--{'test_split' if key == 'split' else key}", str(about[key])]
        if about["image_size"] != image_size_of(self.encoder, None):
            words += ["--image_size", str(about["image_size"])]
        words += ["--quick"] if self.arguments.quick else []
        for key in ("revision", "dataset_revision", "device"):
            value = getattr(self.arguments, key)
            words += [] if value is None else [f"--{key}", value]
        words += ["--trust_remote_code"] if self.arguments.trust_remote_code else []
        words += ["--dataset_config", about["config_name"]] if "config_name" in about else []
        for key, value in about.get("columns", {}).items():
            option = f"--{key}" if key in ("depth_scale", "bbox_format", "reduce_labels") else f"--{key}_column"
            words += [option] if value is True else [option, str(value)]
        for name, entry in self.results.items():
            words += _changed_settings(name, entry["settings"], self.arguments)
        return shlex.join(words)

    def draw_features(self) -> None:
        """Draws the principal components of the patch features of some test images, where that has not been done."""
        if "features" not in self.about["pictures"] and not self.data.is_clips:
            self.about["pictures"] = self.draw("", {"features": self._features})

    def _features(self) -> Image.Image:
        from hf_geossl.evaluation.pictures.images import IMAGES, feature_pca

        images = torch.stack([sample["image"] for sample in islice(self.data.test, IMAGES)])
        with torch.no_grad(), mixed_precision(self.encoder.device):
            patches = self.encoder.tokens(self.encoder.normalize(images)).patches.float().cpu()
        title = f"{self.encoder.name}: patch features of {self.data.test.name}, principal components as colours"
        return feature_pca(images.permute(0, 2, 3, 1).numpy(), patches.numpy(), title)

    def draw(self, prefix: str, pictures: Mapping[str, Callable[[], Image.Image]]) -> dict[str, str]:
        """Writes pictures beside the file; returns where, relative to it. What cannot be drawn costs no number."""
        drawn: dict[str, str] = {}
        if self.file is None or not self.pictures:
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


def _name_in_commands(model: ModelLike, encoder: Encoder) -> str | None:
    if not isinstance(model, (str, Path)):
        return None
    return f"{TIMM}{encoder.name}" if str(model).startswith(TIMM) else encoder.name


def _changed_settings(name: str, settings: Mapping[str, object], arguments: EvaluationArguments) -> list[str]:
    """Words of a command for the settings of a task that are not at their defaults for so many images."""
    try:
        own = bounded(load_protocol(name).settings(), (), limit=arguments.most_images, quick=arguments.quick)
        defaults = as_json(dataclasses.asdict(own))
    except ImportError:
        return []
    changed = [(key, value) for key, value in settings.items() if value != defaults.get(key)]
    return [word for key, value in changed for word in ("--set", f"{name}.{key}={json.dumps(value)}")]


def _about(encoder: Encoder, data: EvaluationData, options: EvaluationOptions, quick: bool) -> dict[str, Any]:
    """Model, data and seed, without what is None."""
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
    defaults = dataclasses.asdict(Columns())
    columns = {key: value for key, value in dataclasses.asdict(data.columns).items() if value != defaults[key]}
    about = {
        "model": encoder.name,
        "model_fingerprint": encoder.fingerprint[:16],
        "dataset": Path(data.dataset).resolve().name if Path(data.dataset).is_dir() else data.dataset,
        "dataset_id": data.dataset if not data.is_scenes and is_hub_id(data.dataset) else None,
        "config_name": data.config_name,
        "split": data.test_split,
        "train_split": data.train_split,
        "images": count,
        "limit": data.limit,
        "quick": quick or None,
        "image_size": data.size,
        "data_fingerprint": _short_hash(fingerprints),
        "images_fingerprint": _short_hash(images),
        "seed": options.seed,
        "bootstrap": options.bootstrap,
        "columns": columns or None,
        "precision": "bfloat16" if encoder.device.type == "cuda" else "float32",
    }
    return {key: value for key, value in as_json(redact_values(about)).items() if value is not None}


def _short_hash(parts: Sequence[str]) -> str:
    return hashlib.sha256("".join(parts).encode()).hexdigest()[:16]


def _reason(name: str, error: Exception) -> str:
    """An error in a sentence that may leave the machine."""
    if isinstance(error, ModuleNotFoundError) and not (error.name or "").startswith("hf_geossl"):
        return missing_package(name, error.name)
    known = isinstance(error, (ValueError, TypeError, ImportError, OSError, RuntimeError))
    return ("" if known else f"{type(error).__name__}: ") + redact(str(error) or type(error).__name__)[:400]


def _say(progress: bool, line: str) -> None:
    if progress:
        tqdm.write(line, file=sys.stderr)
