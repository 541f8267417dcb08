"""Alarms: features that lose their spread, losses that stay at chance level."""

import logging
import math
from collections.abc import Callable

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

logger = logging.getLogger(__name__)

COLLAPSED_SPREAD = 0.05
LOST_SPREAD = 0.3  # share of the largest spread of the run: images of little contrast have a small one from the start
LITTLE_CONTRAST = 0.25  # deviation of the normalised values inside a view; photographs have about 1
STUCK_TOLERANCE = 0.005
STUCK_LOGS = 20


class CollapseCallback(TrainerCallback):
    """Warns, once each, where features lose their spread or a loss stays at chance level.

    Args:
        chance_losses (`dict[str, float]`): What the logged losses are where nothing has been learned.
        contrast (`Callable`, *optional*): Gives the contrast of the images, where it has been measured. Features of images
            that hardly differ are alike whatever the model, which is no collapse.
    """

    def __init__(self, chance_losses: dict[str, float], contrast: Callable[[], float | None] = lambda: None) -> None:
        self.chance_losses, self.contrast = chance_losses, contrast
        self.logs_at_chance = dict.fromkeys(chance_losses, 0)
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
        """Compares the logged values with those of collapse and of chance."""
        logs = logs or {}
        for name, subject in (
            ("feature_spread", "features for all images"),
            ("target_spread", "targets for all patches"),
        ):
            largest = max((entry[name] for entry in state.log_history if name in entry), default=1.0)
            lost, contrast = logs.get(name, 1.0) < min(COLLAPSED_SPREAD, LOST_SPREAD * largest), self.contrast()
            if lost and contrast is not None and contrast < LITTLE_CONTRAST:
                self._warn(
                    "contrast",
                    f"the images have little contrast (a deviation of {contrast:.2f} inside a view after normalisation; "
                    f"photographs have about 1), so that the {subject} are nearly the same ({name} {logs[name]:.4f}). Mean and "
                    "deviation that `geossl inspect` measures, given as --mean and --std, bring out what differs.",
                )
            elif lost:
                self._warn(
                    name,
                    f"collapse: at step {state.global_step} the model gives nearly the same {subject} ({name} "
                    f"{logs[name]:.4f}, {largest:.4f} before; 1 is even, 0 the same). Lower the learning rate, raise teacher_momentum or "
                    "lengthen the warm-up; going on is unlikely to help.",
                )
        if state.global_step < args.get_warmup_steps(max(state.max_steps, 1)):
            return
        for name, chance in self.chance_losses.items():
            at_chance = name in logs and math.isclose(logs[name], chance, rel_tol=STUCK_TOLERANCE)
            self.logs_at_chance[name] = self.logs_at_chance[name] + 1 if at_chance else 0
            if self.logs_at_chance[name] >= STUCK_LOGS:
                self._warn(
                    name,
                    f"{name} has stayed at {chance:.4f}, its chance level, for {STUCK_LOGS} log lines up to step "
                    f"{state.global_step}: that part is not learning. Raise the learning rate or its weight, or check "
                    "that the images show what it predicts (a place in the image, an orientation).",
                )
