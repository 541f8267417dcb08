"""A wheel has every file that the package reads, and one file says its version and the bounds of what it needs."""

import re
import runpy
import subprocess
from typing import Any

import pytest
import setuptools
import yaml

import hf_geossl
from tests.helpers.golden import ROOT


@pytest.fixture
def packaging(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What setup.py gives to setuptools."""
    given: dict[str, Any] = {}
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(setuptools, "setup", lambda **arguments: given.update(arguments))
    runpy.run_path(str(ROOT / "setup.py"))
    return given


def test_every_file_of_the_package_is_in_the_wheel(packaging: dict[str, Any]) -> None:
    """Recipes, accelerate's files, templates, types: whatever is committed and no module."""
    listed = subprocess.run(
        ["git", "ls-files", "hf_geossl"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.split()
    package, patterns = ROOT / "hf_geossl", packaging["package_data"]["hf_geossl"]
    taken = {path for pattern in patterns for path in package.glob(pattern)}
    assert {ROOT / name for name in listed if not name.endswith(".py")} <= taken
    folders = {(ROOT / name).parent for name in listed if name.endswith(".py")}
    assert folders == {ROOT / name.replace(".", "/") for name in packaging["packages"]}


def test_the_version_and_the_bounds_stand_in_one_place(packaging: dict[str, Any]) -> None:
    assert packaging["version"] == hf_geossl.__version__
    assert f"## {hf_geossl.__version__}\n" in (ROOT / "CHANGELOG.md").read_text()
    assert "version" not in yaml.safe_load((ROOT / "CITATION.cff").read_text())
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    assert [repo["repo"] for repo in hooks] == ["local"]  # the tools of the extra `dev`, at its versions
    extras = re.findall(r"\[([\w,-]+)\]", (ROOT / "CONTRIBUTING.md").read_text().split("## The house")[0])
    extras += re.findall(r"/src\[([\w,-]+)\]", (ROOT / "Dockerfile").read_text())
    assert extras
    assert {name for group in extras for name in group.split(",")} <= set(packaging["extras_require"])


def test_what_the_dockerfile_copies_is_let_through_and_there() -> None:
    copied = [
        name
        for line in re.findall(r"^COPY (.+)$", (ROOT / "Dockerfile").read_text(), re.MULTILINE)
        for name in line.split()[:-1]
    ]
    ignored = (ROOT / ".dockerignore").read_text().split()
    assert ignored[0] == "*"
    assert {f"!{name}" for name in copied} <= set(ignored)
    assert all((ROOT / name).exists() for name in copied)
