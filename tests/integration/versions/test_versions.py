"""From images to a published model that anyone opens, by the commands: what .ci/run does with the lowest versions too.

This folder can be run in an environment with other versions of the libraries, see tests/helpers/lowest_versions.py.
"""

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tests.helpers.compare_runs import HEADS, METHOD_OF, RECIPE_FLAGS, VIEWS, make_images
from tests.helpers.golden import ROOT
from tests.helpers.hub_server import WRITE_TOKEN, HubServer

pytestmark = pytest.mark.slow

RECIPES = {"gtsa": "gtsa_small_coco", "loca": "loca_small_imnet1k", "equicoherent": "equicoherent_ibot_small"}
COMMANDS = """
import json, shutil, sys
from hf_geossl.cli import main

for command in json.loads(sys.argv[1]):
    if command[0] == "copy":
        shutil.copytree(*command[1:])
    else:
        assert main(command) == 0, command
"""
READER = """
import json, sys
import torch
from PIL import Image
from transformers import AutoBackbone, AutoConfig, AutoImageProcessor, AutoModel, pipeline

found = {}
for repo in sys.argv[1:]:
    model = AutoModel.from_pretrained(repo, trust_remote_code=True)
    processor = AutoImageProcessor.from_pretrained(repo)
    image = Image.new("RGB", (50, 40), (200, 30, 90))
    with torch.no_grad():
        state = model(**processor(image, return_tensors="pt")).last_hidden_state
    maps = AutoBackbone.from_pretrained(repo, trust_remote_code=True)(torch.zeros(1, 3, 32, 32)).feature_maps
    features = pipeline(model=repo, trust_remote_code=True)(image)
    assert torch.allclose(torch.tensor(features), state, atol=1e-5)
    found[repo] = [type(model).__name__, type(model).__module__.split(".")[0], list(state.shape), list(maps[0].shape)]
assert not any(name.partition(".")[0] == "hf_geossl" for name in sys.modules)
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[HubServer]:
    with HubServer(tmp_path_factory.mktemp("hub")) as server:
        yield server
    assert not server.errors


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("versions")
    make_images(folder / "images")
    return folder


def _run(hub: HubServer, folder: Path, *command: str, package: bool = True) -> str:
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "PYTHONPATH"))}
    environment |= {"HF_ENDPOINT": hub.url, "HF_HOME": str(folder / "home"), "HF_TOKEN": WRITE_TOKEN}
    environment |= {"HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "OMP_NUM_THREADS": "1"}
    if package:
        environment["PYTHONPATH"] = str(ROOT)
    process = subprocess.run(
        [sys.executable, *command],
        env=environment,
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert process.returncode == 0, f"{command}: {process.stderr[-4000:]}"
    return process.stdout


def _pretrain(method: str, folder: Path, output: Path) -> list[str]:
    title = METHOD_OF[method]
    flags = {**RECIPE_FLAGS, **HEADS[title], **VIEWS[title], "max_steps": 4, "save_steps": 2, "picture": "true"}
    if method == "equicoherent":
        flags["equivariant_features"] = 16
    flags |= {"dataset": folder / "images", "split": "train", "output_dir": output}
    command = ["pretrain", RECIPES[method]]
    for name, value in flags.items():
        command += [f"--{name}", *(str(part) for part in (value if isinstance(value, tuple) else (value,)))]
    return command


def _digest(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


@pytest.fixture(scope="module")
def runs(hub: HubServer, folder: Path) -> Path:
    """Of each method four steps with a checkpoint after two, published; and the last two again: all in one process."""
    commands = []
    for method in RECIPES:
        output, again = folder / method, folder / f"{method}-again"
        commands += [
            _pretrain(method, folder, output),
            ["publish", str(output), f"tester/{method}", "--license", "mit"],
            ["copy", str(output / "checkpoint-2"), str(again / "checkpoint-2")],
            [*_pretrain(method, folder, again), "--resume_from_checkpoint", "true"],
        ]
    _run(hub, folder, "-c", COMMANDS, json.dumps(commands))
    return folder


@pytest.mark.parametrize("method", RECIPES)
def test_a_run_ends_with_its_model(runs: Path, method: str) -> None:
    output = runs / method
    assert json.loads((output / "config.json").read_text())["model_type"] == method
    for name in ("model.safetensors", "preprocessor_config.json", "README.md", "training_run.json", "features.png"):
        assert (output / name).stat().st_size > 0, name
    history = json.loads((output / "checkpoint-4" / "trainer_state.json").read_text())["log_history"]
    assert [entry["step"] for entry in history if "loss" in entry] == [1, 2, 3, 4]


@pytest.mark.parametrize("method", RECIPES)
def test_a_resumed_run_gives_the_same_weights(runs: Path, method: str) -> None:
    output, again = runs / method, runs / f"{method}-again"
    for file in ("checkpoint-4/model.safetensors", "model.safetensors"):
        assert _digest(again / file) == _digest(output / file), file
    states = [
        torch.load(path / "checkpoint-4" / "optimizer.pt", weights_only=True)["state"] for path in (output, again)
    ]
    assert states[0].keys() == states[1].keys()
    for key, entries in states[0].items():
        for name, value in entries.items():
            assert torch.equal(torch.as_tensor(value), torch.as_tensor(states[1][key][name])), (key, name)


def test_published_models_open_in_a_process_without_the_package(runs: Path, hub: HubServer) -> None:
    repositories = [f"tester/{method}" for method in RECIPES]
    found = json.loads(_run(hub, runs, "-c", READER, *repositories, package=False).splitlines()[-1])
    for method in RECIPES:
        tokens = 16 + (method != "loca")  # 4 x 4 patches, and a class token
        expected = [f"{METHOD_OF[method]}Model", "transformers_modules", [1, tokens, 32], [1, 32, 4, 4]]
        assert found[f"tester/{method}"] == expected
        published = hub.files(f"tester/{method}")["model.safetensors"]
        assert hashlib.sha256(published).hexdigest() == _digest(runs / method / "model.safetensors")
