"""Alarms: what has not started, collapsed, overfitted or stayed at chance level, each once, with what to change."""

import logging
import math
from collections.abc import Mapping
from typing import Protocol

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

logger = logging.getLogger(__name__)

COLLAPSED_SPREAD = 0.05
LOST_SPREAD = 0.3  # share of the largest spread of the run: images of little contrast have a small one from the start
LOST_RANK = 0.3  # share of the largest effective rank of the run, and of that of random weights
LITTLE_CONTRAST = 0.25  # deviation of the normalised values inside a view; photographs have about 1
STUCK_TOLERANCE = 0.005
STUCK_LOGS = 20
NEAR_UNIFORM = 0.1  # nats below the entropy of a uniform prediction
FALLING_DIVERSITY = 0.7  # share of the largest prediction diversity of the run
NOTHING_DIVERSE = 0.05  # nats
NOT_STARTED_LOGS = 5
FALLEN_MEASUREMENTS = 3
FALLEN_ERRORS = 2.0  # standard errors of the difference of two accuracies


class Instruments(Protocol):
    """What alarms read of `Probes`."""

    floors: dict[str, dict[str, float]]
    contrast: float | None

    @property
    def count(self) -> int:
        """Images that are measured."""


class AlarmCallback(TrainerCallback):
    """Reads every log line, and warns once each of what goes wrong.

    Args:
        chance_losses (`dict[str, float]`): What the logged losses are where nothing has been learned.
        probes (`Instruments`): For the floors, how many images the accuracies are of, and their contrast: features of
            images that hardly differ are alike whatever the model, which is no collapse.
    """

    def __init__(self, chance_losses: dict[str, float], probes: Instruments) -> None:
        self.chance_losses, self.probes = chance_losses, probes
        self.logs_at_chance = dict.fromkeys(chance_losses, 0)
        self.logs_not_started = 0
        self.warned: set[str] = set()

    def _warn(self, kind: str, message: str) -> None:
        if kind not in self.warned:
            self.warned.add(kind)
            logger.warning(message)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **kwargs: object,
    ) -> None:
        """Compares the logged values with those of collapse, of chance and of the run so far."""
        logs = logs or {}
        self._check_collapse(logs, state)
        self._check_overfitting(logs, state)
        if state.global_step >= args.get_warmup_steps(max(state.max_steps, 1)):
            self._check_start(logs, state)
            self._check_chance(logs, state)

    def _check_collapse(self, logs: Mapping[str, float], state: TrainerState) -> None:
        for name, subject in (
            ("feature_spread", "features for all images"),
            ("target_spread", "targets for all patches"),
        ):
            largest = max((entry[name] for entry in state.log_history if name in entry), default=1.0)
            lost, contrast = logs.get(name, 1.0) < min(COLLAPSED_SPREAD, LOST_SPREAD * largest), self.probes.contrast
            if lost and contrast is not None and contrast < LITTLE_CONTRAST:
                self._warn(
                    "contrast",
                    f"the images have little contrast (a deviation of {contrast:.2f} inside a view after normalisation; "
                    f"photographs have about 1), so that the {subject} are nearly the same ({name} {logs[name]:.4f}). Mean and "
                    "deviation that `geossl inspect` measures, given as --mean and --std, bring out what differs.",
                )
            elif lost:
                self._warn(
                    "features" if name == "feature_spread" else name,
                    f"collapse: at step {state.global_step} the model gives nearly the same {subject} ({name} "
                    f"{logs[name]:.4f}, {largest:.4f} before; 1 is even, 0 the same). Lower the learning rate, raise teacher_momentum or "
                    "lengthen the warm-up; going on is unlikely to help.",
                )
        largest = max((entry["rankme"] for entry in state.log_history if "rankme" in entry), default=0.0)
        floor = self.probes.floors.get("rankme", {}).get("random weights", 0.0)
        if logs.get("rankme", math.inf) < LOST_RANK * min(largest, floor):
            self._warn(
                "features",
                f"collapse: at step {state.global_step} the features use few directions (RankMe {logs['rankme']:.1f}, "
                f"{largest:.1f} before, {floor:.1f} with random weights). Lower the learning rate, raise teacher_momentum or "
                "lengthen the warm-up; with VICReg raise the weights of variance and covariance.",
            )

    def _check_start(self, logs: Mapping[str, float], state: TrainerState) -> None:
        if (
            not {"teacher_entropy", "prediction_diversity"} <= logs.keys()
            or "teacher_entropy" not in self.chance_losses
        ):
            return
        uniform, diversity = self.chance_losses["teacher_entropy"], logs["prediction_diversity"]
        largest = max(
            (e["prediction_diversity"] for e in state.log_history if "prediction_diversity" in e), default=0.0
        )
        falling = diversity < max(FALLING_DIVERSITY * largest, NOTHING_DIVERSE)
        dead = logs["teacher_entropy"] > uniform - NEAR_UNIFORM and falling
        self.logs_not_started = self.logs_not_started + 1 if dead else 0
        if self.logs_not_started >= NOT_STARTED_LOGS:
            self._warn(
                "not started",
                f"not started: at step {state.global_step} the teacher finds all prototypes as likely for every image (entropy "
                f"{logs['teacher_entropy']:.2f} of ln K = {uniform:.2f}, prediction diversity {diversity:.3f}), so that there is "
                "nothing to learn. Lower teacher_temperature (0.04 from first to last) or num_prototypes, or balance the prototypes "
                "(host=dinov2 with centering=sinkhorn), and start again.",
            )

    def _check_chance(self, logs: Mapping[str, float], state: TrainerState) -> None:
        for name, chance in self.chance_losses.items():
            if name == "teacher_entropy" or (name == "class_loss" and self.logs_not_started):
                continue  # see _check_start
            at_chance = name in logs and math.isclose(logs[name], chance, rel_tol=STUCK_TOLERANCE)
            self.logs_at_chance[name] = self.logs_at_chance[name] + 1 if at_chance else 0
            if self.logs_at_chance[name] >= STUCK_LOGS:
                self._warn(
                    name,
                    f"{name} has stayed at {chance:.4f}, its chance level, for {STUCK_LOGS} log lines up to step "
                    f"{state.global_step}: that part is not learning. Raise the learning rate or its weight, or check "
                    "that the images show what it predicts (a place in the image, an orientation).",
                )

    def _check_overfitting(self, logs: Mapping[str, float], state: TrainerState) -> None:
        """Warns where an accuracy with labels has fallen by more than chance explains while the loss has fallen too."""
        for name in ("knn_accuracy", "linear_accuracy"):
            lines = [entry for entry in state.log_history if name in entry and "loss" in entry]
            if name not in logs or len(lines) <= FALLEN_MEASUREMENTS:
                continue
            best = max(lines, key=lambda entry: entry[name])
            last = lines[-FALLEN_MEASUREMENTS:]
            error = math.sqrt(2 * best[name] * (1 - best[name]) / max(self.probes.count, 1))
            fallen = all(entry[name] < best[name] - FALLEN_ERRORS * error for entry in last)
            if fallen and all(entry["loss"] < best["loss"] for entry in last):
                self._warn(
                    "overfitted",
                    f"overfitted: {name} has fallen from {best[name]:.3f} at step {best['step']} to {logs[name]:.3f} at step "
                    f"{state.global_step} while the loss has fallen from {best['loss']:.3f} to {last[-1]['loss']:.3f}: the "
                    "objective is solved by what does not help. Train on more images, or stop earlier "
                    f"(metric_for_best_model={name}, load_best_model_at_end).",
                )
