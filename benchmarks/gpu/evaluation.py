"""The evaluation of six tasks, 4,000 images each, of the trunk of the scenes experiment: what it takes, not what it finds."""

import time
from collections.abc import Iterator

import torch

from benchmarks.gpu.rows import Measurement, Row, Setup
from benchmarks.gpu.scenes import TRUNK
from hf_geossl import GTSAConfig, GTSAModel, evaluate_model

TASKS = ("knn", "linear", "rotation", "segmentation", "depth", "equivariance")
IMAGES = 4000


def six_tasks(setup: Setup) -> Iterator[Row]:
    """All of them in one call, data rendered in it; where everything is tiny the three that take seconds."""
    torch.manual_seed(0)
    small = {"hidden_size": 48, "num_hidden_layers": 2} if setup.tiny else {}
    model = GTSAModel(GTSAConfig(**TRUNK | small))
    tasks, began = TASKS[:3] if setup.tiny else TASKS, time.time()
    results = evaluate_model(
        model,
        tasks,
        limit=40 if setup.tiny else IMAGES,
        num_workers=setup.workers,
        cache_dir=None,
        device=setup.device,
        pictures=False,
        progress=False,
        bootstrap=20 if setup.tiny else 1000,
    )
    failed = results["about"].get("failed", {})
    yield {"seconds_of_tasks": round(time.time() - began, 1), "measured": [task for task in TASKS if task in results]}
    for task, reason in failed.items():
        yield {"failed": f"{task}: {reason}"}


MEASUREMENTS: dict[str, Measurement] = {"six tasks": six_tasks}
