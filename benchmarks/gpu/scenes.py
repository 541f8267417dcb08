"""Pretraining at the size of the scenes experiment's `gpu`: 64 pixels, ViT 192 x 12, patches of 8, batch 512, 2 + 4 views."""

import shutil
import statistics
from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from benchmarks.gpu.rows import Measurement, Row, Setup
from benchmarks.scenes_experiment.arms import ARMS
from benchmarks.scenes_experiment.presets import PRESETS


class Images:
    """Images of noise, a quarter larger than they are trained at: what they show costs nothing else."""

    def __init__(self, count: int) -> None:
        self.images = np.random.default_rng(0).integers(0, 256, (count, 80, 80, 3), dtype=np.uint8)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        return {"image": self.images[index]}


def run_of(name: str, steps: int = 64) -> Measurement:
    """A run of an arm from memory; images a second over the second half of its log lines."""

    def rows(setup: Setup) -> Iterator[Row]:
        preset = PRESETS["gpu"]
        if setup.tiny:
            preset = replace(preset, hidden_size=48, num_hidden_layers=2, batch_size=8)
        parts, steps_made = ARMS[name].make(preset), 4 if setup.tiny else steps
        output = setup.folder / f"scenes_{name}"
        shutil.rmtree(output, ignore_errors=True)
        made = parts.trainer(
            model=parts.model,
            args=parts.arguments(
                output_dir=str(output),
                max_steps=steps_made,
                per_device_train_batch_size=preset.batch_size,
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
            views=parts.views,
        )
        made.train()
        lines = [line for line in made.state.log_history if "images_per_second" in line]
        second = lines[len(lines) // 2 :]
        fields = ("images_per_second", "data_wait", "matrix_rate_share", "memory_mb")
        means = {field: statistics.median(line[field] for line in second) for field in fields if field in second[0]}
        yield {"batch": preset.batch_size, **{field: round(value, 3) for field, value in means.items()}}

    return rows


MEASUREMENTS: dict[str, Measurement] = {name: run_of(name) for name in ("dino", "gtsa")}
