"""
What test_distributed.py runs in processes of its own, `distributed_run.py FOLDER LAYOUT`: small trainings on given images,
masks and dropped tokens, undisturbed and from the checkpoints of the other layouts, which run at the same time.
"""

import gc
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor
from transformers import set_seed

import hf_geossl.modeling.pretraining_equicoherent as pretraining_equicoherent
from hf_geossl.modeling.modeling_vit import ViTDropPath
from hf_geossl.modeling.objectives import koleo_loss
from hf_geossl.training.sharding import read_unsharded
from tests.helpers import equicoherent_run, gtsa_run, loca_run
from tests.helpers.fsdp_on_cpu import allow_fsdp_on_cpu
from tests.helpers.methods import equicoherent_batch, gtsa_batch, loca_batch

IMAGES, STEPS, SAVED = 6, 5, 2  # images of a step; steps of a run; step of the checkpoint that others go on from
SHARED = ("kept_query_tokens", "visible_reference_tokens")
RUNS: dict[str, ModuleType] = {"gtsa": gtsa_run, "loca": loca_run}
RUNS |= dict.fromkeys(("ibot", "dinov2", "vicreg"), equicoherent_run)
# whose checkpoints the other layouts go on from, one mechanism each: views of many sizes with shared draws of tokens;
# prototypes that have no optimizer state yet and a centre; statistics of batch norm. What is saved is compared for all.
RESUMED = ("loca", "ibot", "vicreg")
# adapters in the last layer, which start late, and an anchor
ADAPTED = {
    "lora_rank": 2,
    "train_layers": "last:1",
    "freeze_trunk_steps": 1,
    "trunk_warmup_steps": 2,
    "anchor_weight": 1.0,
}


def given(method: str) -> dict[str, torch.Tensor]:
    """Inputs of all steps."""
    if method == "gtsa":
        return gtsa_batch(batch_size=STEPS * IMAGES)
    if method != "loca":
        return equicoherent_batch(STEPS * IMAGES, num_local=0 if method == "vicreg" else 2)
    generator = torch.Generator().manual_seed(3)
    tokens = {
        name: torch.stack([torch.randperm(16, generator=generator)[:count] for _ in range(STEPS)])
        for name, count in zip(SHARED, (6, 9), strict=True)
    }
    return {**loca_batch(batch_size=STEPS * IMAGES), **tokens}


def make(method: str, output: Path, folder: Path, from_stream: bool = False, broken_at: int = -1, **fields: Any) -> Any:
    """
    The trainer of a method whose inputs are given, while the stream moves on beside them; or are the stream's own.

    `broken_at` is a step in which the last process gets images that are not finite.
    """
    run, batches = RUNS[method], given(method)
    settings: dict[str, Any] = {
        "max_steps": STEPS,
        "save_steps": SAVED,
        "logging_steps": 1,
        "probe_every_steps": 2,
        "probe_time_share": 1.0,
        # gradients that are 0 but for rounding move nothing: biases of keys; VICReg's before its batch norm
        "adam_epsilon": 1e-3 if method == "vicreg" else 1e-6,
        "teacher_momentum": 0.7,
        "teacher_momentum_end": 0.8,
        "max_grad_norm": 0.3,
        "picture": method == "loca",
        "num_streams": 2,
        **fields,
    }
    world, rank = int(os.environ.get("WORLD_SIZE", 1)), int(os.environ.get("RANK", 0))
    parts = world * settings.get("gradient_accumulation_steps", 1)
    settings["per_device_train_batch_size"] = IMAGES // parts
    if run is equicoherent_run:
        settings |= {"layer_decay": 0.8, "freeze_last_layer": SAVED}  # prototypes have no optimizer state when saved
        centering = {"centering": "sinkhorn"} if method == "dinov2" else {}
        settings["config"] = {"host": method, "num_intermediate": 2, "init_from": "a trunk", **centering}
    trainer = run.make_trainer(output, str(folder / "images"), **settings)
    for module in trainer.model.modules():
        if isinstance(module, ViTDropPath):
            module.rate = 0.0
    if from_stream:
        return trainer
    make_inputs = trainer.feed.make_inputs

    def make_given(inputs: dict[str, Any], step: int, to_device: Any) -> tuple[dict[str, Any], list[str]]:
        place = trainer.feed.micro_batch * world + rank
        _, keys = make_inputs(inputs, step, to_device)
        first, size = step * IMAGES + place * (IMAGES // parts), IMAGES // parts
        batch = {n: value[step] if n in SHARED else value[first : first + size] for n, value in batches.items()}
        if step == broken_at and rank == world - 1:
            batch["global_pixel_values"] = batch["global_pixel_values"] * torch.nan
        return batch, keys

    trainer.feed.make_inputs = make_given
    return trainer


def whole(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor.clone()


def same_on_all(tensors: dict[str, torch.Tensor]) -> bool:
    """Whether all processes hold the same bits."""
    if not torch.distributed.is_initialized():
        return True
    different = torch.zeros(())
    for tensor in tensors.values():
        first = tensor.clone()
        torch.distributed.broadcast(first, 0)
        different += not torch.equal(first, tensor)
    torch.distributed.all_reduce(different)
    return different.item() == 0


def train(name: str, method: str, folder: Path, resume: Path | None = None, **fields: Any) -> None:
    """One training; what came of it goes to `NAME.pt`."""
    output = folder / "runs" / name
    trainer = make(method, output, folder, **fields)
    gradients: dict[str, torch.Tensor] = {}
    clip: Callable[..., Any] = trainer._clip_grad_norm

    def note_and_clip(model: Any) -> Any:
        if not gradients:
            named = trainer.accelerator.unwrap_model(trainer.model).named_parameters()
            gradients.update({key: whole(value.grad) for key, value in named if value.grad is not None})
        return clip(model)

    trainer._clip_grad_norm = note_and_clip
    evaluated = []
    images = [{"image": torch.full((40, 40, 3), 50 * i, dtype=torch.uint8)} for i in range(IMAGES)]
    if resume is None and method == "gtsa":
        evaluated.append(trainer.evaluate(images)["eval_loss"])
    trainer.train(resume_from_checkpoint=None if resume is None else str(resume))
    if method == "gtsa":
        evaluated.append(trainer.evaluate(images)["eval_loss"])
    model = trainer.accelerator.unwrap_model(trainer.model)
    parts = [value.to_local() if isinstance(value, DTensor) else value for value in model.parameters()]
    kept = {key: value for key, value in model.state_dict().items() if "teacher." in key or "center" in key}
    same = same_on_all({key: whole(value) for key, value in kept.items()})
    weights = get_model_state_dict(model, options=StateDictOptions(full_state_dict=True, cpu_offload=True))
    trainer.save_model()
    if trainer.is_world_process_zero():
        result = {
            "logged": [entry for entry in trainer.state.log_history if "grad_norm" in entry],
            "gradients": gradients,
            "weights": {key: value.clone() for key, value in weights.items()},
            "groups": [
                {key: group[key] for key in ("lr", "weight_decay", "decayed")} | {"count": len(group["params"])}
                for group in trainer.optimizer.param_groups
            ],
            "same_on_all": same,
            "held": sum(part.numel() for part in parts) / sum(value.numel() for value in model.parameters()),
            "units": sorted({type(module).__name__ for module in model.modules() if isinstance(module, FSDPModule)}),
            "unused": getattr(trainer.model_wrapped, "find_unused_parameters", None),
            "dtypes": sorted({str(value.dtype) for value in model.parameters()}),
            "evaluated": evaluated,
        }
        torch.save(result, folder / f"{name}.pt")
    if resume is not None and "_bits" in name:  # what `load_best_model_at_end` does
        trainer._load_from_checkpoint(str(resume))
        loaded = get_model_state_dict(model, options=StateDictOptions(full_state_dict=True, cpu_offload=True))
        if trainer.is_world_process_zero():
            torch.save({key: value.clone() for key, value in loaded.items()}, folder / f"{name}_loaded.pt")
            read = read_unsharded(model, resume)  # what is pushed while a run goes on
            assert type(read).__name__ == type(model).__name__.removeprefix("FSDP")
            torch.save(read.state_dict(), folder / f"{name}_read.pt")
        if method == "loca":
            trainer.train(resume_from_checkpoint=str(resume))
            again = get_model_state_dict(model, options=StateDictOptions(full_state_dict=True, cpu_offload=True))
            if trainer.is_world_process_zero():
                torch.save({key: value.clone() for key, value in again.items()}, folder / f"{name}_again.pt")
    trainer.accelerator.free_memory()


def refusal(method: str, folder: Path, resume: Path, **fields: Any) -> str:
    """The message that a resume ends with."""
    trainer = make(method, folder / "runs" / "refused", folder, **fields)
    try:
        trainer.train(resume_from_checkpoint=str(resume))
    except (RuntimeError, ValueError) as error:
        return f"{type(error).__name__}: {error}"
    return "went on"


def halves(features: torch.Tensor) -> torch.Tensor:
    """KoLeo as two processes have it."""
    return sum(koleo_loss(half) for half in features.chunk(2)) / 2  # type: ignore[return-value]


def main(folder: Path, layout: str) -> None:
    gc.freeze()  # each of many trainings collects garbage: what has been imported is none
    torch.set_num_threads(1)
    allow_fsdp_on_cpu()
    set_seed(int(os.environ.get("RANK", 0)))
    first = int(os.environ.get("RANK", 0)) == 0
    micro = {"gradient_accumulation_steps": 2}

    def wait_for(other: str) -> None:
        (folder / f"done_{layout}").touch()
        end = time.monotonic() + 240
        while not (folder / f"done_{other}").exists():
            if time.monotonic() > end:
                raise TimeoutError(f"{other} did not end")
            time.sleep(0.1)

    def checkpoint(name: str) -> Path:
        return folder / "runs" / name / f"checkpoint-{SAVED}"

    for method in RUNS:
        if layout != "alone":
            train(f"{layout}_{method}", method, folder)
            continue
        pretraining_equicoherent.koleo_loss = halves if method == "dinov2" else koleo_loss
        train(f"one_{method}", method, folder)
        if method == "ibot":  # the same, where no statistic is taken of the micro-batches' images together
            train("micro_ibot", method, folder, **micro)
    adapted, accumulated = f"{'micro' if layout == 'alone' else layout}_adapted", micro if layout == "alone" else {}
    accumulated |= {"gradient_checkpointing": layout == "fsdp"}  # which changes nothing
    train(adapted, "ibot", folder, **ADAPTED, **accumulated)
    train(f"{adapted}_again", "ibot", folder, checkpoint(adapted), **ADAPTED, **accumulated)
    if layout == "alone":
        train("micro_stream", "gtsa", folder, from_stream=True, **micro)
    else:
        train(f"{layout}_stream", "gtsa", folder, from_stream=True)
        train(f"{layout}_three", "ibot", folder, gradient_accumulation_steps=3)
        train(f"{layout}_broken", "ibot", folder, broken_at=2)
        train(f"{layout}_compiled", "ibot", folder, torch_compile_backend="eager")
        if layout == "fsdp":
            recomputed = {"fsdp": True, "fsdp_config": {"activation_checkpointing": True}}
            train("fsdp_recomputed_ibot", "ibot", folder, **recomputed)
    messages = {}
    if layout == "alone":
        for other in ("ddp", "fsdp"):
            wait_for(other)
            train(f"micro_from_{other}_ibot", "ibot", folder, checkpoint(f"{other}_ibot"), **micro)
            messages[f"one from {other}"] = refusal("gtsa", folder, checkpoint(f"{other}_gtsa"))
    else:
        train(f"{layout}_half", "gtsa", folder, bf16=True)
        wait_for("alone")
        train(f"{layout}_from_micro_ibot", "ibot", folder, checkpoint("micro_ibot"))
        messages[f"{layout} from one"] = refusal("gtsa", folder, checkpoint("one_gtsa"))
        other = "fsdp" if layout == "ddp" else "ddp"
        wait_for(other)
        for method in RESUMED:
            train(f"{layout}_from_{other}_{method}", method, folder, checkpoint(f"{other}_{method}"))
            if layout == "fsdp":
                train(f"fsdp_bits_{method}", method, folder, checkpoint(f"fsdp_{method}"))
    if first:
        (folder / f"messages_{layout}.json").write_text(json.dumps(messages))
    if layout != "alone":
        torch.distributed.barrier()
        torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
    os._exit(0)  # gloo's threads may crash a Python that ends (pytorch issue 190489)
