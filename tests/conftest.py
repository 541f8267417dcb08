"""What several tests share: the golden numbers, a small model, and quiet threads."""

import argparse
import fcntl
import gc
import json
import logging
import os
import resource
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from PIL import Image, ImageFile
from safetensors.torch import load_file, save_file

from tests.helpers.golden import golden_folder

# scikit-learn's import sets KMP_..., torch's compiler the next two, pytest its own
_OF_IMPORTS = ("KMP_", "TORCHINDUCTOR_", "_TORCHINDUCTOR_", "PYTEST_")


def _global_state() -> dict[str, Any]:
    """What a test can leave behind in its process for the tests after it."""
    logger = logging.getLogger("hf_geossl")
    return {
        "working folder": os.getcwd(),
        "environment": {k: v for k, v in os.environ.items() if not k.startswith(_OF_IMPORTS)},
        "level of hf_geossl's logger": (logger.level, logger.propagate, logger.disabled, logging.root.manager.disable),
        "verbosity of transformers": transformers.logging.get_verbosity(),
        "signal handlers": {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)},
        "dtype and threads of torch": (torch.get_default_dtype(), torch.get_num_threads(), torch.is_grad_enabled()),
        "determinism of torch": torch.are_deterministic_algorithms_enabled(),
        "limits": (resource.getrlimit(resource.RLIMIT_FSIZE), Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES),
        "import path": list(sys.path),
    }


def pytest_collection_finish() -> None:
    """Leaves what has been imported out of all later garbage collections: each run begins with one, of a second otherwise."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="module", autouse=True)
def what_a_file_has_imported_is_no_garbage() -> Iterator[None]:
    """The same of what the tests of a file import and keep: collections took a third of the time of later training runs."""
    yield
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def nothing_is_left_behind() -> Iterator[None]:
    """Tests run in any order and beside any others, so each leaves its process as it found it."""
    before = _global_state()
    yield
    after = _global_state()
    assert {name: after[name] for name in before if after[name] != before[name]} == {}


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
def supervised(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """An `Encoder` that was trained with labels on scenes, once for all of pytest's processes: features that know something."""
    from hf_geossl.evaluation.loading import load_encoder
    from tests.helpers.supervised import small_model, supervised_encoder

    folder = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        folder = folder.parent
    path = folder / "supervised.safetensors"
    with (folder / "supervised.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not path.exists():
            save_file(supervised_encoder().module.state_dict(), path)
    model = small_model(0)
    model.load_state_dict(load_file(path))
    return load_encoder(model)
