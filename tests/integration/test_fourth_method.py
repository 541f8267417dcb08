"""A method is its own files and one row of the table: BYOL, dropped into a copy of the package, has every command."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.helpers.compare_runs import make_images
from tests.helpers.golden import ROOT
from tests.helpers.house import MEASURES, House
from tests.helpers.hub_server import WRITE_TOKEN, HubServer

pytestmark = pytest.mark.slow

FILES = ROOT / "tests" / "helpers" / "fourth_method"
RECIPE = """
method: byol
data:
  dataset: {images}
model:
  hidden_size: 32
  num_hidden_layers: 2
  num_attention_heads: 2
  image_size: 32
  patch_size: 8
  projection_size: 16
views:
  global_size: 32
  blur_probability: 0.5
training:
  max_steps: 4
  probe_time_share: 1.0
  save_steps: 2
  logging_steps: 1
  warmup_steps: 1
  per_device_train_batch_size: 4
  use_cpu: true
"""
COMMANDS = """
import json, sys
from hf_geossl.cli import main

for command in json.loads(sys.argv[1]):
    print("+", *command, flush=True)
    assert main(command) == 0, command
print("+ python")
"""
READER = """
import sys, torch
from transformers import AutoBackbone, AutoModel

model = AutoModel.from_pretrained("tester/byol", trust_remote_code=True)
maps = AutoBackbone.from_pretrained("tester/byol", trust_remote_code=True)(torch.zeros(1, 3, 32, 32)).feature_maps
print(type(model).__name__, [*model(torch.zeros(1, 3, 32, 32)).last_hidden_state.shape], [*maps[0].shape])
assert not any(name.partition(".")[0] == "hf_geossl" for name in sys.modules)
"""
PYTHON = """
import torch
import hf_geossl
from hf_geossl import BYOLConfig, BYOLForImageClassification, BYOLTrainer, BYOLViews  # public names of its own
from transformers import AutoModelForPreTraining

assert set("BYOLModel BYOLBackbone BYOLForSemanticSegmentation BYOLForPreTraining".split()) <= set(hf_geossl.__all__)
model = AutoModelForPreTraining.from_pretrained("run/checkpoint-4")
assert type(model).__module__ == "hf_geossl.modeling.pretraining_byol"
assert any(not torch.equal(a, b) for a, b in zip(model.teacher.byol.parameters(), model.byol.parameters()))
print("ok")
main(["pretrain", "byol.yaml", "--help_all"])
"""
DEMO = """
import json, sys
from hf_geossl.demo import build_demo

print(json.dumps(build_demo(sys.argv[1]).get_config_file()["components"], default=str))
"""


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the package with the method's files in its rooms, and its row in the table."""
    checkout = tmp_path_factory.mktemp("checkout")
    shutil.copytree(ROOT / "hf_geossl", checkout / "hf_geossl", ignore=shutil.ignore_patterns("__pycache__"))
    for file in FILES.glob("*/*.py"):
        target = checkout / "hf_geossl" / file.relative_to(FILES)
        assert target.parent.is_dir()
        assert not target.exists()
        shutil.copy(file, target)
    with (checkout / "hf_geossl" / "methods.py").open("a") as table:
        table.write((FILES / "row.txt").read_text())
    return checkout


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[HubServer]:
    with HubServer(tmp_path_factory.mktemp("hub")) as server:
        yield server
    assert not server.errors


def _run(place: Path, checkout: Path | None, *command: str, hub: HubServer | None = None) -> str:
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "PYTHONPATH"))}
    environment |= {"HF_HOME": str(place / "home"), "HF_HUB_DISABLE_XET": "1", "OMP_NUM_THREADS": "1"}
    if checkout is not None:
        environment["PYTHONPATH"] = str(checkout)
    environment |= {"HF_HUB_OFFLINE": "1"} if hub is None else {"HF_ENDPOINT": hub.url, "HF_TOKEN": WRITE_TOKEN}
    process = subprocess.run(
        [sys.executable, *command], cwd=place, env=environment, capture_output=True, text=True, check=False, timeout=300
    )
    assert process.returncode == 0, f"{process.stdout[-2000:]}\n{process.stderr[-4000:]}"
    return process.stdout


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("place")


@pytest.fixture(scope="module")
def output(checkout: Path, place: Path, hub: HubServer) -> str:
    """What pretrain, evaluate and publish print, and then the checks in Python."""
    make_images(place / "images")
    (place / "byol.yaml").write_text(RECIPE.format(images=place / "images"))
    commands = [
        ["pretrain", "byol.yaml", "--output_dir", "run"],
        ["evaluate", "run", "--tasks", "knn,segmentation", "--limit", "24", "--no_pictures", "--no_cache"],
        ["publish", "run", "tester/byol", "--dry_run"],
        ["publish", "run", "tester/byol", "--license", "mit"],
    ]
    return _run(place, checkout, "-c", COMMANDS + PYTHON, json.dumps(commands), hub=hub)


def test_it_breaks_no_rule_of_the_house(checkout: Path) -> None:
    house, before = House(checkout), House()
    for name in ("import circles", "arrows up", "files over 400 lines", "private names across modules"):
        measure, _ = MEASURES[name]
        assert measure(house) == measure(before), name


def test_pretrain_trains_logs_and_exports(output: str, place: Path) -> None:
    history = json.loads((place / "run" / "checkpoint-4" / "trainer_state.json").read_text())["log_history"]
    losses = [entry["loss"] for entry in history if "loss" in entry]
    assert len(losses) == 4
    assert all(0 < loss < 4 for loss in losses)
    assert any("feature_spread" in entry for entry in history)
    assert json.loads((place / "run" / "config.json").read_text())["auto_map"]["AutoModel"] == "modeling_byol.BYOLModel"
    assert (place / "run" / "features.png").is_file()


def test_the_card_has_the_words_of_its_row(output: str, place: Path) -> None:
    card = (place / "run" / "README.md").read_text()
    for words in ("2006.07733", "Bootstrap Your Own Latent", "predicts the teacher's projection"):
        assert words in card, words


def test_evaluate_measures_it(output: str, place: Path) -> None:
    results = json.loads((place / "run" / "results.json").read_text())
    assert {"knn", "segmentation"} <= results.keys()


def test_publish_lists_and_sends_it(output: str, hub: HubServer, place: Path) -> None:
    listed = output.split("--dry_run\n")[1]
    assert "modeling_byol.py" in listed.split("+ publish")[0]
    files = hub.files("tester/byol")
    assert {"modeling_byol.py", "configuration_byol.py", "model.safetensors", "README.md"} <= files.keys()
    assert "pretraining_byol.py" not in files
    printed = _run(place, None, "-c", READER, hub=hub).splitlines()[-1]
    assert printed == "BYOLModel [1, 17, 32] [1, 32, 4, 4]"


def test_public_names_auto_classes_and_help_know_it(output: str) -> None:
    ok, _, text = output.split("+ python\n")[1].partition("\n")
    assert ok == "ok"
    for name, value in (("projection_size", "16"), ("global_scale", "0.08 1"), ("teacher_momentum", "0.996")):
        assert re.search(rf"--{name} .*\(default: {re.escape(value)}\)", text), name


@pytest.mark.skipif(find_spec("gradio") is None, reason="the demo needs gradio: pip install 'hf_geossl[space]'")
def test_the_demo_opens_it(output: str, checkout: Path, place: Path) -> None:
    components = json.loads(_run(place, checkout, "-c", DEMO, str(place / "run")).splitlines()[-1])
    assert "BYOL" in json.dumps(components)
    assert any(component["type"] == "tab" or component["type"] == "tabitem" for component in components)
