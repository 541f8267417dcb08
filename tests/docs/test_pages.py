"""README and docs/ say what is so: their code runs, the messages and functions that they name exist."""

import gc
import os
import re
import runpy
import shutil
from collections.abc import Iterator
from functools import partial
from importlib import import_module
from pathlib import Path
from unittest.mock import patch

import pytest
import timm
import torch
import yaml
from safetensors.torch import save

from hf_geossl.cli.main import main
from hf_geossl.methods import METHODS, Method
from tests.helpers.flax_files import flax_file
from tests.helpers.golden import ROOT
from tests.helpers.hub_server import WRITE_TOKEN, HubServer, Token
from tests.helpers.pages import PAGES, QUICK, blocks, literals, run_block, small
from tests.helpers.plain_vits import authors_state, vit_of
from tests.helpers.small_recipes import SMALL
from tests.helpers.vit_families import make

MODELS = {
    "facebook/dinov2-base": "Dinov2Model",
    "facebook/dinov2-small": "Dinov2Model",
    "facebook/dinov3-vits16-pretrain-lvd1689m": "DINOv3ViTModel",
}
TIMM = "vit_small_patch16_224"
tiny_timm = partial(timm.models.vit_small_patch16_224, img_size=32, patch_size=8, embed_dim=128, depth=2, num_heads=2)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a reader of the pages has: what docs/practice.py makes, trained folders, and files of the methods' authors."""
    root = tmp_path_factory.mktemp("world")
    runpy.run_path(str(ROOT / "docs/practice.py"))["make"](root, images=12, side=48)
    mine = SMALL | QUICK | {"dataset": "path/to/images", "output_dir": "mine", "logging_steps": 1}
    (root / "my.yaml").write_text(yaml.safe_dump(mine))
    torch.save({"model": authors_state(vit_of())}, root / "checkpoint-99.pth")
    flax_file(root / "loca_vbase_imnet1k")
    with pytest.MonkeyPatch.context() as moved:
        moved.chdir(root)
        words = ["pretrain", "quickstart", "--dataset", "path/to/images", "--output_dir", "run"]
        assert main([*small(words), "--num_hidden_layers", "4"]) == 0
    gc.collect()
    gc.freeze()  # a run collects garbage three times: what this one has imported need not be visited in the others
    for copy in ("run-a", "run-b", "geossl-quickstart", "geossl-loca_quickstart"):
        shutil.copytree(root / "run", root / copy)
    return root


@pytest.fixture(scope="module")
def hub(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[HubServer]:
    """A Hub with what the pages name, tiny: models of others, a model and a dataset of the reader's."""
    folder = tmp_path_factory.mktemp("models")
    with HubServer(tmp_path_factory.mktemp("hub"), tokens={WRITE_TOKEN: Token("user")}) as server:
        for name, kind in MODELS.items():
            make(kind).save_pretrained(folder / name)
            server.add_folder(name, folder / name)
        server.add(f"timm/{TIMM}.dino", {"model.safetensors": save(tiny_timm(num_classes=0).state_dict())}, "model")
        server.add_folder("user/model", world / "run")
        server.add_folder("user/dataset", world / "path/to/images", "dataset")
        yield server
    assert not server.errors


def marks(page: Path) -> list[pytest.MarkDecorator]:
    needs = any(block.needs for block in blocks(page))
    slow = any(block.starts_processes for block in blocks(page))
    return [pytest.mark.packages] * needs + [pytest.mark.slow] * slow


@pytest.mark.parametrize(
    "page",
    [pytest.param(p, marks=marks(p), id=str(p.relative_to(ROOT))) for p in PAGES if blocks(p)],
)
def test_blocks_of_code_run(
    page: Path, world: Path, hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(world, tmp_path / "world")
    monkeypatch.chdir(tmp_path / "world")
    hub.take_client(monkeypatch)
    monkeypatch.setitem(timm.models._registry._model_entrypoints, TIMM, tiny_timm)
    namespace = {
        "__name__": page.stem,
        "METHODS": dict(METHODS),
        "Method": Method,
    }  # the last two for a row of methods.py
    gc.freeze()  # what other pages have imported (torch's exporters, trackers) is no garbage either
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    with patch.dict(os.environ):  # trackers and gradio leave something in it
        for block in blocks(page):
            run_block(block, namespace, monkeypatch)
    if lacking := [f"{block.place} needs {', '.join(block.lacks)}" for block in blocks(page) if block.lacks]:
        pytest.skip(f"all blocks ran but {'; '.join(lacking)}: pip install -e '.[pages]'")


def test_recipes_that_pages_show_are_read(tmp_path: Path) -> None:
    from hf_geossl.cli.pretrain_arguments import parse_pretrain

    shown = [block for page in PAGES for block in blocks(page) if block.language == "yaml" and "method:" in block.text]
    for block in shown:
        file = tmp_path / "shown.yaml"
        file.write_text(block.text)
        assert parse_pretrain([str(file)]).method.name == yaml.safe_load(block.text)["method"]


def test_quoted_messages_are_in_the_code() -> None:
    """Each message of docs/troubleshooting.md; an ellipsis stands for what differs from run to run."""
    page = (ROOT / "docs/troubleshooting.md").read_text()
    quoted = re.findall(r"^### `(.+)`$", page, re.MULTILINE)
    assert len(quoted) >= 20
    said = literals(ROOT / "hf_geossl")
    for message in quoted:
        pattern = re.compile(".*".join(re.escape(part.strip()) for part in message.split("…")), re.DOTALL)
        assert any(pattern.search(text) for text in said), f"nothing says {message!r}"


def test_paper_index_names_functions_and_tests_that_exist() -> None:
    """A row: an equation, what computes it, the test that holds it against numbers from elsewhere, which names it too."""
    page = (ROOT / "docs/papers.md").read_text()
    rows = [line.split(" | ") for line in page.splitlines() if re.match(r"\| .*`tests/", line)]
    assert len(rows) >= 30
    for row in rows:
        functions = re.findall(r"\[`[\w.]+`\]\[(hf_geossl[\w.]+)\]", row[-2])
        tests = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", row[-1])
        assert functions, row
        assert tests, row
        for name in functions:
            _resolve(name)
        for file, test in tests:
            assert re.search(rf"^def {test}\(", (ROOT / file).read_text(), re.MULTILINE), f"{file} has no {test}"


def _resolve(name: str) -> object:
    """What a dotted name of a class, a function or a method stands for."""
    parts = name.split(".")
    for end in range(len(parts), 0, -1):
        try:
            found = import_module(".".join(parts[:end]))
        except ModuleNotFoundError:
            continue
        for part in parts[end:]:
            found = getattr(found, part)
        return found
    raise AssertionError(f"there is no {name}")


def test_the_row_of_a_method_that_is_shown_is_the_one_that_is_tried() -> None:
    row = (ROOT / "tests/helpers/fourth_method/row.txt").read_text()
    assert row in (ROOT / "docs/add_a_method.md").read_text()
