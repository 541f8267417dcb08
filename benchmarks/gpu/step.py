"""A training step alone: eager and compiled by block, its kernels, its share of the matrix rate, augmentation, batch sizes."""

import argparse
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch.profiler import ProfilerActivity, profile

from benchmarks import step as steps
from benchmarks.gpu.rows import Measurement, Row, Setup
from hf_geossl import EquiCoherentConfig, EquiCoherentViews
from hf_geossl.training.resources import count_operations, square_product_rate

TINY = [
    *("--hidden_size", "48", "--num_hidden_layers", "2", "--num_attention_heads", "3"),
    *("--global_size", "64", "--local_size", "32", "--num_local", "2", "--batch_size", "4"),
]
BATCH_SIZES = (16, 32, 64, 128, 256, 512)

# the host of EquiCoherent's step, alone
IBOT = replace(
    steps.METHODS["equicoherent"],
    config=partial(EquiCoherentConfig, transformation=None, reconstruction_weight=0.0),
    views=lambda args: EquiCoherentViews(
        transformation=None, global_size=args.global_size, local_size=args.local_size, num_local=args.num_local
    ),
)


def step_arguments(setup: Setup, method: str, batch_size: int) -> argparse.Namespace:
    """The command line of `benchmarks.step` for a method."""
    if method == "ibot":
        steps.METHODS["ibot"], steps.NUM_LOCAL["ibot"] = IBOT, steps.NUM_LOCAL["equicoherent"]
    sizes = TINY if setup.tiny else ["--batch_size", str(batch_size)]
    args = steps.parser().parse_args(["--device", setup.device, *sizes])
    args.method = method
    if args.num_local is None:
        args.num_local = steps.NUM_LOCAL[method]
    return args


def compiled(setup: Setup, model: Any) -> AbstractContextManager[None]:
    """A context in which a model's layers are compiled as in a run; without machine code where everything is tiny."""
    from hf_geossl.training.execution.compilation import BlockCompilation

    return BlockCompilation("aot_eager" if setup.tiny else "inductor").compiled(model)


def seconds_of(setup: Setup, function: Callable[[], object], repeats: int = 10, warm: int = 3) -> float:
    """Mean seconds of a call; the device is waited for after all of them, as between two lines of a log."""
    repeats, warm = (2, 1) if setup.tiny else (repeats, warm)
    for _ in range(warm):
        function()
    setup.synchronize()
    began = time.perf_counter()
    for _ in range(repeats):
        function()
    setup.synchronize()
    return (time.perf_counter() - began) / repeats


def matrix_rate(setup: Setup) -> float:
    """Operations a second of square bfloat16 products."""
    if setup.cuda:
        return square_product_rate(torch.device(setup.device), 8192)
    side = 512
    product = steps.make_product("cpu", torch.bfloat16, side)
    return 2 * side**3 / seconds_of(setup, product)


def kernels_of(setup: Setup, function: Callable[[], object], calls: int = 3) -> Row:
    """Milliseconds that kernels (on a CPU operations) of a call are busy, how many they are, and the heaviest."""
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if setup.cuda else [])]
    with profile(activities=activities) as profiler:
        for _ in range(calls):
            function()
        setup.synchronize()
    milliseconds: Counter[str] = Counter()
    number: Counter[str] = Counter()
    if setup.cuda:
        for event in profiler.events():
            if event.device_type == torch.autograd.DeviceType.CUDA and not getattr(event, "is_user_annotation", False):
                milliseconds[event.name[:70]] += event.time_range.elapsed_us() / 1000 / calls
                number[event.name[:70]] += 1
    else:
        for event in profiler.key_averages():
            milliseconds[event.key] += event.self_cpu_time_total / 1000 / calls
            number[event.key] += event.count
    return {
        "busy_ms": round(sum(milliseconds.values()), 1),
        "kernels": sum(number.values()) // calls,
        "heaviest": {name: round(value, 2) for name, value in milliseconds.most_common(10)},
    }


def crops_of(args: argparse.Namespace, views: Any) -> dict[str, Any]:
    """A batch as the loader gives it, on the device."""
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (480, 640, 3), dtype=torch.uint8, generator=generator)
    image = Image.fromarray(pixels.numpy())
    samples = [views(image, seed=seed) for seed in range(min(args.batch_size, 16))]
    raw = views.collate((samples * -(-args.batch_size // len(samples)))[: args.batch_size])
    return {name: value.to(args.device) for name, value in raw.items()}


def measure_step(method: str, batch_size: int) -> Measurement:
    """Of a method: the step eager, compiled, and its augmentation."""

    def rows(setup: Setup) -> Iterator[Row]:
        args = step_arguments(setup, method, batch_size)
        batch = steps.make_batch(args)
        step = steps.Step("bf16", args, batch)
        call = partial(step, waits=False)
        operations = count_operations(step.model, batch) * args.batch_size
        rate = matrix_rate(setup)
        yield {"batch": args.batch_size, "gflop_an_image": round(operations / args.batch_size / 1e9, 2)}
        yield {"square_bf16_tflops": round(rate / 1e12, 2)}
        for name, context in (("eager", nullcontext()), ("compiled", compiled(setup, step.model))):
            if setup.cuda:
                torch.cuda.reset_peak_memory_stats()
            began = time.time()
            with context:
                call()
                setup.synchronize()
                first = time.time() - began
                seconds = seconds_of(setup, call)
                found = kernels_of(setup, call)
            row = {
                "ms": round(1000 * seconds, 2),
                "first_step_s": round(first, 1),
                "images_per_second": round(args.batch_size / seconds, 1),
                "tflops": round(operations / seconds / 1e12, 2),
                "share_of_rate": round(operations / seconds / rate, 3),
                **found,
            }
            if setup.cuda:
                row["peak_gb"] = round(torch.cuda.max_memory_allocated() / 2**30, 1)
            yield {f"{name}_{field}": value for field, value in row.items()}
        views = steps.METHODS[method].views(args)
        crops, generator = crops_of(args, views), torch.Generator().manual_seed(0)
        augmented = seconds_of(setup, lambda: views.augment(crops, generator))
        share = augmented / (seconds + augmented)  # of a step as the trainer makes it, compiled
        yield {"augmentation_ms": round(1000 * augmented, 2), "augmentation_share": round(share, 3)}
        yield {
            f"augmentation_{name}": value
            for name, value in kernels_of(setup, lambda: views.augment(crops, generator)).items()
        }

    return rows


def synchronizations(setup: Setup) -> Iterator[Row]:
    """Whether the host waits for the device in a step, or in the augmentation of a batch."""
    if not setup.cuda:
        yield {"failed": "not measured: a CPU has nothing to wait for"}
        return
    for method in ("gtsa", "loca", "equicoherent"):
        args = step_arguments(setup, method, 16)
        step, views = steps.Step("bf16", args, steps.make_batch(args)), steps.METHODS[method].views(args)
        crops, generator = crops_of(args, views), torch.Generator().manual_seed(0)
        parts = {"step": partial(step, waits=False), "augmentation": partial(views.augment, crops, generator)}
        for part, call in parts.items():
            with compiled(setup, step.model):
                call()
                torch.cuda.set_sync_debug_mode("error")
                try:
                    call()
                    found = "none"
                except RuntimeError as error:
                    place = traceback.extract_tb(error.__traceback__)[-1]
                    found = f"{Path(place.filename).name}, line {place.lineno}: {place.line}"
                finally:
                    torch.cuda.set_sync_debug_mode("default")
            yield {f"{method}, {part}": found}


def scaling(setup: Setup) -> Iterator[Row]:
    """GTSA's compiled step by batch size, up to what fits."""
    for size in (2, 4) if setup.tiny else BATCH_SIZES:
        args = step_arguments(setup, "gtsa", size)
        args.batch_size = size
        if setup.cuda:
            torch.cuda.reset_peak_memory_stats()
        try:
            step = steps.Step("bf16", args, steps.make_batch(args))
            with compiled(setup, step.model):
                seconds = seconds_of(setup, partial(step, waits=False), repeats=5, warm=2)
        except torch.OutOfMemoryError:
            yield {"batch": size, "failed": "does not fit the memory"}
            return
        peak = {"peak_gb": round(torch.cuda.max_memory_allocated() / 2**30, 1)} if setup.cuda else {}
        yield {"batch": size, "images_per_second": round(size / seconds, 1), **peak}
        del step


MEASUREMENTS: dict[str, Measurement] = {
    "gtsa": measure_step("gtsa", 128),
    "loca": measure_step("loca", 128),
    "ibot": measure_step("ibot", 64),
    "equicoherent": measure_step("equicoherent", 64),
    "synchronizations": synchronizations,
    "scaling": scaling,
}
