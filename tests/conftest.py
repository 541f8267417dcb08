"""What several tests share: the golden numbers, a small model, and quiet threads."""

import argparse
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

SHIPPED = Path(__file__).parent / "golden"
SHARED = Path(__file__).parents[2] / "shared" / "golden"


def golden_folder(name: str, method: str = "gtsa") -> Path:
    """The full set beside the checkout where it exists, otherwise the part that ships with the tests."""
    return (SHARED if (SHARED / method / name).is_file() else SHIPPED) / method


def golden_json(name: str, method: str = "gtsa") -> Any:
    return json.loads((golden_folder(name, method) / name).read_text())


@pytest.fixture(scope="session")
def golden() -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Tensors and numbers of the authors' program for one step."""
    folder = golden_folder("golden.safetensors")
    return load_file(folder / "golden.safetensors"), json.loads((folder / "golden.json").read_text())


@pytest.fixture(scope="session")
def authors_file(golden: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint as the authors' program writes it."""
    tensors, _ = golden
    state = {key.removeprefix("state."): value.clone() for key, value in tensors.items() if key.startswith("state.")}
    path = tmp_path_factory.mktemp("authors") / "checkpoint-99.pth"
    torch.save({"model": state, "epoch": 99, "args": argparse.Namespace(batch_size=64), "scaler": {}}, path)
    return path


@pytest.fixture(scope="session")
def supervised() -> Any:
    """An `Encoder` that was trained with labels on scenes: features that know something."""
    from supervised import supervised_encoder

    return supervised_encoder()
