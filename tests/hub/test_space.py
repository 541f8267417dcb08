"""A Space's files: what they are, what they are not, and that they start with their own requirements alone."""

import json
import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from PIL import Image
from safetensors.torch import load_file

from hf_geossl.hub.export import export_model, make_image_processor
from hf_geossl.hub.space import IMAGE_REQUIREMENTS, REQUIREMENTS, write_space
from hf_geossl.modeling.image_format import ImageFormat
from tests.helpers.golden import ROOT
from tests.helpers.methods import METHODS

NOT_NEEDED = {"accelerate", "datasets", "filelock"}
TOKEN = "hf_" + "abcdefghijklmnopqrstuvwxyzABCDEFGH"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run's folder: the trunk, and a checkpoint with what a trainer leaves beside the weights."""
    folder = tmp_path_factory.mktemp("secret-place") / "run"
    model = METHODS["gtsa"].model("ForPreTraining")
    export_model(model, folder, image_processor=make_image_processor((32, 32), (0.4, 0.5, 0.6), (0.2, 0.3, 0.25)))
    checkpoint = folder / "checkpoint-3"
    model.save_pretrained(checkpoint)
    config = json.loads((checkpoint / "config.json").read_text())
    (checkpoint / "config.json").write_text(json.dumps({**config, "_name_or_path": str(folder)}))
    for name in ("optimizer.pt", "training_args.bin", "rng_state.pth", "scheduler.pt", "trainer_state.json"):
        (checkpoint / name).write_text(f"{TOKEN} {folder}")
    sizes = {path.name: path.stat().st_size for path in checkpoint.iterdir()}
    (checkpoint / "COMPLETE.json").write_text(json.dumps({"world_size": 1, "files": sizes}))
    return folder


@pytest.fixture(scope="module")
def space(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_space(run, tmp_path_factory.mktemp("space"), repo_id="user/model", title='A: "title"', license="mit")


def _files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_space_holds_the_demo_the_model_samples_and_the_library_and_no_more(space: Path, run: Path) -> None:
    files = _files(space)
    library = {name for name in files if name.startswith("hf_geossl/")}
    assert set(files) - library == {
        *("README.md", "app.py", "requirements.txt"),
        *(f"model/{name}" for name in ("config.json", "model.safetensors", "preprocessor_config.json")),
        *(f"samples/{index}.jpg" for index in range(1, 9)),
    }
    assert {"hf_geossl/__init__.py", "hf_geossl/py.typed", "hf_geossl/demo/page.py"} <= library
    assert not any("__pycache__" in name or name.endswith((".pyc", ".bin", ".pt", ".pth")) for name in files)
    assert files["model/model.safetensors"] == (run / "checkpoint-3" / "model.safetensors").read_bytes()
    for name, content in files.items():
        assert len(content) < 400_000 or name.endswith(".safetensors"), name
        for secret in (TOKEN.encode(), str(run).encode(), str(ROOT).encode(), str(Path.home()).encode() + b"/"):
            assert secret not in content, name
    config = json.loads(files["model/config.json"])
    assert config["architectures"] == ["GTSAForPreTraining"]
    assert "auto_map" not in config
    assert json.loads(files["model/preprocessor_config.json"])["image_mean"] == [0.4, 0.5, 0.6]  # the run's
    with Image.open(space / "samples" / "1.jpg") as sample:
        assert sample.size == (448, 448)


def test_space_states_what_the_hub_reads(space: Path) -> None:
    head, text = re.fullmatch(r"---\n(.*?)\n---\n(.*)", (space / "README.md").read_text(), flags=re.DOTALL).groups()  # type: ignore[union-attr]
    metadata = yaml.safe_load(head)
    lines = (space / "requirements.txt").read_text().splitlines()
    stated = {Requirement(line).name: Requirement(line).specifier for line in lines}
    version = metadata["sdk_version"]
    assert f">={version}" in str(stated["gradio"])
    assert stated["gradio"].contains(version)
    assert not stated["gradio"].contains(f"{int(version.split('.')[0]) + 1}.0.0")
    emoji = metadata.pop("emoji")
    assert len(emoji) == 1
    colors = {"red", "yellow", "green", "blue", "indigo", "purple", "pink", "gray"}
    assert {metadata.pop("colorFrom"), metadata.pop("colorTo")} < colors
    assert metadata == {
        "title": 'A: "title"',
        "sdk": "gradio",
        "sdk_version": "6.31.0",
        "python_version": "3.11",
        "app_file": "app.py",
        "models": ["user/model"],
        "license": "mit",
        "pinned": False,
    }
    assert "https://huggingface.co/user/model" in text
    assert "quarter turn" in text


def test_requirements_have_the_lower_bounds_of_the_library() -> None:
    block = re.search(r"install_requires=\[(.*?)\]", (ROOT / "setup.py").read_text(), flags=re.DOTALL)
    assert block is not None
    library = {Requirement(line).name: line for line in re.findall(r'"([^"]+)"', block.group(1))}
    space = {Requirement(line).name: line for line in REQUIREMENTS if not line.startswith("gradio")}
    assert space == {name: line for name, line in library.items() if name not in NOT_NEEDED}
    extra = re.search(r"^IMAGES = \[(.*?)\]", (ROOT / "setup.py").read_text(), flags=re.MULTILINE)
    assert extra is not None
    assert list(IMAGE_REQUIREMENTS) == re.findall(r'"([^"]+)"', extra.group(1))


def test_space_of_a_model_of_other_images_says_what_it_takes_and_reads_their_files(tmp_path: Path) -> None:
    bands = ImageFormat((1, 2, 3, 4, 5), tuple("abcde"), "uint16", mean=(0.5,) * 5, std=(0.2,) * 5)
    model = METHODS["loca"].model("Model", num_channels=5, image_format=bands.to_dict())
    export = tmp_path / "model"
    model.save_pretrained(export)
    make_image_processor((32, 32), image_format=bands).save_pretrained(export)
    space = write_space(export, tmp_path / "space", repo_id="user/model")
    assert not (space / "samples").exists()
    assert (space / "requirements.txt").read_text().splitlines() == [*REQUIREMENTS, *IMAGE_REQUIREMENTS]
    assert (
        "It takes images of 5 channels: a (1), b (2), c (3), d (4), e (5); uint16" in (space / "README.md").read_text()
    )
    assert json.loads((space / "model" / "config.json").read_text())["image_format"] == bands.to_dict()
    calls: list[Any] = []
    started = {"launch_demo": lambda folder, **given: calls.append((folder, given["samples"]))}
    app = (space / "app.py").read_text().replace("from hf_geossl.demo import launch_demo\n", "")
    for samples in (None, space / "samples"):
        exec(compile(app, "app.py", "exec"), {"__name__": "__main__", "__file__": str(space / "app.py"), **started})
        assert calls.pop() == (space / "model", samples)
        (space / "samples").mkdir(exist_ok=True)
    METHODS["loca"].model("Model", num_channels=5).save_pretrained(tmp_path / "unknown")
    with pytest.raises(ValueError, match="unknown takes 5 channels, and nothing says what they are"):
        write_space(tmp_path / "unknown", tmp_path / "new", repo_id="user/model")
    assert not (tmp_path / "new").exists()


def test_equal_input_gives_equal_bytes_and_a_trunk_alone_is_enough(run: Path, space: Path, tmp_path: Path) -> None:
    again = write_space(run, tmp_path / "again", repo_id="user/model", title='A: "title"', license="mit")
    assert _files(again) == _files(space)
    trunk = METHODS["loca"].model("Model")
    trunk.save_pretrained(tmp_path / "trunk")
    make_image_processor((32, 32)).save_pretrained(tmp_path / "trunk")
    alone = write_space(tmp_path / "trunk", tmp_path / "alone", repo_id="user/model")
    head = yaml.safe_load((alone / "README.md").read_text().split("---")[1])
    assert head["title"] == "LOCA demo"
    assert "license" not in head
    assert "drag" not in (alone / "README.md").read_text()
    saved = load_file(alone / "model" / "model.safetensors")
    assert saved.keys() == trunk.state_dict().keys()
    assert json.loads((alone / "model" / "preprocessor_config.json").read_text())["image_mean"] == [0.485, 0.456, 0.406]


def test_what_cannot_be_a_space_is_refused_in_one_line(run: Path, tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").write_text("mine")
    (tmp_path / "pickled").mkdir()
    (tmp_path / "pickled" / "config.json").write_text('{"model_type": "gtsa", "architectures": ["GTSAModel"]}')
    (tmp_path / "pickled" / "pytorch_model.bin").write_bytes(b"pickle")
    for folder, output, repo_id, message in [
        (run, tmp_path / "full", "user/model", "output must be a new or empty folder"),
        (run, tmp_path / "new", "not a name!", "Repo id"),
        (tmp_path / "nothing", tmp_path / "new", "user/model", "there is no folder"),
        (tmp_path / "pickled", tmp_path / "new", "user/model", "holds no model.safetensors"),
    ]:
        with pytest.raises(ValueError, match=message) as caught:
            write_space(folder, output, repo_id=repo_id)
        assert "\n" not in str(caught.value).strip()
        assert not (tmp_path / "new").exists()
    assert [path.name for path in (tmp_path / "full").iterdir()] == ["notes.txt"]


# ---- It starts from its own files and requirements


def _closure(lines: list[str]) -> dict[str, Any]:
    """The installed distributions that requirements bring in, by name."""
    found: dict[str, Any] = {}
    seen: set[tuple[str, str]] = set()
    waiting = [Requirement(line) for line in lines]
    while waiting:
        requirement = waiting.pop()
        name = canonicalize_name(requirement.name)
        for extra in ("", *requirement.extras):
            if (name, extra) in seen:
                continue
            seen.add((name, extra))
            try:
                found[name] = distribution(requirement.name)
            except PackageNotFoundError:  # of another platform
                continue
            inner = [Requirement(line) for line in found[name].requires or []]
            waiting += [one for one in inner if one.marker is None or one.marker.evaluate({"extra": extra})]
    return found


@pytest.fixture(scope="module")
def site(space: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A site directory with what requirements.txt brings in and nothing else."""
    folder = tmp_path_factory.mktemp("site")
    for one in _closure((space / "requirements.txt").read_text().splitlines()).values():
        for name in {path.parts[0] for path in one.files or []} - {"..", "__pycache__"}:
            if not (folder / name).exists() and not name.endswith(".pth"):
                (folder / name).symlink_to(one.locate_file(name))
    return folder


_START = """
import runpy, sys
checkout, site = sys.argv[1:]
sys.path[:0] = [checkout]
sys.path.append(site)
import hf_geossl
print("library", hf_geossl.__file__, flush=True)
runpy.run_path(checkout + "/app.py", run_name="__main__")
"""


@pytest.fixture
def served(space: Path, site: Path, tmp_path: Path) -> Iterator[tuple[str, str]]:
    """The address of the Space's app in a process of its own, and where its library lies."""
    pytest.importorskip("gradio", reason="the Space's app needs gradio")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), "GRADIO_SERVER_PORT": str(port)}
    environment |= {"OMP_NUM_THREADS": "1", "GRADIO_TEMP_DIR": str(tmp_path / "gradio"), "HF_HUB_OFFLINE": "1"}
    log = (tmp_path / "log.txt").open("w+")
    process = subprocess.Popen(
        [sys.executable, "-u", "-I", "-S", "-B", "-c", _START, str(space), str(site)],
        cwd=tmp_path,
        env=environment,
        stdout=log,
        stderr=subprocess.STDOUT,
    )
    try:
        limit = time.monotonic() + 90
        while (text := Path(log.name).read_text()).count("the demo runs at") == 0:
            assert process.poll() is None, text
            assert time.monotonic() < limit, text
            time.sleep(0.2)
        yield f"http://127.0.0.1:{port}/", re.search(r"library (\S+)", text).group(1)  # type: ignore[union-attr]
        assert "Traceback" not in Path(log.name).read_text()
    finally:
        process.terminate()
        process.wait(20)
        log.close()


def test_app_starts_from_its_files_with_its_requirements_alone_and_answers(
    served: tuple[str, str], space: Path, site: Path, tmp_path: Path
) -> None:
    import httpx
    from gradio_client import Client, handle_file

    url, library = served
    assert not (site / "datasets").exists()
    assert not (site / "hf_geossl").exists()
    assert Path(library) == space / "hf_geossl" / "__init__.py"
    page = httpx.get(url)
    assert page.status_code == 200
    assert "GTSA demo" in page.text
    assert httpx.get(f"{url}gradio_api/file={space}/app.py").status_code in (403, 404)
    Image.new("RGB", (90, 60), "teal").save(tmp_path / "own.png")
    client = Client(url, verbose=False, analytics_enabled=False, download_files=str(tmp_path / "client"))
    strip = client.predict(handle_file(tmp_path / "own.png"), api_name="/upload_a")
    assert 'data-index="-1" aria-pressed="true"' in strip
    area, text = client.predict(False, 2, api_name="/quarter_turn")
    assert area.count("<img") == 1
    shares = [float(share) for share in re.findall(r"<span>([\d.]+)%</span>", text)]
    assert len(shares) == 4
    assert sum(shares) == pytest.approx(100, abs=0.3)
