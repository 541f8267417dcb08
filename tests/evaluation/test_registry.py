"""The tasks by name: each is described without its libraries, and its protocol is where the table says."""

import json
import subprocess
import sys
from dataclasses import asdict
from importlib import import_module

import pytest

from hf_geossl.cli.main import main
from hf_geossl.data.sources import opening
from hf_geossl.evaluation import registry
from hf_geossl.evaluation.protocol import load_protocol
from hf_geossl.evaluation.registry import TASKS, check_tasks, describe_tasks
from hf_geossl.evaluation.results import as_json
from hf_geossl.evaluation.settings import make_settings
from tests.helpers.golden import ROOT


def test_every_task_is_registered_and_described(capsys: pytest.CaptureFixture[str]) -> None:
    files = {path.stem for path in (ROOT / "hf_geossl" / "evaluation" / "protocols").glob("*.py")}
    modules = {file: import_module(f"hf_geossl.evaluation.protocols.{file}") for file in sorted(files)}
    held = {name: file for file, module in modules.items() for name in getattr(module, "PROTOCOLS", {})}
    assert held == {name: task.file for name, task in TASKS.items()}
    for name in TASKS:
        kind = load_protocol(name).settings
        settings = kind()  # every setting has a default
        assert as_json(asdict(settings)) == json.loads(json.dumps(as_json(asdict(settings))))
        assert make_settings(name, kind, as_json(asdict(settings))) == settings  # what is written can be read again
    with pytest.raises(SystemExit) as stopped:
        main(["evaluate", "--help"])
    assert stopped.value.code == 0
    shown = capsys.readouterr().out
    for name, what in describe_tasks().items():
        assert f"  {name} " in shown
        assert what in shown


def test_tasks_are_described_where_a_library_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "find_spec", lambda name: None if name == "sklearn" else object())
    lines = describe_tasks()
    assert lines["knn"].startswith(TASKS["knn"].summary)
    assert "knn needs scikit-learn, which is missing: pip install 'hf_geossl[eval]'" in lines["knn"]
    assert lines["segmentation"] == TASKS["segmentation"].summary


def test_describing_the_tasks_imports_no_library() -> None:
    code = (
        "import sys; sys.modules['torch'] = None\n"  # whoever imports it fails
        "from hf_geossl.evaluation.registry import describe_tasks; print(len(describe_tasks()))\n"
        "assert not {'transformers', 'datasets', 'numpy'} & set(sys.modules)"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False)
    assert run.stdout.strip() == str(len(TASKS)), run.stderr


def test_names_of_tasks_are_checked_and_ordered() -> None:
    assert check_tasks("depth, knn") == ["knn", "depth"]
    assert check_tasks(["all"]) == list(TASKS)
    with pytest.raises(ValueError, match="there is no task 'kn'; did you mean 'knn'"):
        check_tasks("kn")
    with pytest.raises(ValueError, match="name at least one task of knn, "):
        check_tasks([])


def test_the_name_of_the_scenes_is_that_of_the_data() -> None:
    assert registry.SCENES == opening.SCENES
