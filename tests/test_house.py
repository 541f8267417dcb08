"""The house stands as designed: imports run one way, names are public, the README is run by CI."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

import hf_geossl
from tests.helpers.golden import ROOT

ROOMS = (
    "modeling",
    "data",
    "training",
    "evaluation",
    "publishing",
    "recipes",
    "cli",
)  # each may import the ones before it


def _modules() -> dict[str, Path]:
    return {
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
        for path in (ROOT / "hf_geossl").rglob("*.py")
    }


def _imports(name: str, path: Path) -> set[str]:
    """Modules of ours that a module imports when it is imported itself (not inside functions or TYPE_CHECKING)."""
    modules, found = _modules(), set()
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]

    def visit(nodes: list[ast.stmt]) -> None:
        for node in nodes:
            if isinstance(node, ast.If) and "TYPE_CHECKING" not in ast.dump(node.test):
                visit(node.body)
            elif isinstance(node, ast.Import):
                found.update(alias.name for alias in node.names)
            elif isinstance(node, ast.ImportFrom):
                base = node.module or ""
                if node.level:
                    parts = package.split(".")[: len(package.split(".")) - node.level + 1]
                    base = ".".join([*parts, *([node.module] if node.module else [])])
                found.update({base, *(f"{base}.{alias.name}" for alias in node.names)})

    visit(ast.parse(path.read_text()).body)
    return {module for module in found if module in modules and module != name}


def _room(module: str) -> str:
    return module.split(".")[1] if "." in module else "hf_geossl"


def test_imports_run_one_way() -> None:
    wrong = []
    for name, path in _modules().items():
        if _room(name) not in ROOMS:
            continue
        for other in _imports(name, path):
            room = _room(other)
            if room in ROOMS and ROOMS.index(room) > ROOMS.index(_room(name)):
                wrong.append(f"{name} imports {other}")
            if _room(name) == "modeling" and room != "modeling":
                wrong.append(f"{name} imports {other}: it could not travel with the weights")
    assert wrong == []


def test_no_module_imports_itself_by_a_detour() -> None:
    graph = {name: _imports(name, path) for name, path in _modules().items() if name != "hf_geossl"}
    graph = {name: {o for o in others if o in graph} for name, others in graph.items()}
    done: set[str] = set()

    def walk(name: str, trail: tuple[str, ...]) -> None:
        assert name not in trail, " -> ".join([*trail[trail.index(name) :], name])
        if name not in done:
            for other in sorted(graph[name]):
                if not other.startswith(f"{name}.") and not name.startswith(f"{other}."):
                    walk(other, (*trail, name))
            done.add(name)

    for name in sorted(graph):
        walk(name, ())


def test_modeling_files_are_flat_and_import_only_what_every_reader_has() -> None:
    allowed = {"torch", "transformers", "huggingface_hub", *sys.stdlib_module_names}
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
    for name in [
        "GTSAConfig",
        "GTSAModel",
        "GTSABackbone",
        "GTSAForImageClassification",
        "GTSAForSemanticSegmentation",
        "GTSAForPreTraining",
        "GTSATrainer",
        "GTSATrainingArguments",
        "TeacherStudentTrainer",
        "GTSAViews",
        "LOCATrainer",
        "LOCATrainingArguments",
        "LOCAViews",
        "load_stream",
        "load_scenes",
        "evaluate_model",
    ]:
        assert name in hf_geossl.__all__
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
