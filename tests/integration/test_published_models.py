"""What others do with a published repository, in fresh processes: with and without the package installed."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from tests.helpers.golden import ROOT
from tests.helpers.hub_server import WRITE_TOKEN, HubServer
from tests.helpers.methods import METHODS, Method, randomise

pytestmark = pytest.mark.slow

SIDES = ("installed", "remote")
READER = """
import json, sys
from pathlib import Path
side, place, revisions = sys.argv[1], Path(sys.argv[2]), json.loads(sys.argv[3])
if side == "installed":
    import hf_geossl
import torch
from huggingface_hub import snapshot_download
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import AutoBackbone, AutoConfig, AutoImageProcessor, AutoModel, pipeline

remote = {"trust_remote_code": True} if side == "remote" else {}
pixels, picture = load_file(place / "pixels.safetensors")["pixels"], Image.open(place / "picture.png")
found, told = {}, {}
for method, (old, new) in revisions.items():
    repo = f"tester/{method}"
    with torch.no_grad():
        model = AutoModel.from_pretrained(repo, **remote)
        found[f"{method} new"] = model(pixels).last_hidden_state
        found[f"{method} old"] = AutoModel.from_pretrained(repo, revision=old, **remote)(pixels).last_hidden_state
        backbone = AutoBackbone.from_pretrained(repo, out_indices=[1, 3], **remote)
        for index, maps in enumerate(backbone(pixels).feature_maps):
            found[f"{method} maps {index}"] = maps
        extract = pipeline(model=repo, **remote)
        found[f"{method} pipeline"] = torch.tensor(extract(picture))
        processor = AutoImageProcessor.from_pretrained(repo)
        found[f"{method} by hand"] = model(**processor(picture, return_tensors="pt")).last_hidden_state
    folder = Path(snapshot_download(repo, revision=new))
    found[f"{method} snapshot"] = AutoModel.from_pretrained(folder, **remote)(pixels).last_hidden_state.detach()
    told[method] = {
        "classes": [type(model).__name__, type(backbone).__name__, extract.task],
        "modules": [type(model).__module__.split(".")[0], type(backbone).__module__.split(".")[0]],
        "files": sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()),
    }
save_file({name: value.contiguous() for name, value in found.items()}, place / f"{side}.safetensors")
(place / f"{side}.json").write_text(json.dumps(told))
assert side == "installed" or not any(name.partition(".")[0] == "hf_geossl" for name in sys.modules)
"""
PUBLISHER = """
import json, sys
from hf_geossl import publish
commits = {}
for name, folder, license in json.loads(sys.argv[1]):
    commits.setdefault(name, []).append(publish(folder, f"tester/{name}", license=license).commit)
print(json.dumps(commits))
"""


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[HubServer]:
    with HubServer(tmp_path_factory.mktemp("hub")) as server:
        yield server
    assert not server.errors


@pytest.fixture(scope="module")
def models() -> dict[str, list[Any]]:
    """An older and a newer model of each method."""
    return {
        name: [randomise(method.model("Model", num_hidden_layers=3), seed=seed) for seed in (0, 1)]
        for name, method in METHODS.items()
    }


def _start(hub: HubServer, home: Path, code: str, *arguments: str, installed: bool = True) -> subprocess.Popen:
    """Starts a process that has no settings but the server's address, with or without this checkout."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "PYTHONPATH"))}
    environment |= {"HF_ENDPOINT": hub.url, "HF_HOME": str(home), "HF_TOKEN": WRITE_TOKEN, "OMP_NUM_THREADS": "1"}
    environment |= {"HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}
    environment |= {"PYTHONPATH": str(ROOT)} if installed else {}
    home.mkdir(exist_ok=True)
    return subprocess.Popen(
        [sys.executable, "-c", code, *arguments],
        cwd=home, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


def _finish(process: subprocess.Popen) -> str:
    output, errors = process.communicate(timeout=240)
    assert process.returncode == 0, errors.decode()[-4000:]
    return output.decode()


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("readers")
    save_file({"pixels": _pixels()}, root / "pixels.safetensors")
    generator = np.random.default_rng(0)
    Image.fromarray(generator.integers(0, 256, (48, 40, 3), dtype=np.uint8)).save(root / "picture.png")
    return root


@pytest.fixture(scope="module")
def revisions(hub: HubServer, place: Path, models: dict[str, list[Any]]) -> dict[str, list[str]]:
    """Published by a process of its own, twice."""
    wanted = []
    for name, versions in models.items():
        for model, license in zip(versions, ("mit", "apache-2.0"), strict=True):
            model.save_pretrained(place / f"{name}-{license}")
            wanted.append((name, str(place / f"{name}-{license}"), license))
    return json.loads(_finish(_start(hub, place / "publisher", PUBLISHER, json.dumps(wanted))))


@pytest.fixture(scope="module")
def answers(hub: HubServer, place: Path, revisions: dict[str, list[str]]) -> dict[str, tuple[dict, dict]]:
    running = {
        side: _start(hub, place / side, READER, side, str(place), json.dumps(revisions), installed=side == "installed")
        for side in SIDES
    }
    for process in running.values():
        _finish(process)
    return {
        side: (json.loads((place / f"{side}.json").read_text()), load_file(place / f"{side}.safetensors"))
        for side in SIDES
    }


def _pixels() -> torch.Tensor:
    return torch.randn(2, 3, 40, 24, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("name", METHODS)
def test_every_way_of_loading_gives_the_published_features(
    answers: Any, models: dict[str, list[Any]], name: str, side: str
) -> None:
    told, found = answers[side]
    old, new = models[name]
    with torch.no_grad():
        assert torch.equal(found[f"{name} new"], new(_pixels()).last_hidden_state)
        assert torch.equal(found[f"{name} old"], old(_pixels()).last_hidden_state)
        backbone = METHODS[name].kind("Backbone")(new.config)
        backbone.load_state_dict(new.state_dict())
        maps = backbone.eval()(_pixels(), output_hidden_states=True)
        assert torch.equal(found[f"{name} maps 1"], maps.feature_maps[-1])
    assert torch.equal(found[f"{name} snapshot"], found[f"{name} new"])
    assert torch.allclose(found[f"{name} pipeline"], found[f"{name} by hand"], atol=1e-6)
    method: Method = METHODS[name]
    assert told[name]["classes"] == [
        method.kind("Model").__name__, method.kind("Backbone").__name__, "image-feature-extraction"
    ]  # fmt: skip
    assert set(told[name]["modules"]) == {"hf_geossl" if side == "installed" else "transformers_modules"}


@pytest.mark.parametrize("name", METHODS)
def test_remote_code_gives_the_same_bits_as_installed_code(answers: Any, name: str) -> None:
    (installed_told, installed), (remote_told, remote) = answers["installed"], answers["remote"]
    names = [key for key in installed if key.startswith(f"{name} ")]
    assert len(names) == 7
    assert all(torch.equal(installed[key], remote[key]) for key in names)
    assert installed_told[name]["files"] == remote_told[name]["files"]


def test_a_snapshot_holds_what_was_published(hub: HubServer, answers: Any) -> None:
    for name in METHODS:
        files = answers["remote"][0][name]["files"]
        assert files == sorted(hub.files(f"tester/{name}"))
        assert sum(file.endswith(".py") for file in files) == 8  # trunk and heads: no pretraining
