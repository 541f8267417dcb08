"""Pretraining at the size of the scenes experiment: 64 pixels, ViT 192 x 12, patches of 8, batch 512, 2 + 4 views."""

import shutil
import statistics
from collections.abc import Iterator
from typing import Any

import numpy as np

from benchmarks.gpu.rows import Measurement, Row, Setup
from hf_geossl import (
    EquiCoherentConfig,
    EquiCoherentForPreTraining,
    EquiCoherentTrainer,
    EquiCoherentTrainingArguments,
    EquiCoherentViews,
    GTSAConfig,
    GTSAForPreTraining,
    GTSATrainer,
    GTSATrainingArguments,
    GTSAViews,
)

TRUNK = {"hidden_size": 192, "num_hidden_layers": 12, "num_attention_heads": 3, "image_size": 64, "patch_size": 8}
CROPS: dict[str, Any] = {"global_size": 64, "local_size": 32, "num_local": 4}


class Images:
    """Images of noise, a quarter larger than they are trained at: what they show costs nothing else."""

    def __init__(self, count: int) -> None:
        self.images = np.random.default_rng(0).integers(0, 256, (count, 80, 80, 3), dtype=np.uint8)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        return {"image": self.images[index]}


def dino(sizes: dict[str, Any]) -> tuple[Any, ...]:
    """DINO's model, trainer, arguments and views."""
    heads = {"num_prototypes": 2048, "head_hidden_size": 512, "head_bottleneck_size": 128}
    config = EquiCoherentConfig(**sizes, host="dino", transformation=None, reconstruction_weight=0.0, **heads)
    views = EquiCoherentViews("dino", None, config.num_intermediate, patch_size=8, **CROPS)
    return EquiCoherentForPreTraining(config), EquiCoherentTrainer, EquiCoherentTrainingArguments, views


def gtsa(sizes: dict[str, Any]) -> tuple[Any, ...]:
    """GTSA's."""
    heads = {"projector_hidden_size": 192, "projection_size": 512, "predictor_hidden_size": 512}
    config = GTSAConfig(
        **sizes, **heads, rotation_hidden_sizes=(512, 512, 128), roi_output_sizes=(5, 2), num_matches=(32, 8)
    )
    return GTSAForPreTraining(config), GTSATrainer, GTSATrainingArguments, GTSAViews(**CROPS)


def run_of(name: str, make: Any, steps: int = 64) -> Measurement:
    """A run from memory; images a second over the second half of its log lines."""

    def rows(setup: Setup) -> Iterator[Row]:
        small = {"hidden_size": 48, "num_hidden_layers": 2} if setup.tiny else {}
        model, trainer, arguments, views = make(TRUNK | small)
        output = setup.folder / f"scenes_{name}"
        shutil.rmtree(output, ignore_errors=True)
        batch_size, steps_made = (8, 4) if setup.tiny else (512, steps)
        made = trainer(
            model=model,
            args=arguments(
                output_dir=str(output),
                max_steps=steps_made,
                per_device_train_batch_size=batch_size,
                dataloader_num_workers=setup.workers,
                num_streams=max(setup.workers, 1),
                logging_steps=max(steps_made // 8, 1),
                save_strategy="no",
                bf16=setup.cuda,
                use_cpu=not setup.cuda,
                picture=False,
                probe_every_steps=0,
                disable_tqdm=True,
                report_to="none",
            ),
            train_dataset=Images(64 if setup.tiny else 20_000),
            views=views,
        )
        made.train()
        lines = [line for line in made.state.log_history if "images_per_second" in line]
        second = lines[len(lines) // 2 :]
        fields = ("images_per_second", "data_wait", "matrix_rate_share", "memory_mb")
        means = {field: statistics.median(line[field] for line in second) for field in fields if field in second[0]}
        yield {"batch": batch_size, **{field: round(value, 3) for field, value in means.items()}}

    return rows


MEASUREMENTS: dict[str, Measurement] = {"dino": run_of("dino", dino), "gtsa": run_of("gtsa", gtsa)}
