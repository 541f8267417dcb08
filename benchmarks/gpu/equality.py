"""The same numbers on CPU and GPU: losses, gradients and teacher, colours, compiled layers, the authors' golden numbers."""

import json
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from benchmarks import step as steps
from benchmarks.gpu.rows import Measurement, Row, Setup
from benchmarks.gpu.step import compiled, crops_of, step_arguments
from hf_geossl.views import photometric

SMALL = {"hidden_size": 96, "num_hidden_layers": 3, "num_attention_heads": 3, "drop_path_rate": 0.0}


def exact_products() -> None:
    """Float32 products in float32."""
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False


def losses_and_gradients(
    model: Any, batch: dict[str, Any], dtype: torch.dtype | None, context: AbstractContextManager[None]
) -> tuple[float, torch.Tensor]:
    """The loss and all gradients in a row, on the CPU, of tokens that are always drawn alike."""
    device = next(model.parameters()).device
    moved = {name: None if value is None else value.to(device) for name, value in batch.items()}
    torch.manual_seed(3)
    model.zero_grad()
    with context, torch.autocast(device.type, dtype or torch.bfloat16, enabled=dtype is not None):
        loss = model(**moved)["loss"]
        loss.backward()
    gradients = [value.grad.flatten().float().cpu() for value in model.parameters() if value.grad is not None]
    model.reset_accumulated()
    return loss.item(), torch.cat(gradients)


def compare_devices(method: str) -> Measurement:
    """Of a method's small model: CPU float32 against the GPU in float32 and bf16, and there eager against compiled."""

    def rows(setup: Setup) -> Iterator[Row]:
        exact_products()
        args = step_arguments(setup, method, 8)
        vars(args).update(SMALL if not setup.tiny else {"drop_path_rate": 0.0})
        args.batch_size, args.device = min(args.batch_size, 8), "cpu"
        batch, model = steps.make_batch(args), steps.make_model(args)
        loss, gradient = losses_and_gradients(model, batch, None, nullcontext())
        model.on_optimizer_step(0.9)
        teacher = torch.cat([value.flatten() for value in model.teacher.parameters()])
        args.device = setup.device
        there = steps.make_model(args)
        found: dict[str, tuple[float, torch.Tensor]] = {}
        for name, dtype in (("float32", None), ("bf16", torch.bfloat16)):
            found[name] = losses_and_gradients(there, batch, dtype, nullcontext())
            found[f"{name} compiled"] = losses_and_gradients(there, batch, dtype, compiled(setup, there))
        there.on_optimizer_step(0.9)
        moved = torch.cat([value.flatten().cpu() for value in there.teacher.parameters()])
        expected = {"float32": (loss, gradient), "bf16": (loss, gradient)}
        expected |= {f"{name} compiled": found[name] for name in ("float32", "bf16")}
        for name, (own, own_gradient) in found.items():
            other, other_gradient = expected[name]
            difference = ((own_gradient - other_gradient).norm() / other_gradient.norm()).item()
            yield {name: f"loss {own:.6f} ({abs(own - other):.1e}), gradient off by {difference:.1e}"}
        yield {"teacher": f"off by {(moved - teacher).abs().max().item():.1e}"}

    return rows


def colors(setup: Setup) -> Iterator[Row]:
    """The views of a batch, coloured on the CPU and on the device: the largest and the mean difference, normalised."""
    for method in ("gtsa", "loca", "equicoherent"):
        args = step_arguments(setup, method, 16)
        views = steps.METHODS[method].views(args)
        crops = crops_of(args, views)
        there = views.augment(crops, torch.Generator().manual_seed(0))
        here = views.augment({name: value.cpu() for name, value in crops.items()}, torch.Generator().manual_seed(0))
        pairs = [
            (there[name], value) for name, value in here.items() if value is not None and value.is_floating_point()
        ]
        off = torch.cat([(own.cpu() - value).abs().flatten() for own, value in pairs])
        yield {method: f"at most {off.max().item():.1e}, mean {off.mean().item():.1e}"}
    yield {"compiled": setup.cuda and not photometric.jitter_kernel.is_plain}


def loca_golden(setup: Setup) -> Iterator[Row]:
    """LOCA's losses and gradients against those of the authors' program."""
    from tests.helpers.loca_golden import golden_batch, golden_model, load_golden, to_flax

    exact_products()
    golden = load_golden()
    tensors, numbers = golden
    model = golden_model(golden).to(setup.device)
    inputs = {name: value.to(setup.device) for name, value in golden_batch(golden).items()}
    tokens = {"kept_query_tokens": "idx/query0_kept", "visible_reference_tokens": "idx/reference_kept"}
    outputs = model(**inputs, **{name: tensors[key] for name, key in tokens.items()})
    outputs.loss.backward()
    pairs = {
        "location_loss": "loss_loc",
        "cluster_loss": "loss_ce",
        "mean_entropy_loss": "loss_memax",
        "loss": "loss_total",
    }
    off = {ours: abs(outputs[ours].item() - numbers["losses"][theirs]) for ours, theirs in pairs.items()}
    gradients = {name: value.grad.cpu() for name, value in model.named_parameters() if value.requires_grad}
    norms = {name: value.norm().item() for name, value in to_flax(gradients).items() if not name.endswith("key/bias")}
    relative = [
        abs(norm / numbers["grad_norms"][name] - 1)
        for name, norm in norms.items()
        if numbers["grad_norms"][name] > 1e-7
    ]
    yield {
        "losses_off_by": max(off.values()),
        "gradient_norms_off_by": max(relative),
        "holds": max(off.values()) < 3e-6,
    }


def gtsa_golden(setup: Setup) -> Iterator[Row]:
    """GTSA's losses and the norm of its gradient against those of the authors' program, where its 7 MB are at hand."""
    from hf_geossl import GTSAConfig
    from hf_geossl.conversion import convert_gtsa_checkpoint
    from tests.helpers.golden import ROOT, SHARED

    folder = next((each / "gtsa" for each in (SHARED, ROOT / "shared" / "golden") if (each / "gtsa").is_dir()), SHARED)
    if not (folder / "golden.safetensors").is_file():
        yield {"failed": "not measured: the full golden set is not beside the checkout"}
        return
    exact_products()
    tensors, numbers = load_file(folder / "golden.safetensors"), json.loads((folder / "golden.json").read_text())
    state = {key.removeprefix("state."): value.clone() for key, value in tensors.items() if key.startswith("state.")}
    with tempfile.TemporaryDirectory() as place:
        torch.save({"model": state}, Path(place) / "checkpoint.pth")
        model = convert_gtsa_checkpoint(Path(place) / "checkpoint.pth", GTSAConfig(num_attention_heads=3))
    model = model.to(setup.device)
    model.update_teacher(0.996)
    views = [tensors[f"view.{index}"].float().to(setup.device) for index in range(6)]
    outputs = model(
        global_pixel_values=torch.stack(views[:2], dim=1),
        local_pixel_values=torch.stack(views[2:], dim=1),
        crop_boxes=tensors["abs_crop_boxes"].to(setup.device),
        quarter_turns=(tensors["angles"].T / 90).long().to(setup.device),
    )
    outputs.loss.backward()
    pairs = {"crop_loss": "crop", "correspondence_loss": "pc", "rotation_loss": "rot", "loss": "total"}
    off = max(abs(outputs[ours].item() - numbers["losses"][theirs]) for ours, theirs in pairs.items())
    squares = [value.grad.double().square().sum() for value in model.parameters() if value.grad is not None]
    norm = torch.stack(squares).sum().sqrt().item()
    relative = abs(norm / numbers["grad_global_norm_before_clip"] - 1)
    yield {"losses_off_by": off, "gradient_norm_off_by": relative, "holds": off < 2e-6 and relative < 1e-3}


MEASUREMENTS: dict[str, Callable[[Setup], Iterator[Row]]] = {
    "gtsa": compare_devices("gtsa"),
    "loca": compare_devices("loca"),
    "equicoherent": compare_devices("equicoherent"),
    "colours": colors,
    "golden loca": loca_golden,
    "golden gtsa": gtsa_golden,
}
