"""The house stands as designed: the measures of tests/helpers/house.py, public names, the README's commands, package data."""

import ast
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from transformers import Trainer

import hf_geossl
from hf_geossl.methods import METHODS
from tests.helpers.golden import ROOT
from tests.helpers.house import ANY_SHARE, MEASURES, House

HOUSE = House()
SOURCE = """
import torch
from hf_geossl.top.roof import _private, Open

class Own:
    def __init__(self, part, other):
        self._kept = part
        self.layer = torch.nn.Linear(2, 2)
        self.layer.bias = None
        part.name = "gtsa"
        setattr(part, "name", 1)
        vars(other)["name"] = 1
        made = Own(part, other)
        made.name = 2
        made.inner.name = 3
        self.part.name = 4
        del other.name

    def read(self, other, long):
        return other._kept, other._hidden, getattr(other, "_hidden"), self._hidden, vars(other)["_hidden"]
"""


@pytest.mark.parametrize("name", sorted(MEASURES))
def test_bounds(name: str) -> None:
    measure, bound = MEASURES[name]
    places = measure(HOUSE)
    assert len(places) <= bound, "\n".join(places)


def test_few_parameters_are_any() -> None:
    places = HOUSE.any_parameters()
    assert len(places) <= ANY_SHARE * HOUSE.number_of_parameters(), "\n".join(places)


def test_measures_find_what_they_count(tmp_path: Path) -> None:
    """On a package made for it: each measure is wrong about nothing that stands there."""
    rooms = {
        "modeling/__init__.py": "",
        "modeling/base.py": SOURCE.replace("hf_geossl.top", "hf_geossl.cli"),
        "modeling/loader.py": 'from hf_geossl.methods import METHODS\nTRAINER = METHODS["x"].load("trainer")\n',
        "methods.py": 'METHODS = {"x": Method(trainer="hf_geossl.training.loop:Loop")}\n',
        "training/__init__.py": "",
        "training/loop.py": "def f():\n    from hf_geossl.training import other\n",
        "training/other.py": 'from importlib import import_module\nLOOP = import_module("hf_geossl.training.loop")\n',
        "cli/__init__.py": "",
        "cli/roof.py": "class Open:\n    def __init__(self):\n        self._hidden = 1\n\n\ndef _private():\n    pass\n",
        "cli/loca.py": "def long(" + ", ".join(f"a{i}" for i in range(13)) + "):\n" + "    x = 1\n" * 401,
        "__init__.py": "",
    }
    for name, text in rooms.items():
        file = tmp_path / "hf_geossl" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(textwrap.dedent(text))
    test = tmp_path / "tests" / "cli" / "test_roof.py"
    test.parent.mkdir(parents=True)
    test.write_text("def test_it():\n    pass\n")
    (tmp_path / "tests" / "cli" / "test_loca.py").write_text("# to be written\n")
    house = House(tmp_path)
    assert house.circles() == ["hf_geossl.training.loop, hf_geossl.training.other"]
    assert sorted(house.arrows_up()) == [
        "hf_geossl.modeling.base imports hf_geossl.cli.roof",
        "hf_geossl.modeling.loader imports hf_geossl.training.loop",
    ]
    assert house.long_files() == ["hf_geossl.cli.loca: 402"]
    assert house.long_functions() == ["hf_geossl.cli.loca:1 long: 402"]
    assert house.long_signatures() == ["hf_geossl.cli.loca:1 long: 13"]
    assert house.method_names() == ["hf_geossl.modeling.base:10 gtsa"]
    assert [place.partition(" ")[2] for place in house.private_names()] == [
        "import _private", "._hidden", "'_hidden'", "'_hidden'"
    ]  # fmt: skip
    assert [place.partition(" ")[2] for place in house.foreign_writes()] == [
        "part.name", "setattr(part, 'name', 1)", "vars(other)['name']", "self.part.name", "other.name"
    ]  # fmt: skip
    tests = [place.partition(": ")[0] for place in house.untested_modules()]
    assert "hf_geossl.cli.loca" in tests  # a file without a test in it
    assert "hf_geossl.cli.roof" not in tests


@pytest.mark.parametrize("name", METHODS)
def test_at_most_one_class_of_ours_lies_between_a_trainer_and_transformers(name: str) -> None:
    classes = METHODS[name].load("trainer").__mro__
    between = classes[1 : classes.index(Trainer)]
    assert len([cls for cls in between if cls.__module__.startswith("hf_geossl")]) <= 1, between


@pytest.mark.parametrize("name", METHODS)
def test_an_exported_trunk_carries_few_files_of_plain_pytorch(name: str, tmp_path: Path) -> None:
    METHODS[name].load("model")(
        METHODS[name].load("config")(hidden_size=32, num_attention_heads=2, num_hidden_layers=1)
    ).save_pretrained(tmp_path)
    files = sorted(tmp_path.rglob("*.py"))
    assert 0 < len(files) <= 8, [file.name for file in files]
    for file in files:
        assert "autograd.Function" not in file.read_text(), file.name


def test_libraries_whose_private_names_are_used_are_bounded_above() -> None:
    """At their next major version, so that CI tries minor versions as they appear."""
    found = re.findall(r'"([\w-]+[<>]=?[^"]*)"', (ROOT / "setup.py").read_text())
    requirements = [Requirement(text) for text in found]
    bounds = {r.name: [part.version for part in r.specifier if part.operator == "<"] for r in requirements}
    for library in ("transformers", "accelerate", "datasets", "evaluate", "torch", "huggingface_hub"):
        assert len(bounds[library]) == 1, library
        assert bounds[library][0].isdigit(), f"{library}<{bounds[library][0]} is no major version"


def test_modeling_files_are_flat_and_import_only_what_every_reader_has() -> None:
    allowed = {"torch", "numpy", "transformers", "huggingface_hub", *sys.stdlib_module_names}
    for path in (ROOT / "hf_geossl" / "modeling").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                assert {alias.name.split(".")[0] for alias in node.names} <= allowed, path.name
            elif isinstance(node, ast.ImportFrom):
                assert node.level == 1 or (node.module or "").split(".")[0] in allowed, path.name
                assert node.level != 1 or "." not in (node.module or "x."), path.name
        assert not re.search(r"\.data\b", path.read_text()), path.name  # breaks loading in transformers 5


def test_every_public_name_is_there() -> None:
    for name in hf_geossl.__all__:
        assert getattr(hf_geossl, name).__name__ == name
        assert getattr(hf_geossl, name).__doc__, f"{name} has no docstring"
    kinds = ("Config", "Model", "Backbone", "ForImageClassification", "ForSemanticSegmentation", "ForPreTraining")
    kinds += ("Trainer", "TrainingArguments", "Views")
    expected = {f"{method}{kind}" for method in ("GTSA", "LOCA", "EquiCoherent") for kind in kinds}
    expected |= {"TeacherStudentTrainer", "load_stream", "load_scenes", "evaluate_model", "publish", "load_backbone"}
    assert expected - set(hf_geossl.__all__) == set()
    with pytest.raises(AttributeError, match="has no attribute 'GTSA'"):
        _ = hf_geossl.GTSA


def test_importing_the_package_brings_no_training() -> None:
    code = "import sys, hf_geossl; print([m for m in sys.modules if m.startswith(('hf_geossl.training', 'datasets'))])"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()
    assert found == "[]"


def test_links_and_readme_commands() -> None:
    for room in ("modeling", "training"):
        assert (ROOT / room).is_symlink()
        assert (ROOT / room).resolve() == ROOT / "hf_geossl" / room
    readme = (ROOT / "README.md").read_text()
    section = readme.split("## Start")[1].split("\n## ")[0]
    commands = re.findall(r"^pip install .*$", section, flags=re.MULTILINE)
    assert commands == [
        "pip install -e . && geossl pretrain quickstart",
        'pip install -e ".[test]" && pytest -n auto --dist loadfile',
    ]
    for picture in re.findall(r"\]\(([\w/]+\.png)\)", readme):
        assert (ROOT / picture).is_file(), picture


def test_installed_package_holds_its_data() -> None:
    """What setup.py packs is all that lies beside the code (an editable install would hide what is missing)."""
    patterns = re.search(r"package_data=\{\s*\"hf_geossl\": \[(.*?)\]", (ROOT / "setup.py").read_text(), re.DOTALL)
    assert patterns is not None
    packed = {
        path for pattern in re.findall(r'"([^"]+)"', patterns.group(1)) for path in (ROOT / "hf_geossl").glob(pattern)
    }
    data = {p for p in (ROOT / "hf_geossl").rglob("*") if p.is_file() and p.suffix not in (".py", ".pyc")}
    assert data == packed
