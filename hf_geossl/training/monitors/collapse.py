"""Alarms in the log: features that lose their spread, and losses that stay at chance level."""

import logging
import math

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

logger = logging.getLogger(__name__)

COLLAPSED_SPREAD = 0.05
STUCK_TOLERANCE = 0.005
STUCK_LOGS = 20


class CollapseCallback(TrainerCallback):
    """Warns, once each, where features lose their spread or a loss stays at chance level.

    Args:
        chance_losses (`dict[str, float]`): What the logged losses are where nothing has been learned.
    """

    def __init__(self, chance_losses: dict[str, float]) -> None:
        self.chance_losses = chance_losses
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
            if logs.get(name, 1.0) < COLLAPSED_SPREAD:
                self._warn(
                    name,
                    f"collapse: at step {state.global_step} the model gives nearly the same {subject} ({name} "
                    f"{logs[name]:.4f}; 1 is even, 0 the same). Lower the learning rate, raise teacher_momentum or "
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
