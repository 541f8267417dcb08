"""Whole runs of `geossl pretrain` from JPEG files, and lightly-train's DINO beside them where it is installed."""

import contextlib
import importlib.util
import io
import json
import re
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence

from benchmarks.gpu.files import make_jpegs
from benchmarks.gpu.rows import Measurement, Row, Setup
from hf_geossl.cli.main import main

FILES = 3000
TINY = [
    *("--hidden_size", "32", "--num_hidden_layers", "2", "--num_attention_heads", "2", "--image_size", "32"),
    *("--patch_size", "8", "--max_steps", "6", "--per_device_train_batch_size", "4", "--logging_steps", "1"),
    *("--shuffle_block", "8", "--num_streams", "1", "--fp16", "false", "--use_cpu", "true"),
]
TINY_EQUICOHERENT = ["--head_hidden_size", "32", "--num_prototypes", "64", "--global_size", "32", "--local_size", "16"]
TINY_OF = {
    "gtsa_small_coco": ["--global_size", "32", "--local_size", "16", "--roi_output_sizes", "3", "2", "--num_matches", "8", "2"],
    "loca_small_imnet1k": ["--reference_size", "32", "--focal_size", "16", "--num_kept_query_tokens", "6"],
    "dino_small_coco": TINY_EQUICOHERENT,
    "equicoherent_ibot_small": [*TINY_EQUICOHERENT, "--patch_features", "48", "--equivariant_features", "16"],
}  # fmt: skip


def steady(values: Sequence[float]) -> float | None:
    """The median over the second half of a run's log lines."""
    return statistics.median(values[len(values) // 2 :]) if values else None


def numbers_in(text: str, pattern: str) -> list[float]:
    """What the log lines say where a pattern has its group, in order; the line of the whole run left out."""
    lines = [line for line in text.splitlines() if re.match(r"step \d+: loss", line)]
    found = [re.search(pattern, line) for line in lines]
    return [float(each[1]) for each in found if each]


def run_of(recipe: str, batch_size: int, *extra: str, steps: int = 80) -> Measurement:
    """A run of a recipe as the command makes it, in bf16."""

    def rows(setup: Setup) -> Iterator[Row]:
        images = make_jpegs(setup.folder / "images", 24 if setup.tiny else FILES)
        output = setup.folder / f"run_{recipe}_{len(extra)}"
        shutil.rmtree(output, ignore_errors=True)
        command = ["pretrain", recipe, "--dataset", str(images), "--output_dir", str(output), "--save_strategy", "no"]
        command += ["--picture", "false", "--probe_every_steps", "0", "--disable_tqdm", "true", *extra]
        if setup.tiny:
            command += [*TINY, *TINY_OF[recipe], "--dataloader_num_workers", "0"]
        else:
            workers = str(setup.workers)
            command += ["--per_device_train_batch_size", str(batch_size), "--max_steps", str(steps)]
            command += [
                "--logging_steps",
                str(steps // 8),
                "--dataloader_num_workers",
                workers,
                "--num_streams",
                workers,
            ]
            command += ["--fp16", "false", "--bf16", "true", "--warmup_steps", "0.1", "--shuffle_block", "64"]
        printed, errors, began = io.StringIO(), io.StringIO(), time.time()
        with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(errors):
            code = main(command)
        if code:
            raise RuntimeError(f"exit code {code}: {errors.getvalue()[-250:]}")
        text = printed.getvalue()
        losses = numbers_in(text, r"loss (-?[\d.]+)")
        yield {
            "batch": batch_size,
            "images_per_second": steady(numbers_in(text, r"([\d.]+) images/s")),
            "percent_of_rate": steady(numbers_in(text, r"([\d.]+) % of the bf16 rate")),
            "percent_waiting": steady(numbers_in(text, r"([\d.]+) % waiting for images")) or 0.0,
            "peak_gb": steady(numbers_in(text, r"([\d.]+) GiB")),
            "first_and_last_loss": losses[:1] + losses[-1:],
            "whole_run_s": round(time.time() - began, 1),
        }

    return rows


LIGHTLY = """
import time, timm, torch
import lightly_train
import lightly_train._methods.method as methods
import pytorch_lightning as lightning
marks, before = [], lightning.LightningModule.on_train_batch_end

def on_train_batch_end(self, *args, **kwargs):
    torch.cuda.synchronize()
    marks.append(time.perf_counter())
    return before(self, *args, **kwargs)

methods.Method.on_train_batch_end = on_train_batch_end
model = timm.create_model("vit_small_patch16_224", pretrained=False, dynamic_img_size=True)
lightly_train.pretrain(
    out={out!r}, overwrite=True, data={data!r}, model=model, method="dino", batch_size={batch}, num_workers={workers},
    precision="bf16-mixed", epochs=1000, trainer_args=dict(max_steps={steps}),
    transform_args=dict(local_view={local!r}),
)
half = len(marks) // 2
print("RATE", (len(marks) - 1 - half) * {batch} / (marks[-1] - marks[half]))
"""


def lightly_train(batch_size: int, num_local: int, steps: int = 60) -> Measurement:
    """lightly-train's DINO on the same files, the second half of its run."""

    def rows(setup: Setup) -> Iterator[Row]:
        if importlib.util.find_spec("lightly_train") is None or not setup.cuda:
            yield {"failed": "not measured: lightly-train is not installed, or this is no GPU"}
            return
        data = str(make_jpegs(setup.folder / "images", FILES))
        out, local = str(setup.folder / f"lightly_{num_local}"), {"num_views": num_local} if num_local else None
        code = LIGHTLY.format(out=out, data=data, batch=batch_size, workers=setup.workers, steps=steps, local=local)
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, timeout=min(100, max(setup.left, 1))
        )
        rate = re.search(r"RATE ([\d.]+)", done.stdout)
        if rate is None:
            raise RuntimeError(json.dumps((done.stdout + done.stderr)[-250:]))
        yield {"batch": batch_size, "images_per_second": round(float(rate[1]), 1)}

    return rows


MEASUREMENTS: dict[str, Measurement] = {
    "dino, two views": run_of("dino_small_coco", 256, "--num_local", "0"),
    "lightly-train, two views": lightly_train(256, 0),
    "dino, ten views": run_of("dino_small_coco", 128),
    "lightly-train, ten views": lightly_train(128, 8),
    "gtsa": run_of("gtsa_small_coco", 128),
    "loca": run_of("loca_small_imnet1k", 128),
    "ibot + equicoherent": run_of("equicoherent_ibot_small", 64),
}
