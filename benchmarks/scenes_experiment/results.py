"""The file of results: one line of JSON an arm and seed behind a line about all, written whole or not at all."""

import json
import os
from pathlib import Path
from typing import Any

from benchmarks.scenes_experiment.rule import Results


class ResultsFile:
    """
    The results of a preset; what is there is read at the start.

    Args:
        path (`Path`): The file.

    Attributes:
        about (`dict`): Preset, settings, and how the reconstruction weight was chosen.
        lines (`dict`): What `run_arm` has returned, by arm and seed.

    Raises:
        ValueError: If the file holds anything else.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.about: dict[str, Any] = {}
        self.lines: dict[tuple[str, int], dict[str, Any]] = {}
        if path.is_file():
            try:
                first, *others = [json.loads(line) for line in path.read_text().splitlines()]
                self.about = first["about"]
                self.lines = {(line["arm"], line["seed"]): line for line in others}
            except (ValueError, KeyError, TypeError) as error:
                raise ValueError(
                    f"{path} holds no results of this experiment ({error}): move it away, or choose another --output"
                ) from None

    def add(self, result: dict[str, Any]) -> None:
        """Adds what `run_arm` has returned, and writes the file."""
        self.lines[result["arm"], result["seed"]] = result
        self.write()

    def write(self) -> None:
        """Writes the file anew beside itself and puts it in its place."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        entries = [{"about": self.about}, *(self.lines[key] for key in sorted(self.lines))]
        part = self.path.with_suffix(".part")
        with part.open("w") as file:
            file.writelines(json.dumps(entry) + "\n" for entry in entries)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, self.path)

    def of_seeds(self, seeds: list[int]) -> Results:
        """By arm and seed, of these seeds alone."""
        results: Results = {}
        for (arm, seed), line in sorted(self.lines.items()):
            if seed in seeds:
                results.setdefault(arm, {})[seed] = line
        return results
