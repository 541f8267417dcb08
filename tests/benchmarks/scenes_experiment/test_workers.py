"""Jobs side by side in processes, some of which are killed."""

import os
import signal
from dataclasses import dataclass
from typing import Any

from benchmarks.scenes_experiment.workers import Job, run_all


@dataclass(frozen=True)
class Square:
    """Work that kills its own process at one seed."""

    deadly: int

    def prepare(self) -> None:
        """Nothing to prepare."""

    def run(self, job: Job) -> dict[str, Any] | str:
        """The square of the seed."""
        name, seed = job
        if seed == self.deadly:
            os.kill(os.getpid(), signal.SIGKILL)
        return {"square": seed**2, "process": os.getpid()} if name == "good" else "bad arm"


def test_a_killed_process_costs_the_job_that_it_was_at() -> None:
    jobs = [("good", seed) for seed in range(5)] + [("bad", 9)]
    results = dict(run_all(Square(deadly=1), jobs, 2))
    assert results[("good", 1)] == "its process ended with exit code -9"
    assert results[("bad", 9)] == "bad arm"
    done = [results["good", seed] for seed in (0, 2, 3, 4)]
    assert [entry["square"] for entry in done] == [0, 4, 9, 16]  # type: ignore[index]
    assert os.getpid() not in {entry["process"] for entry in done}  # type: ignore[index]
