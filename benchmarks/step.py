"""
A training step beside a plain one: `python -m benchmarks.step --method gtsa --json`.

A step is forward (student and teacher), losses, backward, clipping, AdamW, moving average of the teacher, as the trainer
does it. "baseline" is a plain eager float32 program with the same weights and views (`baseline_*.py`); "ours" is the
library's step in float32, "bf16" the same under autocast. Times are interleaved in one process, medians of `--repeats`
rounds; a ratio is the median over rounds of baseline / ours, above 1 where ours is faster. Peak memory is measured in a
process of its own for each variant: on a CPU what the process holds beyond the libraries, with an allocator that gives
back what is freed (glibc's keeps a tenth to a fourth more, by chance); on a GPU what PyTorch has allocated.
"""

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.baseline_equicoherent import PlainEquiCoherent
from benchmarks.baseline_gtsa import PlainGTSA
from benchmarks.baseline_loca import PlainLOCA
from benchmarks.baseline_vit import clip_all, clip_each
from benchmarks.interleave import interleave, machine, median_ratio, show
from hf_geossl import (
    EquiCoherentConfig,
    EquiCoherentForPreTraining,
    EquiCoherentTrainingArguments,
    EquiCoherentViews,
    GTSAConfig,
    GTSAForPreTraining,
    GTSATrainingArguments,
    GTSAViews,
    LOCAConfig,
    LOCAForPreTraining,
    LOCATrainingArguments,
    LOCAViews,
)
from hf_geossl.training.execution.compilation import BlockCompilation
from hf_geossl.training.optimization import clip_each_tensor

VARIANTS = ("baseline", "ours", "bf16")
PARTS = (
    "student trunk, global views",
    "student trunk, local views",
    "teacher trunk",
    "heads",
    "losses and the rest of forward",
    "backward",
    "clipping",
    "optimizer",
    "moving average",
)
MOMENTUM = 0.996
DISTINCT_IMAGES = 16  # larger batches repeat them


@dataclass(frozen=True)
class Method:
    """A method's classes, and how its views are asked for."""

    config: Any
    model: Any
    views: Callable[[argparse.Namespace], Any]
    plain: Any
    arguments: Any


METHODS = {
    "gtsa": Method(
        GTSAConfig,
        GTSAForPreTraining,
        lambda args: GTSAViews(args.global_size, args.local_size, num_local=args.num_local),
        PlainGTSA,
        GTSATrainingArguments,
    ),
    "loca": Method(
        LOCAConfig,
        LOCAForPreTraining,
        lambda args: LOCAViews(args.global_size, args.local_size, args.num_local),
        PlainLOCA,
        LOCATrainingArguments,
    ),
    "equicoherent": Method(
        EquiCoherentConfig,
        EquiCoherentForPreTraining,
        lambda args: EquiCoherentViews(
            global_size=args.global_size, local_size=args.local_size, num_local=args.num_local
        ),
        PlainEquiCoherent,
        EquiCoherentTrainingArguments,
    ),
}
NUM_LOCAL = {"gtsa": 8, "loca": 9, "equicoherent": 10}


def make_batch(args: argparse.Namespace, batch_size: int | None = None) -> dict[str, Any]:
    """Views of images of noise, as the method draws them, on the device."""
    batch_size = batch_size or args.batch_size
    generator = torch.Generator().manual_seed(0)
    views = METHODS[args.method].views(args)
    samples = []
    for seed in range(min(batch_size, DISTINCT_IMAGES)):
        pixels = torch.randint(0, 256, (480, 640, 3), dtype=torch.uint8, generator=generator)
        samples.append(views(Image.fromarray(pixels.numpy()), seed=seed))
    batch = views.augment(views.collate(samples), generator)
    copies = -(-batch_size // len(samples))
    counted = batch.pop("masked_patches", None) is not None  # those of the images that are repeated
    repeated = {
        name: None if value is None else torch.cat([value] * copies)[:batch_size].to(args.device)
        for name, value in batch.items()
    }
    if counted:
        repeated["masked_patches"] = repeated["bool_masked_pos"].flatten().nonzero().flatten()
    return repeated


def make_model(args: argparse.Namespace) -> Any:
    """The library's pretraining model, with weights of seed 0."""
    torch.manual_seed(0)
    sizes = {
        "hidden_size": args.hidden_size,
        "num_hidden_layers": args.num_hidden_layers,
        "num_attention_heads": args.num_attention_heads,
        "image_size": args.global_size,
    }
    config = METHODS[args.method].config(**sizes, drop_path_rate=args.drop_path_rate)
    return METHODS[args.method].model(config).to(args.device).train()


def make_plain(args: argparse.Namespace, model: Any) -> Any:
    """The plain program with the model's own weights, no copies."""
    with torch.device("meta"):
        plain = METHODS[args.method].plain(model.config)
    plain.load_state_dict(model.state_dict(), assign=True)
    plain.teacher.requires_grad_(False)
    return plain.train()


class Clock:
    """Seconds of the parts of a step, by name; parts that are inside of others are taken out of those."""

    def __init__(self, device: str) -> None:
        self.device = device
        self.seconds: dict[str, float] = {}
        self._open: list[list[Any]] = []

    def _now(self) -> float:
        wait(self.device)
        return time.perf_counter()

    def start(self, name: str) -> None:
        """Begins a part."""
        self._open.append([name, self._now(), 0.0])

    def stop(self) -> None:
        """Ends the part that began last."""
        name, start, inside = self._open.pop()
        spent = self._now() - start
        self.seconds[name] = self.seconds.get(name, 0.0) + spent - inside
        if self._open:
            self._open[-1][2] += spent

    @contextlib.contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Times a block."""
        self.start(name)
        yield
        self.stop()


def wait(device: str) -> None:
    """Waits for what a device has been given to do."""
    if device.startswith("cuda"):
        torch.cuda.synchronize()


class Step:
    """
    One training step of a variant, called again and again.

    Args:
        variant (`str`): "baseline", "ours" or "bf16".
        args: The command line's.
        batch (`dict`): What the views returned.
    """

    def __init__(self, variant: str, args: argparse.Namespace, batch: dict[str, Any]) -> None:
        method = METHODS[args.method]
        self.variant, self.device = variant, args.device
        self.trunk, self.global_size = args.method, args.global_size
        self.model = make_model(args)
        self.inputs = batch
        fields = method.arguments.__dataclass_fields__
        self.max_norm, self.clip_mode = fields["max_grad_norm"].default, fields["clip_mode"].default
        if variant == "baseline":
            self.model = make_plain(args, self.model)
            self.inputs = method.plain.prepare(batch)
        named = [(name, parameter) for name, parameter in self.model.named_parameters() if parameter.requires_grad]
        decayed = [parameter for name, parameter in named if parameter.ndim > 1 and not name.endswith(".bias")]
        plain = [parameter for name, parameter in named if parameter.ndim <= 1 or name.endswith(".bias")]
        groups = [{"params": decayed, "weight_decay": 0.04}, {"params": plain, "weight_decay": 0.0}]
        self.trained = decayed + plain
        # the plain program has PyTorch's simplest optimizer, ours transformers' default ("adamw_torch_fused")
        options = {"foreach": False} if variant == "baseline" else {"fused": fields["optim"].default.endswith("fused")}
        self.optimizer = torch.optim.AdamW(groups, lr=1e-5, **options)
        self.forward: Any = self.model
        if args.compile and variant != "baseline":
            self.compiled = BlockCompilation().compiled(self.model)
            self.compiled.__enter__()  # for as long as the step lives

    def clip(self) -> None:
        """Clips as the method does."""
        if self.variant == "baseline":
            (clip_each if self.clip_mode == "tensor" else clip_all)(self.trained, self.max_norm)
        elif self.clip_mode == "tensor":
            clip_each_tensor(
                [parameter.grad for parameter in self.trained if parameter.grad is not None], self.max_norm
            )
        else:
            nn.utils.clip_grad_norm_(self.trained, self.max_norm)

    def watch(self, clock: Clock) -> None:
        """Times the calls of trunk and heads, of student and teacher, from here on."""

        def name_of(owner: str, child: str, inputs: tuple[Any, ...]) -> str:
            if child != self.trunk:
                return PARTS[3]
            if owner == "teacher":
                return PARTS[2]
            return PARTS[0] if inputs[0].shape[-1] == self.global_size else PARTS[1]

        for owner, module in (("student", self.model), ("teacher", self.model.teacher)):
            for child, part in module.named_children():
                if child != "teacher":
                    part.register_forward_pre_hook(lambda _, i, o=owner, c=child: clock.start(name_of(o, c, i)))
                    part.register_forward_hook(lambda *_: clock.stop())

    def __call__(self, clock: Clock | None = None, waits: bool = True) -> None:
        part = clock.part if clock else lambda name: contextlib.nullcontext()
        with (
            part(PARTS[4]),
            torch.autocast(self.device.split(":")[0], dtype=torch.bfloat16, enabled=self.variant == "bf16"),
        ):
            loss = self.forward(**self.inputs)["loss"]
        with part(PARTS[5]):
            loss.backward()
        with part(PARTS[6]):
            self.clip()
        with part(PARTS[7]):
            self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=True)
        with part(PARTS[8]):
            self.model.on_optimizer_step(MOMENTUM)
        if waits:
            wait(self.device)


def resident(name: str) -> float:
    """
    This process's memory in MB: "VmRSS" now, "VmHWM" at most so far.

    `getrusage` would not do: what it gives has the memory of the process that started this one in it.
    """
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) / 1024 for line in file if line.startswith(name))


def measure_memory(variant: str, args: argparse.Namespace) -> dict[str, float]:
    """MB in this process: the libraries alone, with model, optimizer and batch, and the peak of three steps."""
    cuda = args.device.startswith("cuda")
    libraries = 0.0 if cuda else resident("VmRSS")
    step = Step(variant, args, make_batch(args))
    if cuda:
        torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated() / 2**20 if cuda else resident("VmRSS")
    for _ in range(3):
        step()
    peak = torch.cuda.max_memory_allocated() / 2**20 if cuda else resident("VmHWM")
    return {"libraries": libraries, "before": before, "peak": peak}


def memory_of(variant: str, arguments: list[str]) -> dict[str, float]:
    """`measure_memory` in a process of its own, whose allocator returns every large piece that is freed."""
    command = [sys.executable, "-m", "benchmarks.step", *arguments, "--memory_of", variant]
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": str(2**20)}
    done = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
    return json.loads(done.stdout.splitlines()[-1])


def make_product(device: str, dtype: torch.dtype, size: int) -> Callable[[], None]:
    """A product of two square matrices, whose rate a step's products are compared with."""
    first, second = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))

    def product() -> None:
        first @ second.T
        wait(device)

    return product


def count_operations(step: Step) -> int:
    """Floating-point operations of the matrix products of a step."""
    with FlopCounterMode(display=False) as counter:
        step()
    return counter.get_total_flops()


def measure(args: argparse.Namespace, arguments: list[str]) -> dict[str, Any]:
    """The result that the command prints."""
    batch = make_batch(args)
    steps = {variant: Step(variant, args, batch) for variant in VARIANTS}
    operations = count_operations(steps["baseline"])
    functions: dict[str, Callable[[], Any]] = dict(steps)
    functions["moving_average"] = lambda: (steps["ours"].model.on_optimizer_step(MOMENTUM), wait(args.device))
    size = 2048 if args.device == "cpu" else 8192
    functions["product_ours"] = make_product(args.device, torch.float32, size)
    functions["product_bf16"] = make_product(args.device, torch.bfloat16, size)
    if args.method == "loca":  # what the target of LOCA's step is stated in
        other = argparse.Namespace(**{**vars(args), "method": "gtsa", "num_local": 8})
        functions["plain_gtsa"] = Step("baseline", other, make_batch(other))
    # with one thread CPU seconds are those of the step alone, whatever else the machine does
    one_thread = args.device == "cpu" and torch.get_num_threads() == 1
    seconds = interleave(functions, args.repeats, time.process_time if one_thread else time.perf_counter)
    median = {name: statistics.median(values) for name, values in seconds.items()}
    rate = {name: 2 * size**3 / median[f"product_{'bf16' if name == 'bf16' else 'ours'}"] for name in VARIANTS}
    ratios = {
        name: round(median_ratio(seconds[above], seconds[below]), 3)
        for name, above, below in (
            ("ratio", "baseline", "ours"),
            ("bf16_ratio", "baseline", "bf16"),
            ("bf16_ratio_to_ours", "ours", "bf16"),
            ("moving_average_share", "moving_average", "ours"),
            ("moving_average_share_bf16", "moving_average", "bf16"),
            ("ours_to_plain_gtsa", "ours", "plain_gtsa"),
        )
        if above in seconds and below in seconds
    }
    result = {
        "what": f"step of {args.method}, seconds; {args.hidden_size} wide, {args.num_hidden_layers} deep, batch "
        f"{args.batch_size}, globals of {args.global_size}, {args.num_local} locals of {args.local_size}",
        **{name: round(median[name], 4) for name in (*VARIANTS, "moving_average")},
        **ratios,
        "images_per_second": {name: round(args.batch_size / median[name], 2) for name in VARIANTS},
        "operations": operations,
        "matrix_rate_gflops": {name: round(value / 1e9, 1) for name, value in rate.items()},
        "share_of_matrix_rate": {name: round(operations / median[name] / rate[name], 3) for name in VARIANTS},
        "machine": machine(args.device),
    }
    if args.scaling:
        result |= measure_scaling(args)
    if args.profile:
        result["profile"] = draw_profile(args, args.profile)
    if args.memory:
        memory = {variant: memory_of(variant, arguments) for variant in VARIANTS}
        for name in ("ours", "bf16"):
            beyond = [memory[variant]["peak"] - memory[variant]["libraries"] for variant in (name, "baseline")]
            result[f"peak_memory_ratio_{name}"] = round(beyond[0] / beyond[1], 3)
            result[f"whole_process_ratio_{name}"] = round(memory[name]["peak"] / memory["baseline"]["peak"], 3)
        result["memory_mb"] = {
            name: {kind: round(value) for kind, value in found.items()} for name, found in memory.items()
        }
    return result


def measure_scaling(args: argparse.Namespace) -> dict[str, Any]:
    """Seconds an image by batch size, and seconds a step by number of local views, of ours (bf16 on a GPU)."""
    cuda = args.device.startswith("cuda")
    variant, batch_sizes = ("bf16", (16, 32, 64, 128, 256, 512)) if cuda else ("ours", (2, 4, 8, 16))

    def seconds(step: Step) -> float:
        return statistics.median(interleave({"step": step}, args.repeats)["step"])

    def with_views(count: int) -> float:
        fewer = argparse.Namespace(**{**vars(args), "num_local": count})
        return seconds(Step(variant, fewer, make_batch(fewer)))

    an_image = {size: seconds(Step(variant, args, make_batch(args, size))) / size for size in batch_sizes}
    counts = [args.num_local * part // 4 for part in range(1, 5)]
    by_views = {count: with_views(count) for count in counts}
    slope = (by_views[counts[-1]] - by_views[counts[0]]) / (counts[-1] - counts[0])
    off = [abs(by_views[n] / (by_views[counts[0]] + slope * (n - counts[0])) - 1) for n in counts]
    return {
        "scaling_variant": variant,
        "seconds_an_image_by_batch_size": {size: round(value, 5) for size, value in an_image.items()},
        "largest_over_smallest_batch": round(an_image[batch_sizes[-1]] / an_image[batch_sizes[0]], 3),
        "seconds_a_step_by_local_views": {count: round(value, 5) for count, value in by_views.items()},
        "furthest_from_a_straight_line": round(max(off), 3),
    }


def draw_profile(args: argparse.Namespace, path: str) -> dict[str, dict[str, float]]:
    """Draws where the time of a step goes, a bar a variant; returns medians of the parts in seconds."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    batch = make_batch(args)
    clock = Clock(args.device)
    steps = {variant: Step(variant, args, batch) for variant in VARIANTS}
    rounds: dict[str, list[dict[str, float]]] = {variant: [] for variant in VARIANTS}
    for step in steps.values():
        step()
        step.watch(clock)
    for _ in range(args.repeats):  # in turn, so that what else the machine does falls on all
        for variant, step in steps.items():
            clock.seconds = {}
            step(clock)
            rounds[variant].append(clock.seconds)
    found = {
        variant: {part: statistics.median(seconds.get(part, 0.0) for seconds in of_variant) for part in PARTS}
        for variant, of_variant in rounds.items()
    }
    names = {"baseline": "plain, float32", "ours": "ours, float32", "bf16": "ours, bfloat16"}
    figure, axes = pyplot.subplots(figsize=(10, 3.6), layout="constrained")
    colours = pyplot.get_cmap("tab20").colors
    order = (0, 2, 4, 6, 8, 1, 3, 5, 7)
    left = [0.0] * len(VARIANTS)
    for part, colour in zip(PARTS, order, strict=True):
        widths = [found[variant][part] for variant in VARIANTS]
        axes.barh([names[variant] for variant in VARIANTS], widths, left=left, color=colours[colour], label=part)
        left = [start + width for start, width in zip(left, widths, strict=True)]
    for row, total in enumerate(left):
        axes.text(total, row, f" {total:.2f} s" if total > 1 else f" {1000 * total:.0f} ms", va="center")
    axes.invert_yaxis()
    axes.set_xlim(0, 1.12 * max(left))
    axes.set_xlabel(f"seconds of a step: {args.method}, batch {args.batch_size}, {machine(args.device)}")
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside lower center", ncols=3, fontsize=8, frameon=False)
    figure.savefig(path, dpi=130)
    return {variant: {part: round(value, 4) for part, value in parts.items()} for variant, parts in found.items()}


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--method", choices=list(METHODS), default="gtsa")
    made.add_argument("--batch_size", type=int, default=4)
    made.add_argument("--repeats", type=int, default=5)
    made.add_argument("--device", default="cpu")
    made.add_argument("--json", action="store_true", help="Print one JSON line.")
    made.add_argument("--compile", action="store_true", help="Compile the layers of ours, as a run on a GPU does.")
    made.add_argument("--scaling", action="store_true", help="Time other batch sizes and numbers of local views too.")
    made.add_argument("--profile", metavar="PNG", help="Draw where the time of a step goes.")
    made.add_argument("--no_memory", dest="memory", action="store_false", help="Leave the peak memory out.")
    made.add_argument("--hidden_size", type=int, default=384)
    made.add_argument("--num_hidden_layers", type=int, default=12)
    made.add_argument("--num_attention_heads", type=int, default=6)
    made.add_argument("--global_size", type=int, default=224)
    made.add_argument("--local_size", type=int, default=96)
    made.add_argument("--num_local", type=int, help="Local views an image; the method's own by default.")
    made.add_argument("--drop_path_rate", type=float, default=0.1)
    made.add_argument("--memory_of", choices=VARIANTS, help=argparse.SUPPRESS)
    return made


def main(arguments: list[str] | None = None) -> None:
    """Runs the command."""
    arguments = sys.argv[1:] if arguments is None else arguments
    args = parser().parse_args(arguments)
    if args.num_local is None:
        args.num_local = NUM_LOCAL[args.method]
    if args.memory_of:
        print(json.dumps(measure_memory(args.memory_of, args)))
    else:
        show(measure(args, arguments), args.json)


if __name__ == "__main__":
    main()
