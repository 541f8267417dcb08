"""README and docs/ say what is so: their code runs, the messages and functions that they name exist."""

import gc
import re
import runpy
import shutil
from importlib import import_module
from pathlib import Path

import pytest
import yaml

from hf_geossl.cli.main import main
from tests.helpers.golden import ROOT
from tests.helpers.pages import PAGES, blocks, literals, run_block, small


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a reader of the pages has: what docs/practice.py makes, and a trained folder."""
    root = tmp_path_factory.mktemp("world")
    runpy.run_path(str(ROOT / "docs/practice.py"))["make"](root, images=12, side=48)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        words = ["pretrain", "quickstart", "--dataset", "path/to/images", "--output_dir", "run"]
        assert main([*small(words), "--num_hidden_layers", "4"]) == 0
    gc.collect()
    gc.freeze()  # a run collects garbage three times: what this one has imported need not be visited in the others
    for copy in ("run-a", "run-b", "geossl-quickstart"):
        shutil.copytree(root / "run", root / copy)
    return root


@pytest.mark.parametrize("page", [p for p in PAGES if blocks(p)], ids=lambda p: str(p.relative_to(ROOT)))
def test_blocks_of_code_run(page: Path, world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(world, tmp_path / "world")
    monkeypatch.chdir(tmp_path / "world")
    namespace: dict[str, object] = {"__name__": page.stem}
    for block in blocks(page):
        run_block(block, namespace, monkeypatch)


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
