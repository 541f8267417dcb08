"""What a log line says: sums of losses on the device, and what a run takes in time."""

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from accelerate import Accelerator


class LossMeter:
    """Adds up losses and their parts between two log lines, without waiting for the device.

    Args:
        device (`torch.device`): Where the losses are.

    Attributes:
        steps (`int`): Optimizer steps made since the last log line.
        skipped (`int`): Steps left out since then.
        spreads (`dict[str, float]`): Measurements of features since then, the newest of each name.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.total = 0.0  # of the loss, up to the last log line
        self.reset()
        self.begin_step()

    def reset(self) -> None:
        """Starts a new log line."""
        self.sums: dict[str, torch.Tensor] = {}
        self.steps = self.skipped = 0
        self.spreads: dict[str, float] = {}

    def begin_step(self) -> None:
        """Marks the beginning of an optimizer step, to which `discard_step` goes back."""
        self._before_step = dict(self.sums)

    def add(self, parts: Mapping[str, torch.Tensor], divisor: int) -> None:
        """Adds what a micro-batch gave.

        Args:
            parts (`Mapping[str, torch.Tensor]`): Scalars by name, `loss` among them.
            divisor (`int`): Micro-batches of the step.
        """
        for name, value in parts.items():
            part = value / divisor
            self.sums[name] = self.sums[name] + part if name in self.sums else part

    def discard_step(self) -> None:
        """Takes the present step out of the sums."""
        self.sums = dict(self._before_step)

    def count_step(self, skipped: bool) -> None:
        """Counts a step, made or left out."""
        self.steps += not skipped
        self.skipped += skipped

    def means(self, accelerator: Accelerator) -> dict[str, float]:
        """Means over the steps made and all processes, which must all call this; empty where no step was made."""
        if not self.steps:
            return {}
        means = gathered_means(self.sums, 1, accelerator)
        self.total += means["loss"]
        return {name: value / self.steps for name, value in means.items()}

    def mean_of_run(self, steps: int, accelerator: Accelerator) -> float:
        """The mean loss of all `steps` of the run; all processes must call this."""
        rest = gathered_means({"loss": self.sums["loss"]}, 1, accelerator)["loss"] if "loss" in self.sums else 0.0
        return (self.total + rest) / max(steps, 1)

    def state_dict(self) -> dict[str, object]:
        """The unfinished log line in plain values."""
        return {
            "total": self.total,
            "sums": {name: value.item() for name, value in self.sums.items()},
            "steps": self.steps,
            "skipped": self.skipped,
            "spreads": self.spreads,
        }

    def load_state_dict(self, state: Mapping | None) -> None:
        """Puts an unfinished log line back; begins a run where there is none."""
        if state is None:
            state = {"total": 0.0, "sums": {}, "steps": 0, "skipped": 0, "spreads": {}}
        self.total = state["total"]
        self.sums = {name: torch.tensor(value, device=self.device) for name, value in state["sums"].items()}
        self.steps, self.skipped, self.spreads = state["steps"], state["skipped"], dict(state["spreads"])
        self.begin_step()


def scalars_of(outputs: Mapping, names: Sequence[str]) -> dict[str, torch.Tensor]:
    """What is logged of a model's outputs.

    Args:
        outputs (`Mapping`): The outputs, with `components` (a mapping too) or without.
        names (`Sequence[str]`): Metrics and quantities beside the losses.

    Returns:
        `dict[str, torch.Tensor]`: `loss`, everything that ends with `_loss`, and what is named, in float32.
    """
    everything = (*outputs.items(), *(outputs.get("components") or {}).items())
    return {
        name: value.detach().float()
        for name, value in everything
        if name == "loss" or name.endswith("_loss") or name in names
    }


def gathered_means(sums: Mapping[str, torch.Tensor], count: int, accelerator: Accelerator) -> dict[str, float]:
    """Means of sums over `count` and over all processes, in one exchange.

    Args:
        sums (`Mapping[str, torch.Tensor]`): Scalars by name, at least one, the same names on all processes.
        count (`int`): What they are divided by.
        accelerator (`Accelerator`): Of the run.

    Returns:
        `dict[str, float]`: The means by name.
    """
    means = accelerator.gather((torch.stack(list(sums.values())) / count)[None]).mean(dim=0)
    return dict(zip(sums, means.tolist(), strict=True))


class Stopwatch:
    """Seconds of a run and of its log lines, by a clock that nobody sets.

    Attributes:
        steps (`int`): Optimizer steps since the last log line.
        waited (`float`): Seconds since then that the step has waited for its data.
    """

    def __init__(self) -> None:
        self._before = self._began = 0.0  # seconds of earlier calls of train, and when this one began
        self.reset()

    def start(self, seconds: float) -> None:
        """Starts with the seconds that the run took before."""
        self._before, self._began = seconds, time.perf_counter()
        self.reset()

    def stop(self) -> None:
        """Stops: `trained` no longer grows."""
        self._before, self._began = self.trained, 0.0

    def reset(self) -> None:
        """Starts a new log line."""
        self.steps, self.waited, self._line = 0, 0.0, time.perf_counter()

    def count_step(self) -> None:
        """Counts an optimizer step."""
        self.steps += 1

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Counts the seconds in it as waited for data."""
        began = time.perf_counter()
        yield
        self.waited += time.perf_counter() - began

    @property
    def trained(self) -> float:
        """Seconds that the run has trained, over all resumes."""
        return self._before + self.since_start

    @property
    def since_start(self) -> float:
        """Seconds since `start`; 0 where the run is not training."""
        return time.perf_counter() - self._began if self._began else 0.0

    def describe(self, images_per_step: int) -> dict[str, float]:
        """Speed of the log line: `images_per_second`, and `data_wait`, the share of its time that data were waited for."""
        elapsed = time.perf_counter() - self._line
        return {"images_per_second": self.steps * images_per_step / elapsed, "data_wait": self.waited / elapsed}
