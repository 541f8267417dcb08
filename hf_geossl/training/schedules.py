"""Schedules: pure functions of the optimizer step, counted from 0."""

import math


def cosine(step: int, total_steps: int, start: float, end: float) -> float:
    """Half a cosine from `start` at step 0 to `end` at step `total_steps`, at least 1; constant before and after."""
    progress = min(max(step / total_steps, 0.0), 1.0)
    return end + 0.5 * (start - end) * (1.0 + math.cos(math.pi * progress))


def warmup_cosine(step: int, total_steps: int, warmup_steps: int, peak: float, end: float) -> float:
    """Linear from 0 to `peak` over `warmup_steps` steps, both ends included, then half a cosine to `end`.

    The peak appears twice and `end` belongs to step `total_steps`, as in the DINO and GTSA authors' schedules.
    """
    if step < warmup_steps:
        return peak * step / max(warmup_steps - 1, 1)
    return cosine(step - warmup_steps, max(total_steps - warmup_steps, 1), peak, end)


def linear_warmup_cosine(step: int, total_steps: int, warmup_steps: int, peak: float, end: float) -> float:
    """Half a cosine from `peak` at step `warmup_steps` to `end` at step `total_steps`, times a linear rise from 0.

    The peak appears once. The authors' cosine starts again after the last step, this one stays at `end`.

    Source: the LOCA authors' code (arXiv 2212.02400).
    """
    rise = min(step / warmup_steps, 1.0) if warmup_steps > 0 else 1.0
    return rise * cosine(step - warmup_steps, max(total_steps - warmup_steps, 1), peak, end)


def from_step(step: int, first_step: int, value: float) -> float:
    """0 before `first_step` and `value` from there on."""
    return value if step >= first_step else 0.0


def late_start(step: int, first_step: int, warmup_steps: int) -> float:
    """0 before `first_step`, then a linear rise that reaches 1 in its last of `warmup_steps` steps; 1 after them."""
    return 0.0 if step < first_step else min((step - first_step + 1) / max(warmup_steps, 1), 1.0)


def steps_of(steps_or_share: float, total_steps: int) -> int:
    """A number of steps: as given, or where it is below 1 that share of `total_steps`, rounded up."""
    if steps_or_share >= 1:
        return int(steps_or_share)
    return math.ceil(round(steps_or_share * total_steps, 6))
