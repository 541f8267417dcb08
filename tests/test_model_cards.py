"""Every recipe has a card that says what the recipe says, and tells the paper's numbers from measured ones."""

import json
import re
from typing import Any

import pytest
import yaml

from hf_geossl.cli.describe import method_arguments
from hf_geossl.cli.pretrain import make_training_arguments
from hf_geossl.cli.pretrain_arguments import parse_pretrain
from hf_geossl.cli.recipes import read_recipe, recipes
from tests.helpers.golden import ROOT

CARDS = ROOT / "model_cards"
PAPER = "The paper's numbers, not measured with this library"
MEASURED = "What was measured here"
# 16-bit floats want a GPU, and several GPUs would count as one process here
ON_CPU = ["--use_cpu", "true", "--fp16", "false", "--bf16", "false"]
every_recipe = pytest.mark.parametrize("name", sorted(recipes()))


def _card(name: str) -> tuple[dict[str, Any], str]:
    """Front matter and body."""
    _, front, body = (CARDS / f"{name}.md").read_text(encoding="utf-8").split("---\n", 2)
    return yaml.safe_load(front), body


def _sections(body: str) -> dict[str, str]:
    """Text under each heading of the second level; what stands before the first is under ''."""
    parts = re.split(r"^## (.+)\n", body, flags=re.MULTILINE)
    headings = ["", *parts[1::2]]
    assert len(set(headings)) == len(headings)
    return dict(zip(headings, parts[0::2], strict=True))


def _rows(text: str) -> list[list[str]]:
    """Cells of all tables, line by line, without the lines under the headers."""
    lines = [line for line in text.splitlines() if line.startswith("|")]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return [row for row in cells if not all(set(cell) == {"-"} for cell in row)]


def _recipe(name: str) -> dict[str, Any]:
    recipe = read_recipe(name)
    return {"method": recipe.method, **{key: value for _, key, value in recipe.entries}}


def _effective(name: str) -> dict[str, Any]:
    """Every argument's value, those of the recipe and defaults."""
    given = parse_pretrain([name, *ON_CPU])
    values = {argument.name: argument.default for argument in method_arguments(given.method.name)}
    values |= {**vars(given.data), "init_from": given.init_from, **given.model, **given.views, **given.training}
    recipe = _recipe(name)
    values.update({key: recipe.get(key, False) for key in ("use_cpu", "fp16", "bf16")})
    return values


def _command(name: str) -> tuple[str, int]:
    """The command that trains a recipe, and its processes: what the recipe's comment says, or `geossl`."""
    found = re.search(r"^#\s+(torchrun --nproc_per_node (\d+) .*)$", recipes()[name].read_text(), re.MULTILINE)
    return (found[1], int(found[2])) if found else (f"geossl pretrain {name}", 1)


def test_every_recipe_has_a_card_and_every_card_a_recipe() -> None:
    assert {path.stem for path in CARDS.glob("*.md")} == set(recipes())


@every_recipe
def test_front_matter_is_what_the_hub_reads(name: str) -> None:
    front, body = _card(name)
    recipe = _recipe(name)
    assert front["library_name"] == "transformers"
    assert front["pipeline_tag"] == "image-feature-extraction"
    assert {"self-supervised-learning", "vision", "vit", recipe["method"]} <= set(front["tags"])
    on_the_hub = [recipe["dataset"]] if "/" in recipe["dataset"] else None
    assert front.get("datasets") == on_the_hub
    assert "license" not in front, "there are no weights that could have one"
    assert body.lstrip().startswith(f"# {name}: ")


@every_recipe
def test_settings_are_those_of_the_recipe(name: str) -> None:
    effective = _effective(name)
    told = {
        row[0].strip("`"): row[1].strip("`") for row in _rows(_sections(_card(name)[1])["Settings"]) if "`" in row[0]
    }
    assert set(_recipe(name)) - {"method"} <= set(told), "a setting of the recipe is not on its card"
    for key, text in told.items():
        value = effective[key]
        if value is None or isinstance(value, str):
            assert text == (value or "none"), key
        else:
            assert json.loads(text) == (list(value) if isinstance(value, tuple) else value), key


@every_recipe
def test_batch_learning_rate_and_images_follow_from_the_command(name: str) -> None:
    sections = _sections(_card(name)[1])
    command, processes = _command(name)
    assert sections["Train it"].split("```bash\n")[1].split("\n```")[0] == command
    args = make_training_arguments(parse_pretrain([name, *ON_CPU, "--gradient_accumulation_steps", str(processes)]))
    told = {row[0]: float(row[1]) for row in _rows(sections["Settings"]) if re.fullmatch(r"[\d.e-]+", row[1])}
    assert told == {
        "processes": processes,
        "global batch": args.global_batch_size,
        "peak learning rate": pytest.approx(args.scaled_learning_rate, rel=1e-3),
        "images seen": args.global_batch_size * args.max_steps,
    }


@every_recipe
def test_numbers_are_the_papers_or_measured_and_stand_under_that_heading(name: str) -> None:
    sections = _sections(_card(name)[1])
    embedded = _recipe(name)["dataset"] in ("scenes", "photographs")
    assert (MEASURED in sections, PAPER in sections) == (embedded, not embedded)
    for heading, text in sections.items():
        if heading in (PAPER, MEASURED, "Settings"):
            continue
        prose = re.sub(r"```.*?```|`[^`]*`|\(https?:[^)]*\)|arXiv \d{4}\.\d{5}", "", text, flags=re.DOTALL)
        assert not re.search(r"\d\.\d|\bTables? \d", prose), f"a result under {heading!r}"
    for table in re.findall(r"(?:^\|.*\n?)+", sections.get(PAPER, ""), re.MULTILINE):
        header, *rows = _rows(table)
        assert header[-1] == "source"
        assert rows
        assert all(re.fullmatch(r"Table \d+|authors' README", row[-1]) for row in rows)


@every_recipe
def test_nothing_is_empty_and_nothing_points_elsewhere(name: str) -> None:
    text = (CARDS / f"{name}.md").read_text(encoding="utf-8")
    assert not re.search(r"\bN/?A\b|\bTBD\b|\bTODO\b|\?\?|\bnan\b", text, re.IGNORECASE)
    for row in _rows(text):
        assert all(row), f"an empty cell: {row}"
    for heading, section in _sections(_card(name)[1]).items():
        assert section.strip(), f"nothing under {heading!r}"
    addresses = re.findall(r"\w+://[^\s)\]>`]+", text)
    assert [url for url in addresses if not re.match(r"https://(arxiv\.org|huggingface\.co|github\.com)/", url)] == []
    without_addresses = re.sub(r"\w+://[^\s)\]>`]+", "", text)
    assert not re.search(r"(?<![\w.<])[/~]/?\w|\b[A-Za-z]:\\", without_addresses), "an absolute path"
