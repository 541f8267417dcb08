"""When instruments are read: every so many steps, and less often where that would take too much of the run's time."""

import logging
import math
from collections.abc import Mapping

logger = logging.getLogger(__name__)


class ProbeSchedule:
    """Chooses the steps at which features are measured, so that all of it stays below a share of the run's time.

    Args:
        every (`int`): Steps between two measurements, where the time allows that; 0 is never.
        share (`float`): Largest share of the run's time, in (0, 1]; 1 is no limit.
        max_steps (`int`): Steps of the run.

    Attributes:
        spent (`float`): Seconds that measuring has taken so far, preparation and floors included.
        next_step (`int`): The next step that is measured; above `max_steps` for none.
    """

    def __init__(self, every: int, share: float, max_steps: int) -> None:
        self.every, self.share, self.max_steps = every, share, max_steps
        self.spent, self.next_step, self._said = 0.0, 0, 0

    def is_candidate(self, step: int) -> bool:
        """Whether a step may be measured at all."""
        return bool(self.every) and (step % self.every == 0 or step == self.max_steps)

    def is_due(self, step: int) -> bool:
        """Whether a step is measured."""
        return self.is_candidate(step) and step >= self.next_step

    def affords(self, seconds: float, step: int, trained: float) -> bool:
        """Whether a first measurement of so many seconds fits; says so, once and for all, where it does not.

        `trained` seconds were spent on all steps up to `step`.
        """
        budget = self._budget(step, trained)
        if self.share >= 1 or self.spent + seconds <= budget:
            return True
        self.next_step = self.max_steps + 1
        logger.warning(
            f"features are not measured while this run trains: with its floors a measurement takes about {seconds:.1f} s, more "
            f"than {100 * self.share:g} % of the {budget / self.share:.0f} s of the run (probe_time_share). Train longer, "
            "lower probe_images, or raise probe_time_share"
        )
        return False

    def add(self, seconds: float) -> None:
        """Adds to what measuring has taken."""
        self.spent += seconds

    def count(self, seconds: float, step: int, trained: float) -> None:
        """Counts a measurement at a step, of which `seconds` will be taken again by the next one, and plans that."""
        remaining, gap, affordable = self.max_steps - step, self.every, self.max_steps
        if self.share < 1:
            affordable = max(int((self._budget(step, trained) - self.spent) / max(seconds, 1e-9)), 0)
            gap = max(gap, math.ceil(remaining / self.every / max(affordable, 1)) * self.every)
        if remaining > 0 and (gap > max(self.every, self._said) or not affordable):
            interval = f"every {gap} steps" if affordable else "no more"
            logger.warning(
                f"from step {step} on features are measured {interval} instead of every {self.every} (probe_every_steps), "
                f"so that it takes at most {100 * self.share:g} % of the run's time (probe_time_share): {seconds:.1f} s each time"
            )
            self._said = 2 * gap
        self.next_step = min(step + gap, self.max_steps) if affordable else self.max_steps + 1

    def _budget(self, step: int, trained: float) -> float:
        return self.share * trained / max(step, 1) * self.max_steps

    def state_dict(self) -> dict[str, float]:
        """What a checkpoint holds of the schedule."""
        return {"spent": self.spent, "next_step": self.next_step, "said": self._said}

    def load_state_dict(self, state: Mapping[str, float] | None) -> None:
        """Goes on from a checkpoint's `state_dict()`; from the start without one."""
        state = state or {"spent": 0.0, "next_step": 0, "said": 0}
        self.spent, self.next_step, self._said = state["spent"], int(state["next_step"]), int(state["said"])
