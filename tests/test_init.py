"""`import hf_geossl`: soon done, and typed."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import hf_geossl

STUB = Path(hf_geossl.__file__).with_suffix(".pyi")
SNIPPET = """
from hf_geossl import GTSAConfig, LOCAViews, __version__, load_stream
reveal_type(GTSAConfig)
reveal_type(LOCAViews)
reveal_type(__version__)
wrong: int = load_stream
"""


def test_the_stub_names_what_the_package_gives() -> None:
    tree = ast.parse(STUB.read_text())
    imported = {
        alias.asname or alias.name: node.module
        for node in tree.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    (names,) = [
        ast.literal_eval(n.value) for n in tree.body if isinstance(n, ast.Assign) and n.targets[0].id == "__all__"
    ]
    assert names == hf_geossl.__all__
    assert set(imported) - {"__version__"} == set(names)
    for name in names:
        given = getattr(hf_geossl, name)
        home = __import__(imported[name], fromlist=[name])
        assert getattr(home, name) is given


def test_public_names_are_typed(tmp_path: Path) -> None:
    """mypy sees the classes, not Any."""
    pytest.importorskip("mypy", reason="type checking is part of the extra dev")
    (tmp_path / "snippet.py").write_text(SNIPPET)
    # what transformers, torch and the others are is of no interest here
    (tmp_path / "mypy.ini").write_text("[mypy]\nfollow_imports = silent\nignore_missing_imports = True\n" + "".join(
        f"[mypy-{name}.*]\nfollow_imports = skip\n"
        for name in ("torch", "transformers", "datasets", "huggingface_hub", "numpy", "PIL", "accelerate", "tqdm")
    ))  # fmt: skip
    command = [sys.executable, "-m", "mypy", "--config-file", str(tmp_path / "mypy.ini"), str(tmp_path / "snippet.py")]
    found = subprocess.run(
        [*command, "--cache-dir", str(tmp_path / "cache")],
        capture_output=True,
        text=True,
        check=False,
        cwd=Path(hf_geossl.__file__).parents[1],
    ).stdout
    assert 'Revealed type is "def (' in found, found
    assert "GTSAConfig" in found
    assert "LOCAViews" in found
    assert '"builtins.str"' in found or '"str"' in found
    assert "Any" not in next(line for line in found.splitlines() if "Revealed" in line).rpartition("->")[2]
    assert "Incompatible types in assignment" in found  # a function is no int: it is known to be one


def test_names_are_imported_when_they_are_used() -> None:
    code = """
import sys
import hf_geossl
assert set(hf_geossl.__all__) <= set(dir(hf_geossl))
heavy = [name for name in ("torch", "transformers", "datasets", "numpy", "huggingface_hub", "PIL") if name in sys.modules]
assert heavy == [], heavy
assert hf_geossl.GTSAConfig().model_type == "gtsa"
try:
    hf_geossl.GTSA
except AttributeError as error:
    assert "has no attribute 'GTSA'" in str(error)
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_importing_the_package_costs_little_beside_transformers() -> None:
    """CPU seconds of a process that has imported transformers already; the better of two."""
    code = (
        "import time, transformers; begun = time.process_time(); import hf_geossl; print(time.process_time() - begun)"
    )
    command = [sys.executable, "-c", code]
    seconds = [float(subprocess.run(command, check=True, capture_output=True, text=True).stdout) for _ in range(2)]
    assert min(seconds) < 0.3
