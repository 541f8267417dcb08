"""The file of results."""

import json
from pathlib import Path

import pytest

from benchmarks.scenes_experiment.results import ResultsFile


def test_results_come_back_and_a_cut_file_is_refused(tmp_path: Path) -> None:
    file = ResultsFile(tmp_path / "deep" / "results.jsonl")
    file.about["preset"] = "tiny"
    file.add({"arm": "gtsa", "seed": 1})
    file.add({"arm": "dino", "seed": 0})
    again = ResultsFile(file.path)
    assert again.about == {"preset": "tiny"}
    assert again.of_seeds([0, 1]) == {"dino": {0: {"arm": "dino", "seed": 0}}, "gtsa": {1: {"arm": "gtsa", "seed": 1}}}
    assert again.of_seeds([0]).keys() == {"dino"}
    assert [path.name for path in file.path.parent.iterdir()] == ["results.jsonl"]
    file.path.write_text(file.path.read_text()[:-4])
    with pytest.raises(ValueError, match="holds no results"):
        ResultsFile(file.path)
    file.path.write_text(json.dumps({"knn": 1}) + "\n")
    with pytest.raises(ValueError, match="move it away"):
        ResultsFile(file.path)
