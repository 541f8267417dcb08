"""Logistic regressions that share their features, all fitted at once by L-BFGS on any device: of several penalties, of several labels."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch.nn import functional as F

HISTORY = 10  # steps that L-BFGS remembers
TOLERANCE = 1e-5  # of the largest entry of the gradient of the mean loss
STAGNATION = 64 * torch.finfo(torch.float64).eps  # relative decrease below which a value is as good as reached
BLOCK = 2**25  # logits in memory at a time: 256 MB
Evaluate = Callable[[torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor]]


class DeviceLogisticClassifier:
    """What `LogisticClassifier` of `classifiers` is, for a GPU: one fit for all regularisations, and one of the chosen one.

    Both solve the same problem; scikit-learn stops at a gradient of 1e-4, here it is `TOLERANCE`.

    Args:
        features, labels, held_out, c_values, num_classes, max_iterations: As there.
        device (`torch.device`): Where it is fitted.
    """

    def __init__(
        self,
        features: np.ndarray,
        labels: np.ndarray,
        held_out: np.ndarray,
        c_values: Sequence[float],
        num_classes: int,
        max_iterations: int,
        device: torch.device,
    ) -> None:
        self.num_classes, self.max_iterations, self._device = num_classes, max_iterations, device
        x, y, held = self._moved(features), torch.from_numpy(np.asarray(labels)).to(device), torch.from_numpy(held_out)
        held = held.to(device)
        right = [0.0]
        if len(c_values) > 1:
            several = self._fit(x[~held], y[~held], c_values)
            queries, truth = x[held], y[held]
            right = [float((one.argmax(dim=1) == truth).double().mean()) for one in self._scores(several, queries)]
        self.c = float(c_values[int(np.argmax(right))])
        self._fitted = self._fit(x, y, [self.c])
        self.converged = bool(self._fitted.converged.all())

    def _moved(self, features: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(np.array(features)).to(self._device, torch.float64)

    def _fit(self, x: torch.Tensor, labels: torch.Tensor, c_values: Sequence[float]) -> "_Fitted":
        classes, numbers = labels.unique(return_inverse=True)
        mean, deviation = x.mean(dim=0), x.std(dim=0, correction=0)
        deviation = torch.where(deviation > 1e-12, deviation, 1.0)
        strengths = torch.tensor(c_values, dtype=torch.float64, device=self._device)
        given = (x - mean) / deviation, numbers, strengths, len(classes), self.max_iterations
        return _Fitted(mean, deviation, classes, *fit_logistic(*given))

    def _scores(self, fitted: "_Fitted", x: torch.Tensor) -> list[torch.Tensor]:
        """Those of each regularisation, `(rows, num_classes)`."""
        standardized, parts = (x - fitted.mean) / fitted.deviation, []
        for weights in fitted.weights:
            known = standardized @ weights[:-1] + weights[-1]
            known = torch.cat([-known, known], dim=1) if known.shape[1] == 1 else known
            scores = known.new_full((len(x), self.num_classes), float(known.min()) - 1.0)
            scores[:, fitted.classes] = known
            parts.append(scores)
        return parts

    def scores(self, features: np.ndarray) -> np.ndarray:
        """See `LogisticClassifier.scores`."""
        return self._scores(self._fitted, self._moved(features))[0].cpu().numpy()


@dataclass(frozen=True)
class _Fitted:
    """Standardisation, the classes that were seen, and of each regularisation the weights and whether it converged."""

    mean: torch.Tensor
    deviation: torch.Tensor
    classes: torch.Tensor
    weights: torch.Tensor
    converged: torch.Tensor


def fit_logistic(
    x: torch.Tensor, labels: torch.Tensor, c: torch.Tensor, num_classes: int, max_iterations: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Fits logistic regressions of the same features, as scikit-learn's does.

    Minimised is for each the sum of the losses times its `c` plus half of the squared weights; the bias is not penalised.

    Args:
        x (`torch.Tensor` of shape `(rows, width)`, float64): Features, standardised.
        labels (`torch.Tensor` of shape `(rows,)` or `(rows, problems)`, int64): Classes, of all problems or of each.
        c (`torch.Tensor` of shape `(problems,)`): Inverse regularisations.
        num_classes (`int`): With 2 the log-odds of the second are fitted, with more multinomial ones.
        max_iterations (`int`): Of L-BFGS.

    Returns:
        `(torch.Tensor, torch.Tensor)`: Weights `(problems, width + 1, outputs)` with the bias as the last row, of as many
        outputs as classes, or one for two classes; and which have converged, `(problems,)`, bool.
    """
    outputs = num_classes if num_classes > 2 else 1
    width, rows, problems = x.shape[1], len(x), len(c)
    labels = labels[:, None].expand(-1, problems) if labels.ndim == 1 else labels
    step = max(1, BLOCK // (problems * outputs))

    def evaluate(flat: torch.Tensor, chosen: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Value and gradient of the mean objective of some problems."""
        weights = flat.view(-1, width + 1, outputs)
        count = len(weights)
        side_by_side = weights.permute(1, 0, 2).flatten(1)  # (width + 1, problems * outputs)
        loss, gradient = flat.new_zeros(count), torch.zeros_like(side_by_side)
        for start in range(0, rows, step):
            part, truth = x[start : start + step], labels[start : start + step, chosen]
            logits = torch.addmm(side_by_side[-1], part, side_by_side[:-1]).view(-1, count, outputs)
            if outputs == 1:
                wanted = truth.to(logits)
                loss += F.binary_cross_entropy_with_logits(logits[..., 0], wanted, reduction="none").sum(dim=0)
                residual = (logits[..., 0].sigmoid() - wanted)[..., None]
            else:
                known = logits.log_softmax(dim=-1)
                loss -= known.gather(2, truth[..., None])[..., 0].sum(dim=0)
                residual = known.exp().scatter_add_(2, truth[..., None], -torch.ones_like(known[..., :1]))
            flat_residual = residual.flatten(1)
            gradient[:-1].addmm_(part.T, flat_residual)
            gradient[-1] += flat_residual.sum(dim=0)
        gradient = gradient.view(width + 1, count, outputs).permute(1, 0, 2) / rows
        strength = (1 / (c[chosen] * rows))[:, None, None]
        penalised = torch.cat([weights[:, :-1], torch.zeros_like(weights[:, -1:])], dim=1)
        loss = loss / rows + 0.5 * strength[:, 0, 0] * penalised.square().sum(dim=(1, 2))
        return loss, (gradient + strength * penalised).flatten(1)

    start = x.new_zeros(problems, (width + 1) * outputs)
    solution, converged = minimize(evaluate, start, max_iterations)
    return solution.view(problems, width + 1, outputs), converged


def minimize(evaluate: Evaluate, start: torch.Tensor, max_iterations: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Minimises several smooth convex functions at once by L-BFGS with backtracking; each goes its own way.

    Args:
        evaluate (`Callable`): Points `(chosen, size)` and which functions they are of, by number -> values `(chosen,)` and
            gradients `(chosen, size)`.
        start (`torch.Tensor` of shape `(functions, size)`): Where each begins.
        max_iterations (`int`): At most so many.

    Returns:
        `(torch.Tensor, torch.Tensor)`: Where each ended, and whether it converged before that.

    Source: Nocedal and Wright, Numerical Optimization, 2006, algorithms 7.4 and 3.1.
    """
    point = start.clone()
    value, gradient = evaluate(point, torch.arange(len(point), device=point.device))
    memory: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]] = []  # steps, changes of the gradient, 1 / product
    scale = 1 / gradient.norm(dim=1).clamp_min(1e-300)
    active = gradient.abs().amax(dim=1) > TOLERANCE
    for _ in range(max_iterations):
        if not active.any():
            break
        direction = -_times_inverse_hessian(gradient, memory, scale)
        slope = (direction * gradient).sum(dim=1)
        next_point, next_value, next_gradient = point.clone(), value.clone(), gradient.clone()
        length, pending = torch.ones_like(value), active.nonzero()[:, 0]
        for _ in range(40):
            tried = point[pending] + length[pending, None] * direction[pending]
            values, gradients = evaluate(tried, pending)
            good = values <= value[pending] + 1e-4 * length[pending] * slope[pending]
            accepted = pending[good]
            next_point[accepted], next_value[accepted] = tried[good], values[good]
            next_gradient[accepted] = gradients[good]
            pending = pending[~good]
            if not len(pending):
                break
            length[pending] *= 0.5
        step, change = next_point - point, next_gradient - gradient
        product, squares = (step * change).sum(dim=1), change.square().sum(dim=1)
        curved = product > 1e-14 * squares.sqrt() * step.norm(dim=1)
        memory = [*memory, (step, change, torch.where(curved, 1 / product.where(curved, product.new_ones(())), 0.0))]
        memory = memory[-HISTORY:]
        scale = torch.where(curved, product / squares.clamp_min(1e-300), scale)
        stagnated = value - next_value <= STAGNATION * torch.maximum(value.abs(), value.new_ones(()))
        point, value, gradient = next_point, next_value, next_gradient
        active = active & (gradient.abs().amax(dim=1) > TOLERANCE) & ~stagnated
    return point, ~active


def _times_inverse_hessian(
    gradient: torch.Tensor, memory: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]], scale: torch.Tensor
) -> torch.Tensor:
    """The two loops of L-BFGS; a pair whose inverse product is 0 changes nothing."""
    result, shares = gradient.clone(), []
    for step, change, inverse in reversed(memory):
        share = inverse * (step * result).sum(dim=1)
        result -= share[:, None] * change
        shares.append(share)
    result *= scale[:, None]
    for (step, change, inverse), share in zip(memory, reversed(shares), strict=True):
        result += (share - inverse * (change * result).sum(dim=1))[:, None] * step
    return result
