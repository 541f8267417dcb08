"""One arm with one seed: pretrained, measured by the probes, and the line of results that it leaves."""

import hashlib
import itertools
import json
import logging
import math
import shutil
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from transformers import set_seed
from transformers.utils.logging import disable_progress_bar

from benchmarks.interleave import machine
from benchmarks.scenes_experiment.arms import ARMS, WEIGHT_ARMS, WEIGHT_TASKS, Arm
from benchmarks.scenes_experiment.presets import Preset
from benchmarks.scenes_experiment.rendering import RenderedScenes
from hf_geossl import LOCAForPreTraining, evaluate_model
from hf_geossl.data.scenes.description import SCENES_VERSION
from hf_geossl.evaluation.reading.sample_store import SampleStore
from hf_geossl.modeling.objectives import prediction_diversity
from hf_geossl.training.progress import ImagesProgressCallback

LOG_LINES = 40  # of a run
STREAMS = 12  # that images are read in: their order is the same with any number of processes that divides this
DETAILS = ("floors", "beats_all_floors")  # what the rule reads beside the numbers


class FailedProbesError(RuntimeError):
    """Probes could not be measured; the message says which and why."""


def arm_named(name: str) -> Arm:
    """An arm of `ARMS` or `WEIGHT_ARMS`."""
    return (ARMS | WEIGHT_ARMS)[name]


def tasks_of(name: str, preset: Preset) -> dict[str, dict[str, Any]]:
    """The probes of an arm and their settings."""
    if name in WEIGHT_ARMS:
        return {task: preset.tasks[task] for task in WEIGHT_TASKS}
    left_out = preset.not_read.get(name, preset.not_read.get(arm_named(name).objective, ()))
    tasks = {task: settings for task, settings in preset.tasks.items() if task not in left_out}
    if name == "loca":
        tasks["position"] = {
            "focal_queries": preset.num_focal,
            "reference_scale": preset.global_scale,
            "focal_scale": preset.local_scale,
        }
    return tasks


def settings_digest(name: str, seed: int, preset: Preset, *, probes: bool = True) -> str:
    """A hash of all settings that an arm's numbers (without `probes`, its weights) depend on."""
    arm = arm_named(name)
    settings: dict[str, Any] = {"scenes": SCENES_VERSION, "arm": name, "seed": seed}
    settings["pretraining"] = preset.of_pretraining(arm.objective)
    if not arm.trained:  # its weights depend on no more than their sizes
        for key in ("steps", "batch_size", "train_images", "training", "reconstruction_weight"):
            del settings["pretraining"][key]
        settings["pretraining"]["recipe"] = preset.of_objective(arm.objective, "model")
    elif name in WEIGHT_ARMS or arm.objective in ("gtsa", "loca", "dino"):  # whose weight is in the name, or none
        del settings["pretraining"]["reconstruction_weight"]
    if probes:
        settings["probes"] = [tasks_of(name, preset), preset.probe_images, preset.bootstrap]
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:12]


def pretrain(arm: Arm, seed: int, preset: Preset, images: RenderedScenes | None, folder: Path, workers: int) -> Any:
    """
    Trains an arm.

    Returns:
        `tuple`: The pretraining model, and what the training logged: seconds, first and last losses, and how far
        predictions differ between images, where the objective has prototypes.
    """
    set_seed(seed)
    parts = arm.make(preset)
    if not arm.trained:
        return parts.model, {}
    cuda, every = torch.cuda.is_available(), max(preset.steps // LOG_LINES, 1)
    given = preset.training | preset.of_objective(arm.objective, "training")
    if "base_learning_rate" not in given:
        given = {"base_learning_rate": None, "min_learning_rate": given["learning_rate"] / 100} | given
    args = parts.arguments(
        output_dir=str(folder),
        max_steps=preset.steps,
        per_device_train_batch_size=preset.batch_size,
        seed=seed,
        data_seed=seed,
        bf16=cuda,
        use_cpu=not cuda,
        dataloader_num_workers=workers,
        num_streams=STREAMS,
        logging_steps=every,
        probe_every_steps=max(preset.steps // 4, 1),
        probe_time_share=1.0,  # whatever time it takes: the same lines on every machine
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        picture=False,
        **given,
    )
    trainer = parts.trainer(parts.model, args, train_dataset=images, views=parts.views)
    clusters = _watch_clusters(parts.model, every) if isinstance(parts.model, LOCAForPreTraining) else []
    trainer.remove_callback(ImagesProgressCallback)  # whose lines do not say whose they are
    began = time.perf_counter()
    trainer.train()
    if trainer.state.global_step < preset.steps:  # Ctrl-C ends a run after its step
        raise KeyboardInterrupt
    seconds = time.perf_counter() - began
    logged = _summary(trainer.state.log_history, clusters) | {"seconds": round(seconds, 1)}
    logged["images_per_second"] = round(preset.steps * preset.batch_size / seconds, 1)
    if "teacher_entropy" in logged:
        logged["uniform_entropy"] = math.log(parts.model.config.num_prototypes)
    trainer.end_processes()
    return parts.model, logged


def _watch_clusters(model: LOCAForPreTraining, every: int) -> list[float]:
    """Collects, now and then, how much LOCA's cluster predictions tell of their tokens; its trainer does not log it."""
    diversities: list[float] = []
    calls = itertools.count()

    @torch.no_grad()
    def observe(module: Any, inputs: Any, outputs: Any) -> None:
        if next(calls) % every == 0:
            logits = outputs.random_query_cluster_logits.float() / module.config.student_temperature
            diversities.append(prediction_diversity(logits.flatten(0, 1).softmax(dim=-1)).item())

    model.register_forward_hook(observe)
    return diversities


def _summary(history: list[dict[str, float]], clusters: Sequence[float]) -> dict[str, Any]:
    """Losses at the start and the end, and the diversity of predictions in the last two quarters of the run."""
    lines = [line for line in history if "loss" in line]
    names = [name for name in lines[0] if name.endswith("loss")]
    summary: dict[str, Any] = {name: [lines[0][name], lines[-1][name]] for name in names}
    diversity = list(clusters) or [line["prediction_diversity"] for line in lines if "prediction_diversity" in line]
    if diversity:
        quarter = max(len(diversity) // 4, 1)
        parts = (diversity[-2 * quarter : -quarter] or diversity, diversity[-quarter:])
        summary["prediction_diversity"] = [statistics.fmean(part) for part in parts]
    for name in ("feature_spread", "teacher_entropy"):
        values = [line[name] for line in lines if name in line]
        if values:
            summary[name] = values[-1]
    return summary


def run_arm(
    name: str,
    seed: int,
    preset: Preset,
    images: RenderedScenes | None,
    work: Path,
    workers: int = 0,
    store: SampleStore | None = None,
) -> dict[str, Any]:
    """
    Pretrains an arm and measures it; one that was killed while it was measured goes on from its finished probes.

    Args:
        name, seed: Which.
        preset (`Preset`): The settings.
        images (`RenderedScenes`, *optional*): To pretrain on; None for random weights.
        work (`Path`): Folder of weights and features.
        workers (`int`): Processes that make views and render the images of the probes.
        store (`SampleStore`, *optional*): Where the latter are, for all arms of this process.

    Returns:
        `dict`: The line of the results' file.

    Raises:
        FailedProbesError: If a probe failed.
    """
    arm, began = arm_named(name), time.perf_counter()
    weights = work / f"{name}-{seed}-{settings_digest(name, seed, preset, probes=False)}"
    notes = weights / "training.json"
    if not notes.is_file():
        run = work / f"run-{name}-{seed}"
        shutil.rmtree(run, ignore_errors=True)
        model, logged = pretrain(arm, seed, preset, images, run, workers)
        shutil.rmtree(run, ignore_errors=True)
        model.save_pretrained(weights)
        part = notes.with_suffix(".part")
        part.write_text(json.dumps(logged))
        part.replace(notes)  # last: weights without it are half written
    tasks = tasks_of(name, preset)
    measured = evaluate_model(
        str(weights),
        list(tasks),
        settings=tasks,
        limit=preset.probe_images,
        image_size=preset.image_size,
        config_name=None if arm.mode == "scene" else arm.mode,
        train_split="validation",  # images that no arm was pretrained on
        test_split="test",
        seed=seed,
        bootstrap=preset.bootstrap,
        output=weights / "results.json",
        cache_dir=None,  # features are shared by the tasks of the call, and gone after it
        pictures=False,
        progress=False,
        num_workers=workers,
        store=store,
    )
    if failed := measured.pop("about")["failed"]:
        raise FailedProbesError("; ".join(f"{task}: {why}" for task, why in failed.items()))
    training = json.loads(notes.read_text())
    seconds = sum(entry["measured"]["seconds"] for entry in measured.values())
    return {
        "arm": name,
        "seed": seed,
        "settings": settings_digest(name, seed, preset),
        "training": training,
        "tasks": {task: _shortened(entry) for task, entry in measured.items()},
        "seconds": {
            "training": training.get("seconds", 0.0),
            "probes": round(seconds, 1),
            "whole": round(time.perf_counter() - began, 1),
        },
        "machine": machine("cuda" if torch.cuda.is_available() else "cpu"),
        "date": time.strftime("%Y-%m-%d"),
    }


def _shortened(entry: Mapping[str, Any]) -> dict[str, Any]:
    """Of a probe's results the numbers, their intervals, and what the rule reads."""
    short = {key: value for key, value in entry.items() if isinstance(value, int | float | list)}
    details = {key: entry["details"][key] for key in DETAILS if key in entry["details"]}
    short |= {"intervals": entry["intervals"]} | ({"details": details} if details else {})
    return _rounded(short | {"seconds": entry["measured"]["seconds"]})


def _rounded(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _rounded(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [_rounded(entry) for entry in value]
    return float(f"{value:.6g}") if isinstance(value, float) else value


@dataclass
class ArmWork:
    """
    What is the same for all arms of a call.

    Args:
        preset (`Preset`): The settings.
        scenes (`dict[str, Path]`): The rendered images by mode.
        folder (`Path`): Of weights and features.
        loaders (`int`): Processes of each arm that make views and render the images of the probes.
        threads (`int`): Of PyTorch, in each process of arms.
    """

    preset: Preset
    scenes: dict[str, Path]
    folder: Path
    loaders: int
    threads: int

    def prepare(self) -> None:
        """Leaves out what the tables say better: the library's warnings, and transformers' bars."""
        torch.set_num_threads(self.threads)
        logging.getLogger("hf_geossl").setLevel(logging.ERROR)
        disable_progress_bar()

    @cached_property
    def store(self) -> SampleStore:
        """Where this process has the images of the probes, which are rendered for the first arm."""
        return SampleStore(num_workers=self.loaders)

    def run(self, job: tuple[str, int]) -> dict[str, Any] | str:
        """What `run_arm` returns, or in a sentence why it failed."""
        name, seed = job
        arm = arm_named(name)
        images = RenderedScenes(self.scenes[arm.mode]) if arm.trained else None
        try:
            return run_arm(name, seed, self.preset, images, self.folder, self.loaders, self.store)
        except (FailedProbesError, ValueError, RuntimeError, OSError) as error:  # the other arms go on
            return f"{type(error).__name__}: {' '.join(str(error).split())[:400]}"
