"""Compares two checkouts of this library by tiny seeded trainings: `python tests/helpers/compare_runs.py OLD NEW`.

Each checkout trains in a process of its own that sees only that checkout, and uses public names and the command alone, so that
checkouts of different layouts can be compared. Of every step it records the batch that the model gets, the logged losses and the
gradient norm; of every run the trained weights and the loss of an evaluation. The table shows the largest differences. It ends
with status 1 where a difference is above the tolerance (0 by default: equal to the bit) or a run is missing on one side.
"""

import argparse
import contextlib
import inspect
import io
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

Record = dict[str, dict[str, float]]  # what was measured ("inputs", "losses", ...) -> "step name" -> number

STEPS = 8
SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 32, "patch_size": 8}
HEADS: dict[str, dict[str, Any]] = {
    "GTSA": {
        "projector_hidden_size": 16,
        "projection_size": 16,
        "predictor_hidden_size": 16,
        "rotation_hidden_sizes": (16, 8),
        "roi_output_sizes": (3, 2),
        "num_matches": (8, 2),
    },
    "LOCA": {"head_hidden_size": 32, "head_bottleneck_size": 16, "num_prototypes": 16, "num_kept_query_tokens": 6},
    "EquiCoherent": {
        "patch_features": 48,
        "head_hidden_size": 32,
        "head_bottleneck_size": 16,
        "num_prototypes": 32,
        "projector_sizes": (32, 32),
    },
}
VIEWS: dict[str, dict[str, Any]] = {
    "GTSA": {"global_size": 32, "local_size": 16, "num_local": 2},
    "LOCA": {"reference_size": 32, "focal_size": 16, "num_focal": 2, "patch_size": 8},
    "EquiCoherent": {"global_size": 32, "local_size": 16, "patch_size": 8},
}
NO_COLORS: dict[str, dict[str, Any]] = {
    "GTSA": {"color_jitter_probability": 0.0, "grayscale_probability": 0.0, "blur_probability": 0.0},
    "LOCA": {"color_jitter_probability": 0.0, "grayscale_probability": 0.0, "solarize_probability": 0.0, "blur": "off"},
}
NO_COLORS["EquiCoherent"] = {**NO_COLORS["GTSA"], "blur_probability": (0.0, 0.0, 0.0), "solarize_probability": 0.0}
METHOD_OF = {"gtsa": "GTSA", "loca": "LOCA", "equicoherent": "EquiCoherent"}
# what a recipe of the library is run with, so that it is done in a second; the rest of it stays
RECIPE_FLAGS = {
    **SMALL,
    "max_steps": STEPS,
    "save_steps": STEPS,
    "logging_steps": 1,
    "warmup_steps": 2,
    "per_device_train_batch_size": 4,
    "per_device_eval_batch_size": 4,
    "dataloader_num_workers": 0,
    "num_streams": 1,
    "use_cpu": "true",
    "fp16": "false",
    "bf16": "false",
    "picture": "false",
    "report_to": "none",
}


def runs() -> dict[str, tuple[str, dict[str, Any], dict[str, Any], dict[str, Any]]]:
    """Name of a run -> method, settings of the model, of the views, of the training."""
    table: dict[str, tuple[str, dict[str, Any], dict[str, Any], dict[str, Any]]] = {
        "gtsa": ("GTSA", {}, {}, {}),
        "loca": ("LOCA", {}, {}, {}),
        "loca, stochastic depth": ("LOCA", {"drop_path_rate": 0.3}, {}, {}),
        "gtsa, exact resize": ("GTSA", {}, {"exact_resize": True}, {}),
        "gtsa, loader in a process": ("GTSA", {}, {}, {"dataloader_num_workers": 1}),
        "dinov2, sinkhorn": ("EquiCoherent", {"host": "dinov2", "centering": "sinkhorn"}, {"num_local": 2}, {}),
    }
    for host in ("ibot", "dinov2", "dino", "vicreg", "simclr"):
        local = {} if host in ("vicreg", "simclr") else {"num_local": 2}
        table[f"equicoherent on {host}"] = ("EquiCoherent", {"host": host}, local, {})
    for transformation in ("rotation", "translation", "color", "blur"):
        settings = {"host": "ibot", "transformation": transformation}
        table[f"equicoherent, {transformation}"] = ("EquiCoherent", settings, {"num_local": 2}, {})
    for method in ("gtsa", "loca"):
        attached = {"reconstruction": "se2", "num_intermediate": 2}
        table[f"{method} with reconstruction"] = (METHOD_OF[method], attached, attached, {})
    for name in ("gtsa", "loca", "equicoherent on ibot"):
        method, model, views, _ = table[name]
        table[f"{name}, accumulated"] = (method, model, views, {"gradient_accumulation_steps": 2})
        table[f"{name}, bfloat16"] = (method, model, views, {"bf16": True})
        # products large enough for what libraries do with large ones
        large = {"global_size": 64} if method != "LOCA" else {"reference_size": 64}
        table[f"{name}, wide"] = (method, {**model, "hidden_size": 192, "image_size": 64}, {**views, **large}, {})
    return table


def make_images(folder: Path, count: int = 40) -> None:
    """Writes images of several sizes: soft blobs with some noise, as PNG and JPEG."""
    import numpy as np
    from PIL import Image

    folder.mkdir(parents=True)
    generator = np.random.default_rng(0)
    for index in range(count):
        width, height = (int(side) for side in generator.integers(48, 97, 2))
        blobs = Image.fromarray(generator.integers(0, 256, (6, 6, 3), dtype=np.uint8)).resize((width, height))
        noisy = np.asarray(blobs, dtype=np.int16) + generator.integers(-12, 13, (height, width, 3))
        image = Image.fromarray(noisy.clip(0, 255).astype(np.uint8))
        image.save(folder / f"{index:03d}.{'png' if index % 2 else 'jpg'}")


def _numbers(entry: dict[str, Any]) -> Iterator[tuple[str, float]]:
    """The numbers of a log line that a run decides, not the clock."""
    for name, value in entry.items():
        timed = re.search(r"second|time|wait|flos|epoch|step$|memory|mfu|peak", name)
        if isinstance(value, int | float) and not timed:
            yield name, float(value)


def _logged(history: list[dict[str, Any]]) -> Record:
    record: Record = {"losses": {}, "gradient norms": {}}
    for entry in history:
        for name, value in _numbers(entry):
            kind = "gradient norms" if name == "grad_norm" else "losses"
            record[kind][f"{entry.get('step', '-')} {name}"] = value
    return record


def _sums(tensors: Any) -> dict[str, float]:
    """Two sums of each tensor: plain, and weighted by place, which sees what has changed places."""
    import torch

    found = {}
    for name, tensor in tensors.items():
        flat = tensor.detach().double().flatten()
        places = torch.linspace(1, 2, len(flat), dtype=torch.float64)
        found[name], found[f"{name} by place"] = flat.mean().item(), (flat * places).mean().item()
    return found


def train(name: str, images: Path, output: Path, colors: str) -> Record:
    """One training through the Python API."""
    import torch
    from transformers import set_seed

    import hf_geossl

    method, model_settings, view_settings, training = runs()[name]
    set_seed(0)
    config = getattr(hf_geossl, f"{method}Config")(
        **{"drop_path_rate": 0.0, **SMALL, **HEADS[method], **model_settings}
    )
    model = getattr(hf_geossl, f"{method}ForPreTraining")(config)
    views_class = getattr(hf_geossl, f"{method}Views")
    shared = {"host", "transformation"} if method == "EquiCoherent" else set()
    views = {**VIEWS[method], **{key: model_settings[key] for key in shared & model_settings.keys()}, **view_settings}
    if method == "EquiCoherent":
        views["num_intermediate"] = config.num_intermediate
    if colors == "off":
        views |= NO_COLORS[method]
    if colors == "exact" and "exact_color" in inspect.signature(views_class).parameters:
        views["exact_color"] = True
    arguments = getattr(hf_geossl, f"{method}TrainingArguments")(
        **{
            "output_dir": str(output),
            "max_steps": STEPS,
            "per_device_train_batch_size": 4,
            "per_device_eval_batch_size": 4,
            "logging_steps": 1,
            "save_strategy": "no",
            "probe_every_steps": 4,
            "base_learning_rate": 5e-2,
            "adam_epsilon": 1e-6,  # gradients that are 0 but for rounding move nothing
            "use_cpu": True,
            "disable_tqdm": True,
            "picture": False,
            "report_to": "none",
            **training,
        }
    )
    trainer = getattr(hf_geossl, f"{method}Trainer")(
        model=model,
        args=arguments,
        train_dataset=hf_geossl.load_stream(str(images), shuffle_block=8),
        views=views_class(**views),
    )
    inputs: dict[str, float] = {}
    batches = 0

    def note(module: Any, positional: tuple[Any, ...], named: dict[str, Any]) -> None:
        nonlocal batches
        batches += 1
        tensors = {key: value for key, value in named.items() if isinstance(value, torch.Tensor)}
        inputs.update({f"{batches} {key}": value for key, value in _sums(tensors).items()})

    hook = model.register_forward_pre_hook(note, with_kwargs=True)
    trainer.train()
    hook.remove()
    record = {"inputs": inputs, **_logged(trainer.state.log_history)}
    held_out = [{"image": torch.full((40, 40, 3), 40 * i, dtype=torch.uint8)} for i in range(4)]
    record["evaluation"] = dict(_numbers(trainer.evaluate(held_out)))
    record["weights"] = _sums(model.state_dict())
    return record


def train_recipe(recipe: Path, images: Path, output: Path, colors: str) -> Record:
    """One of the library's recipes, by the command, on less of everything."""
    from safetensors.torch import load_file

    import hf_geossl

    text = recipe.read_text()
    method = METHOD_OF[re.search(r"^\s*method: *(\w+)", text, re.MULTILINE).group(1)]  # type: ignore[union-attr]
    flags = {**RECIPE_FLAGS, **HEADS[method], **VIEWS[method], "output_dir": output}
    if method == "EquiCoherent":
        flags["equivariant_features"] = 16
    if "vicreg" in recipe.name:
        del flags["num_prototypes"], flags["local_size"]
    if not re.search(r"^\s*dataset: scenes$", text, re.MULTILINE):
        flags |= {"dataset": images, "split": "train"}
    if re.search(r"^\s*eval_dataset:", text, re.MULTILINE):
        flags["eval_images"] = 8
    if colors == "off":
        flags |= NO_COLORS[method]
    if colors == "exact" and "exact_color" in inspect.signature(getattr(hf_geossl, f"{method}Views")).parameters:
        flags["exact_color"] = "true"
    argv = ["pretrain", recipe.stem]
    for key, value in flags.items():
        values = [str(part) for part in value] if isinstance(value, tuple) else [str(value)]
        argv += [f"--{key}", *values]
    entry = re.search(r"geossl=([\w.]+):(\w+)", (Path(hf_geossl.__file__).parents[1] / "setup.py").read_text())
    assert entry is not None
    main = getattr(import_module(entry.group(1)), entry.group(2))
    said = io.StringIO()
    with contextlib.redirect_stderr(said):
        status = main(argv)
    if status:
        raise RuntimeError(f"{said.getvalue()[-400:]} (geossl {' '.join(argv)})")
    state = json.loads((output / f"checkpoint-{STEPS}" / "trainer_state.json").read_text())
    config = json.loads((output / "config.json").read_text())
    settings = {key: value for key, value in config.items() if isinstance(value, int | float) and key[0] != "_"}
    return {
        **_logged(state["log_history"]),
        "exported weights": _sums(load_file(output / "model.safetensors")),
        "exported config": {key: float(value) for key, value in settings.items()},
    }


def child(images: Path, report: Path, colors: str, only: str) -> None:
    """All runs of the checkout on the import path; a run that fails is recorded as its error."""
    import torch

    import hf_geossl

    assert Path(hf_geossl.__file__).is_relative_to(Path.cwd()), f"{hf_geossl.__file__} is not of {Path.cwd()}"
    torch.set_num_threads(1)
    records: dict[str, Any] = {}
    recipes = sorted((Path(hf_geossl.__file__).parent / "training" / "recipes").glob("*.yaml"))
    with tempfile.TemporaryDirectory() as scratch:
        jobs: dict[str, Any] = {name: (train, name) for name in runs()}
        jobs |= {f"recipe {recipe.stem}": (train_recipe, recipe) for recipe in recipes}
        for number, (name, (run, what)) in enumerate(jobs.items()):
            if only in name:
                try:
                    records[name] = run(what, images, Path(scratch) / str(number), colors)
                except Exception as error:  # the other runs can still be compared
                    records[name] = f"{type(error).__name__}: {error}"
    report.write_text(json.dumps(records))


def run_checkout(checkout: Path, images: Path, report: Path, colors: str, only: str) -> dict[str, Any]:
    """Runs `child` with a checkout first on the import path."""
    settings = {"PYTHONPATH": str(checkout), "PYTHONSAFEPATH": "1", "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, __file__, "--child", str(images), str(report), "--colors", colors, "--only", only]
    process = subprocess.run(
        command, env={**os.environ, **settings}, cwd=checkout, capture_output=True, text=True, check=False
    )
    if process.returncode:
        raise RuntimeError(f"{checkout}: {process.stderr[-3000:]}")
    return json.loads(report.read_text())


def difference(old: dict[str, float], new: dict[str, float]) -> tuple[float, float, str]:
    """Largest absolute and relative difference of numbers of the same names, and the first name that differs.

    A number that only one side has, or that is finite on one side only, differs by infinity.
    """
    largest, relative, first = 0.0, 0.0, ""
    for name in [*old, *(name for name in new if name not in old)]:
        if (
            name in old
            and name in new
            and (old[name] == new[name] or (old[name] != old[name] and new[name] != new[name]))
        ):
            continue
        away = abs(old[name] - new[name]) if name in old and name in new else float("inf")
        away = float("inf") if away != away else away
        largest = max(largest, away)
        relative = max(relative, away / max(abs(old.get(name, 1.0)), 1e-12) if away != float("inf") else away)
        first = first or (name if name in old and name in new else f"{name} (only {'OLD' if name in old else 'NEW'})")
    return largest, relative, first


def compare(
    old: dict[str, Any], new: dict[str, Any], tolerance: float, bfloat16_tolerance: float, decisive: tuple[str, ...]
) -> int:
    """Prints a row for each run and kind of number that differs; returns the number of runs above the tolerance."""
    above = 0
    for name in [*old, *(name for name in new if name not in old)]:
        sides = [records.get(name, "no such run") for records in (old, new)]
        errors = [side for side in sides if isinstance(side, str)]
        if errors:
            above += 1
            print(f"{name:32} FAILED  OLD {str(sides[0])[:300] if isinstance(sides[0], str) else 'ran'}")
            print(f"{'':40}NEW {str(sides[1])[:300] if isinstance(sides[1], str) else 'ran'}")
            continue
        rows, worst = [], 0.0
        for kind in sides[0] | sides[1]:
            away, relative, first = difference(sides[0].get(kind, {}), sides[1].get(kind, {}))
            if away:
                rows.append(f"    {kind:17} {away:9.2e} absolute {relative:9.2e} relative, first at: {first}")
            if kind in decisive:
                # small numbers are compared as they are, large ones by their size
                worst = max(worst, min(away, relative))
        count = sum(len(side) for side in sides[0].values())
        bound = bfloat16_tolerance if "bfloat16" in name else tolerance
        verdict = "ABOVE" if worst > bound else "differs" if rows else "equal"
        above += worst > bound
        print(f"{name:32} {verdict:8} ({count} numbers)", *rows, sep="\n" if rows else " ")
    print(f"{above} of {len(old | new)} runs above the tolerance {tolerance:g} in {', '.join(decisive)}")
    return above


def main() -> int:
    """Runs both checkouts and compares them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkouts", nargs="*", type=Path, metavar="OLD NEW", help="Two checkouts, or their records.")
    parser.add_argument("--tolerance", type=float, default=0.0, help="Largest difference that passes (0: equal bits).")
    parser.add_argument(
        "--bfloat16_tolerance", type=float, help="The same for runs in bfloat16; --tolerance if not given."
    )
    parser.add_argument(
        "--colors",
        choices=("default", "off", "exact"),
        default="default",
        help="'off' leaves the photometrics out, 'exact' takes exact_color where the views have it.",
    )
    parser.add_argument("--only", default="", help="Runs whose name has this in it.")
    parser.add_argument("--weights", action="store_true", help="Let weights decide too, not only inputs and losses.")
    parser.add_argument("--save", type=Path, help="Folder for the records, which can be given instead of a checkout.")
    parser.add_argument("--child", nargs=2, type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        child(*options.child, options.colors, options.only)
        return 0
    if len(options.checkouts) != 2:
        parser.error("two checkouts are needed: OLD NEW")
    records = []
    with tempfile.TemporaryDirectory() as scratch:
        images = Path(scratch) / "images"
        make_images(images)
        for side, checkout in zip(("old", "new"), options.checkouts, strict=True):
            if checkout.is_file():
                records.append(json.loads(checkout.read_text()))
                continue
            report = Path(scratch) / f"{side}.json"
            records.append(run_checkout(checkout.resolve(), images, report, options.colors, options.only))
            if options.save:
                options.save.mkdir(parents=True, exist_ok=True)
                (options.save / f"{side}.json").write_text(report.read_text())
    decisive = ("inputs", "losses", "gradient norms", "evaluation", "exported config")
    decisive += ("weights", "exported weights") if options.weights else ()
    half = options.tolerance if options.bfloat16_tolerance is None else options.bfloat16_tolerance
    return int(compare(*records, options.tolerance, half, decisive) > 0)


if __name__ == "__main__":
    sys.exit(main())
