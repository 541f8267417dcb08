"""The evaluation of six tasks: what it takes, not what it finds.

On a GPU 4,000 images each and the trunk of the scenes experiment, on a CPU 200 and the quickstart's trunk at 64 pixels.
"""

import time
from collections.abc import Iterator

import torch

from benchmarks.gpu.rows import Measurement, Row, Setup
from benchmarks.scenes_experiment.arms import trunk_of
from benchmarks.scenes_experiment.presets import PRESETS
from hf_geossl import GTSAConfig, GTSAModel, evaluate_model

TASKS = ("knn", "linear", "rotation", "segmentation", "depth", "equivariance")
IMAGES, IMAGES_ON_CPU = 4000, 200
QUICKSTART = {"hidden_size": 96, "num_hidden_layers": 3, "num_attention_heads": 3, "image_size": 64, "patch_size": 8}


def six_tasks(setup: Setup) -> Iterator[Row]:
    """All of them in one call, data rendered in it; where everything is tiny the three that take seconds."""
    torch.manual_seed(0)
    model = GTSAModel(GTSAConfig(**(trunk_of(PRESETS["gpu"]) if setup.cuda else QUICKSTART)))
    tasks, began = TASKS[:3] if setup.tiny else TASKS, time.time()
    images = IMAGES if setup.cuda else IMAGES_ON_CPU
    results = evaluate_model(
        model,
        tasks,
        limit=40 if setup.tiny else images,
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
