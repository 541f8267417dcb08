"""
The desk-scale experiment on scenes: which method keeps what, arms x seeds, by rules that were fixed before.

`python -m benchmarks.scenes_experiment --preset smoke` (two CPU cores; nothing is claimed from it), `desk`, `desk_long` or `gpu`.
Trunk, data, steps, optimizer and colours are the same for all arms; the objective and its own geometry of views differ.
A second start goes on with the arms that are missing, whatever ended the first.
"""

import argparse
import fcntl
import os
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.scenes_experiment.arms import ARMS, WEIGHT_ARMS, WEIGHTS
from benchmarks.scenes_experiment.presets import PRESETS, Preset, read_settings
from benchmarks.scenes_experiment.rendering import render_scenes
from benchmarks.scenes_experiment.results import ResultsFile
from benchmarks.scenes_experiment.rule import ROTATION_R2
from benchmarks.scenes_experiment.runs import STREAMS, ArmWork, arm_named, settings_digest
from benchmarks.scenes_experiment.tables import describe_weight, markdown
from benchmarks.scenes_experiment.workers import Job, run_all
from hf_geossl.data.scenes.description import SCENES_VERSION

RESULTS = Path(__file__).parents[1] / "results" / "scenes_experiment"
GPU_PARALLEL = 3


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(
        prog="python -m benchmarks.scenes_experiment",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    made.add_argument("--preset", choices=sorted(PRESETS), default="smoke")
    made.add_argument("--arms", default=",".join(ARMS), help="Names with commas; *_object are on the object twin.")
    made.add_argument("--seeds", default="0,1,2", help="Seeds with commas.")
    made.add_argument(
        "--set",
        nargs="+",
        default=[],
        metavar="NAME=VALUE",
        help="Other settings than the preset's: steps=100, training.learning_rate=5e-4, "
        "dino.training.teacher_temperature_start=0.03, ibot.model.centering=sinkhorn; written into the results.",
    )
    made.add_argument("--output", type=Path, help="Folder of the results; benchmarks/results/... by default.")
    made.add_argument("--work", type=Path, default=Path("runs/scenes_experiment"), help="Folder of images and weights.")
    made.add_argument("--parallel", type=int, help="Arms side by side; one a core on a CPU, 3 on a GPU by default.")
    made.add_argument("--minutes", type=float, help="Start no further arm after so many.")
    return made


class Experiment:
    """
    A call of the command.

    Args:
        args: The command line's.
        preset (`Preset`): With what the command line changes.
    """

    def __init__(self, args: argparse.Namespace, preset: Preset) -> None:
        self.args, self.preset = args, preset
        self.arms, self.seeds = args.arms.split(","), [int(seed) for seed in args.seeds.split(",")]
        self.folder = args.output or RESULTS / args.preset
        self.results = ResultsFile(self.folder / "results.jsonl")
        cores = len(os.sched_getaffinity(0))
        cuda = torch.cuda.is_available()
        self.parallel = args.parallel or (GPU_PARALLEL if cuda else cores)
        self.threads = max(cores // self.parallel, 1) if cuda else 1  # the same sums on every CPU
        share = max(cores // self.parallel - 1, 1)
        self.loaders = max(n for n in range(1, STREAMS + 1) if n <= share and STREAMS % n == 0) if cuda else 0
        self.cores = cores
        self.ends = None if args.minutes is None else time.monotonic() + 60 * args.minutes

    def check(self) -> None:
        """Refuses results of other settings, whose numbers are not compared, and the seed that chose the weight."""
        chosen = self.results.about.get("reconstruction_weight")
        if chosen is not None and chosen["seed"] in self.seeds:
            raise ValueError(
                f"seed {chosen['seed']} has chosen the reconstruction weight and is not compared: leave it out of --seeds"
            )
        jobs = set(self.jobs(self.arms, self.seeds, missing=False))
        stale = [
            f"{arm}-{seed}"
            for (arm, seed), line in self.results.lines.items()
            if (arm, seed) in jobs and line["settings"] != settings_digest(arm, seed, self.declared())
        ]
        if stale:
            raise ValueError(
                f"{len(stale)} results in {self.results.path} are of other settings ({', '.join(stale[:3])}): choose another "
                "--output, or move the file away"
            )

    def declared(self) -> Preset:
        """The preset with the reconstruction weight that an earlier start has chosen."""
        chosen = self.results.about.get("reconstruction_weight")
        if self.preset.reconstruction_weight is None and chosen is not None:
            return replace(self.preset, reconstruction_weight=chosen["weight"])
        return self.preset

    def jobs(self, arms: list[str], seeds: list[int], *, missing: bool = True) -> list[Job]:
        """Arms and seeds, seed by seed, so that arms can be compared early; those that are not done yet."""
        jobs = [(arm, seed) for seed in seeds for arm in arms]
        return [job for job in jobs if not (missing and job in self.results.lines)]

    def in_time(self, jobs: list[Job]) -> Iterator[Job]:
        """The jobs, as long as there are minutes left."""
        for job in jobs:
            if self.ends is not None and time.monotonic() >= self.ends:
                print(f"{self.args.minutes:g} minutes are over: no further arm is started", flush=True)
                return
            yield job

    def run(self, preset: Preset, jobs: list[Job]) -> bool:
        """Runs arms and adds what they return to the file; whether all are done."""
        if not jobs:
            return True
        modes = {arm_named(arm).mode for arm, _ in jobs if arm_named(arm).trained}
        size = round(1.25 * preset.image_size)  # a quarter larger than they are trained at
        scenes = {
            mode: render_scenes(self.args.work / "scenes", mode, size, preset.train_images, workers=self.cores)
            for mode in sorted(modes)
        }
        work = ArmWork(preset, scenes, self.args.work / self.args.preset, self.loaders, self.threads)
        left = len(jobs)
        for (arm, seed), result in run_all(work, self.in_time(jobs), min(self.parallel, len(jobs))):
            if isinstance(result, str):
                print(f"{arm}, seed {seed}, is not finished: {result}", flush=True)
                continue
            self.results.add(result)
            left -= 1
            seconds = result["seconds"]
            print(
                f"{arm}, seed {seed}: {seconds['whole']:.0f} s (training {seconds['training']:.0f}, probes "
                f"{seconds['probes']:.0f}), {left} to go",
                flush=True,
            )
        return left == 0

    def choose_weight(self) -> bool:
        """Chooses the reconstruction weight on a seed of its own, and writes it down before any arm needs it."""
        about = self.results.about
        others = [arm for arm in self.arms if arm.endswith("_equicoherent")]
        if self.preset.reconstruction_weight is not None or about.get("reconstruction_weight") or not others:
            return True
        seed = max(self.seeds) + 1
        if not self.run(self.preset, self.jobs(list(WEIGHT_ARMS), [seed])):
            return False
        scores = {
            f"{weight:g}": ROTATION_R2["bilinear"](self.results.lines[arm, seed]["tasks"])
            for weight, arm in zip(WEIGHTS, WEIGHT_ARMS, strict=True)
        }
        best = max(WEIGHTS, key=lambda weight: scores[f"{weight:g}"] or 0.0)
        about["reconstruction_weight"] = {"weight": best, "seed": seed, "scores": scores}
        self.results.write()
        print(describe_weight(about), flush=True)
        return True

    def start(self) -> None:
        """Runs what is missing."""
        self.check()
        settings: dict[str, Any] = {
            "preset": self.args.preset,
            "settings": asdict(self.preset),
            "scenes": SCENES_VERSION,
        }
        self.results.about |= settings
        independent = [arm for arm in self.arms if not arm.endswith("_equicoherent")]
        if self.choose_weight():
            self.run(self.declared(), self.jobs(self.arms, self.seeds))
        else:
            self.run(self.preset, self.jobs(independent, self.seeds))

    def finish(self) -> str:
        """Writes the tables of what there is; returns them."""
        results = self.results.of_seeds(self.seeds)
        if not results:
            return "no arm is finished yet"
        words = ["python -m benchmarks.scenes_experiment", "--preset", self.args.preset]
        words += [] if self.arms == list(ARMS) else ["--arms", self.args.arms]
        words += [] if self.args.seeds == "0,1,2" else ["--seeds", self.args.seeds]
        words += ["--set", *self.args.set] if self.args.set else []
        text = markdown(self.results.about, results, " ".join(words))
        (self.folder / "README.md").write_text(text)
        return text


def main(words: list[str] | None = None) -> int:
    """Runs the command; returns its exit code."""
    command = parser()
    args = command.parse_args(words)
    try:
        experiment = Experiment(args, PRESETS[args.preset].changed(read_settings(args.set)))
        if unknown := set(experiment.arms) - set(ARMS):
            raise ValueError(f"there is no arm {', '.join(sorted(unknown))}; arms are {', '.join(ARMS)}")
        args.work.mkdir(parents=True, exist_ok=True)
        lock = (args.work / "lock").open("w")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # until this process ends, however it ends
        except OSError:
            raise ValueError(
                f"another start is at work in {args.work}: wait for its end, or choose another --work"
            ) from None
        code = 0
        try:
            experiment.start()
        except KeyboardInterrupt:
            code = 130
        print(experiment.finish())
        if code:
            done = len(experiment.results.lines)
            print(f"interrupted: {done} arms are done and kept in {experiment.results.path}; the same command goes on")
        return code
    except ValueError as error:
        command.error(str(error))


if __name__ == "__main__":
    sys.exit(main())
