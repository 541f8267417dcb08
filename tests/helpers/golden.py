"""The checkout, and the golden numbers of the authors' programs."""

import json
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
SHIPPED = ROOT / "tests" / "golden"
SHARED = ROOT.parent / "shared" / "golden"


def golden_folder(name: str, method: str = "gtsa") -> Path:
    """The full set beside the checkout where it exists, otherwise the part that ships with the tests."""
    return (SHARED if (SHARED / method / name).is_file() else SHIPPED) / method


def golden_json(name: str, method: str = "gtsa") -> Any:
    """A JSON file of the set."""
    return json.loads((golden_folder(name, method) / name).read_text())
