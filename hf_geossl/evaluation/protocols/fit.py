"""Training a head, alone or with the trunk under it: one loop for all protocols, and what their settings may be."""

import dataclasses
import math
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from hf_geossl.evaluation.encoders import Encoder, mixed_precision
from hf_geossl.evaluation.options import EvaluationOptions

# what settings of these names must be, in every protocol that has them; of those with several values each of them
_RULES: tuple[tuple[str, Callable[[Any], bool], str], ...] = (
    (
        "at least 1",
        lambda value: value >= 1,
        "steps epochs batch_size images_per_step max_iterations class_token_layers crop_size window_stride num_categories "
        "subsets transformations_per_image test_images pool_scales mlp_hidden_size mlp_batch_size channels head_width "
        "regions proposals hidden_size auxiliary_channels pyramid_channels head_channels neck_hidden_sizes "
        "fusion_hidden_size",
    ),
    ("at least 2", lambda value: value >= 2, "num_classes train_images"),
    (
        "at least 0",
        lambda value: 0 <= value < math.inf,
        "warmup_steps weight_decay trunk_factor auxiliary_weight components mlp_epochs focal_queries",
    ),
    (
        "above 0 and finite",
        lambda value: 0 < value < math.inf,
        "learning_rate learning_rates mlp_learning_rate c_values penalties scales",
    ),
    (
        "above 0 and at most 1",
        lambda value: 0 < value <= 1,
        "shares layer_decay visible_tokens reference_scale focal_scale",
    ),
    ("at least 0 and below 1", lambda value: 0 <= value < 1, "momentum dropout smallest_side smallest_object"),
    ("between 0 and 1", lambda value: 0 < value < 1, "held_out"),
    (
        "pooled, both, mean or class_tokens_N with N from 1",
        lambda value: re.fullmatch(r"pooled|both|mean|class_tokens_[1-9]\d*", value) is not None,
        "feature",
    ),
)
_RULE_OF = {name: (told, holds) for told, holds, names in _RULES for name in names.split()}
_RANGES = ("scales", "reference_scale", "focal_scale")  # from the smaller to the larger


def check_settings(settings: Any) -> None:
    """What every protocol's settings are checked by when they are made (`__post_init__`): counts, shares, learning rates, names
    of features. None, where a setting may be that, is left alone.

    Args:
        settings: A dataclass.

    Raises:
        ValueError: If a setting makes no sense.
    """
    for field in dataclasses.fields(settings):
        value = getattr(settings, field.name)
        if field.name not in _RULE_OF or value is None:
            continue
        told, holds = _RULE_OF[field.name]
        several = isinstance(value, (tuple, list))
        if several and not value:
            raise ValueError(f"{field.name} must hold at least one value, got none")
        if not all(map(holds, value if several else (value,))):
            raise ValueError(f"{field.name} must be {told}, got {value}")
        if field.name in _RANGES and (len(value) != 2 or value[0] > value[1]):
            raise ValueError(f"{field.name} must be the smaller and the larger end of a range, got {value}")


@contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """What is drawn inside from torch's global generators follows from the seed; afterwards they are as they were."""
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

    Args:
        encoder (`Encoder`): The trunk; all of it is trained.
        head (`nn.Module`): What stands on it, at the full learning rate.
        learning_rate, weight_decay (`float`): Of the head; biases, norms, tokens and positions are not decayed.
        layer_decay (`float`): Factor a layer, in (0, 1].
        trunk_factor (`float`): Further factor of the whole trunk.

    Returns:
        `list[dict]`: For an optimizer.

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
    compute_loss: Callable[[dict[str, Any]], torch.Tensor],
    batches: Iterator[dict[str, Any]],
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
        compute_loss (`Callable`): Maps a batch to the loss, under autocast on a GPU.
        batches (`Iterator`): Gives as many batches as there are steps.
        options (`EvaluationOptions`): For the progress bar. What is drawn comes from torch's global generator: seed it.
        steps (`int`): How many.
        description (`str`): For the progress bar.
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
    return [float(loss) for loss in losses]


def _factor(step: int, steps: int, warmup_steps: int, schedule: str) -> float:
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    done = (step - warmup_steps) / max(steps - warmup_steps, 1)
    if schedule == "cosine":
        return 0.5 * (1 + math.cos(math.pi * done))
    return 1.0 - done if schedule == "poly" else 1.0
