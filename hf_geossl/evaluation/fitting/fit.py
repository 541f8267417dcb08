"""Training a head, alone or with the trunk under it: one loop for all protocols."""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import nn

from hf_geossl.evaluation.encoders import Encoder, mixed_precision
from hf_geossl.evaluation.options import EvaluationOptions
from hf_geossl.evaluation.settings import ProtocolSettings

Batch = TypeVar("Batch")


@contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Random draws inside from torch's global generators follow from the seed; afterwards these are as they were."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield


def layer_decay_groups(
    encoder: Encoder,
    head: nn.Module,
    learning_rate: float,
    weight_decay: float,
    layer_decay: float = 1.0,
    *,
    trunk_factor: float = 1.0,
) -> list[dict[str, Any]]:
    """Parameter groups of a trunk and its head: the deeper below the head, the smaller the learning rate.

    The layer decay is the factor a layer, in (0, 1], and the trunk factor a further one of the whole trunk. Biases, norms, tokens
    and positions have no weight decay.

    Source: BEiT (arXiv 2106.08254), as used by MAE and by the GTSA authors.
    """
    depth_of = {id(p): index + 1 for index, block in enumerate(encoder.blocks) for p in block.parameters()}
    blocks_seen = False
    groups: dict[tuple[int, bool], dict[str, Any]] = {}
    for part, module in (("trunk", encoder.module), ("head", head)):
        rate = learning_rate * (trunk_factor if part == "trunk" else 1.0)
        for name, parameter in module.named_parameters():
            if not parameter.requires_grad:
                continue
            depth = encoder.num_layers + 1
            if part == "trunk":
                blocks_seen = blocks_seen or id(parameter) in depth_of
                depth = depth_of.get(id(parameter), encoder.num_layers if blocks_seen else 0)
            decayed = parameter.ndim > 1 and not (part == "trunk" and ("token" in name or "pos" in name))
            group = groups.setdefault(
                (depth, decayed),
                {
                    "params": [],
                    "lr": rate * layer_decay ** (encoder.num_layers + 1 - depth),
                    "weight_decay": weight_decay if decayed else 0.0,
                },
            )
            group["params"].append(parameter)
    return list(groups.values())


def fit(
    optimizer: torch.optim.Optimizer,
    compute_loss: Callable[[Batch], torch.Tensor],
    batches: Iterator[Batch],
    options: EvaluationOptions,
    *,
    steps: int,
    description: str,
    warmup_steps: int = 0,
    schedule: str = "poly",
    max_norm: float | None = None,
) -> list[float]:
    """Trains with a warm-up and a schedule down to 0.

    Args:
        optimizer (`torch.optim.Optimizer`): Its learning rates are the peak ones.
        compute_loss (`Callable`): Maps a batch to the loss, under autocast on a GPU. Random draws come from torch's global
            generator: seed it.
        batches (`Iterator`): Gives as many batches as there are steps.
        warmup_steps (`int`): Steps in which the learning rate rises linearly.
        schedule (`"poly"`, `"cosine"` or `"constant"`): How it falls then; "poly" linearly.
        max_norm (`float`, *optional*): Largest gradient norm.

    Returns:
        `list[float]`: The loss of each step.

    Raises:
        FloatingPointError: If a loss is not finite.
    """
    peaks = [group["lr"] for group in optimizer.param_groups]
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    device = parameters[0].device
    losses: list[torch.Tensor] = []
    with options.progress_bar(description, steps, unit="step") as bar:
        for step in range(steps):
            factor = _factor(step, steps, warmup_steps, schedule)
            for group, peak in zip(optimizer.param_groups, peaks, strict=True):
                group["lr"] = peak * factor
            batch = next(batches)
            with mixed_precision(device):
                loss = compute_loss(batch)
            optimizer.zero_grad()
            loss.backward()
            if max_norm is not None:
                nn.utils.clip_grad_norm_(parameters, max_norm)
            optimizer.step()
            losses.append(loss.detach())
            bar.update()
            if step % 20 == 0:
                value = loss.item()
                if not math.isfinite(value):
                    raise FloatingPointError(
                        f"{description}: the loss is {value} at step {step}; lower the learning rate"
                    )
                bar.set_postfix(loss=f"{value:.3f}")
    return torch.stack(losses).tolist()


def _factor(step: int, steps: int, warmup_steps: int, schedule: str) -> float:
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    done = (step - warmup_steps) / max(steps - warmup_steps, 1)
    if schedule == "cosine":
        return 0.5 * (1 + math.cos(math.pi * done))
    return 1.0 - done if schedule == "poly" else 1.0


@dataclass(frozen=True)
class EndToEndTraining(ProtocolSettings):
    """How trunk and head are trained together, with AdamW, a linear warm-up and a linear decay to 0.

    Args:
        steps (`int`): Optimizer steps.
        warmup_steps (`int`): Steps in which the learning rate rises.
        learning_rate (`float`): Peak, of the head.
        weight_decay (`float`): Of weights; biases, norms, tokens and positions are not decayed.
        layer_decay (`float`): Factor of the learning rate a layer of the trunk, from the last down, in (0, 1].
        random_floor (`bool`): Whether the same architecture is trained from random weights too, which takes as long again.
    """

    steps: int = 300
    warmup_steps: int = 30
    learning_rate: float = 5e-4
    weight_decay: float = 0.1
    layer_decay: float = 1.0
    random_floor: bool = False


def fit_with_trunk(
    trunk: Encoder,
    head: nn.Module,
    compute_loss: Callable[[Batch], torch.Tensor],
    batches: Iterator[Batch],
    settings: EndToEndTraining,
    options: EvaluationOptions,
    *,
    description: str,
    trunk_factor: float = 1.0,
    max_norm: float | None = None,
) -> None:
    """Trains a head and the trunk under it as the settings say; see `layer_decay_groups` and `fit`."""
    rates = settings.learning_rate, settings.weight_decay, settings.layer_decay
    groups = layer_decay_groups(trunk, head, *rates, trunk_factor=trunk_factor)
    fit(
        torch.optim.AdamW(groups, fused=trunk.device.type == "cuda"),
        compute_loss,
        batches,
        options,
        steps=settings.steps,
        description=description,
        warmup_steps=settings.warmup_steps,
        max_norm=max_norm,
    )
    trunk.module.eval()
    head.eval()
