"""LOCA's position accuracy: where the training head places the patches of queries in the reference, on held-out images."""

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image

from hf_geossl.evaluation.encoders import Encoder
from hf_geossl.evaluation.options import EvaluationData, EvaluationOptions
from hf_geossl.evaluation.protocol import EvaluationProtocol, TaskResult
from hf_geossl.evaluation.settings import ProtocolSettings, Scale, Work
from hf_geossl.modeling.dense_heads import full_precision
from hf_geossl.modeling.pretraining_loca import LOCAForPreTraining
from hf_geossl.views.loca import LOCAViews

SOURCE_SCALE = 1.25  # side of the images that views are cut from, relative to the reference
HIDDEN_PATTERNS = 8  # random choices of visible tokens, which the images take in turns


@dataclass(frozen=True)
class PositionSettings(ProtocolSettings):
    """Views are drawn and coloured as in training, each image's by its own seed.

    Args:
        focal_queries (`int`): Small queries an image beside the random query; 9 in training.
        reference_scale, focal_scale (`tuple[float, float]`): Shares of the image's area that reference and random query,
            and focal queries show, as in training.
        visible_tokens (`float`): Share of the reference's tokens that queries attend to in the `_masked` numbers. The
            authors' `reference_seqlen` is 39 of 196.

    Source: LOCA (arXiv 2212.02400).
    """

    focal_queries: int = 9
    reference_scale: tuple[float, float] = (0.32, 1.0)
    focal_scale: tuple[float, float] = (0.05, 0.32)
    visible_tokens: float = 39 / 196

    def work(self, scale: Scale) -> Work:
        """See `ProtocolSettings`."""
        queries = 1 + self.focal_queries  # of which each is compared with the whole reference, and with a part of it
        return Work({"images for views": scale.test}, 2 * scale.test * (1.5 * queries))


def score_positions(logits: torch.Tensor, positions: torch.Tensor, columns: int) -> torch.Tensor:
    """Adds up over an image's tokens how well they are placed.

    Args:
        logits (`torch.Tensor` of shape `(batch, tokens, N)`): Scores of the reference's positions in raster order.
        positions (`torch.Tensor` of shape `(batch, tokens)`): The true ones, -1 outside of the reference.
        columns (`int`): Patches in a row of the reference.

    Returns:
        `torch.Tensor` of shape `(batch, 3)`, float64: tokens placed right, sum of the distances in patches between the position of
        the highest score and the true one, and tokens inside of the reference, the only ones that count.
    """
    inside = positions >= 0
    placed, truth = logits.argmax(dim=-1), positions.clamp_min(0)
    down = placed.div(columns, rounding_mode="floor") - truth.div(columns, rounding_mode="floor")
    right = placed % columns - truth % columns
    distances = torch.hypot(down.double(), right.double())
    return torch.stack([part.sum(dim=1) for part in ((placed == truth) & inside, distances * inside, inside)], dim=1)


def summarize(sums: np.ndarray) -> dict[str, float]:
    """Accuracy and mean distance in patches of `score_positions` summed over images; NaN where nothing was inside."""
    right, distance, inside = (float(value) for value in sums)
    if not inside:
        return {"accuracy": float("nan"), "distance": float("nan")}
    return {"accuracy": right / inside, "distance": distance / inside}


def _views(encoder: Encoder, model: LOCAForPreTraining, settings: PositionSettings) -> LOCAViews:
    config = model.config
    side, columns = config.image_height_width
    if side != columns:
        raise ValueError(f"LOCA's views are square, the model's image_size is {config.image_size}")
    patch = config.patch_size
    (r_mean, g_mean, b_mean), (r_std, g_std, b_std) = encoder.mean, encoder.std
    return LOCAViews(
        reference_size=side,
        focal_size=max(1, round(side * 96 / 224 / patch)) * patch,  # 96 pixels for references of 224
        num_focal=settings.focal_queries,
        patch_size=patch,
        reference_scale=settings.reference_scale,
        focal_scale=settings.focal_scale,
        mean=(r_mean, g_mean, b_mean),
        std=(r_std, g_std, b_std),
    )


def missing_head(encoder: Encoder) -> str | None:
    """One sentence on an encoder that is not of a `LOCAForPreTraining`; None of one that is."""
    model = encoder.pretraining_model
    if isinstance(model, LOCAForPreTraining):
        return None
    return (
        f"position needs the training head of a LOCAForPreTraining, which {encoder.name} "
        f"({type(model or encoder.module).__name__}) has not; save the model with trainer.save_model()"
    )


def measure_position(
    encoder: Encoder, data: EvaluationData, options: EvaluationOptions, settings: PositionSettings
) -> TaskResult:
    """Position accuracy of a `LOCAForPreTraining`; of the data only the test split is read, at a size that fits the model.

    Metrics are `position_accuracy` (tokens of all queries inside of the reference whose highest score is right) and
    `position_distance` (in patches); the same with `_masked` where most of the reference is hidden. The accuracy of guessing,
    and random and focal queries by themselves, lie in the details.

    Raises:
        ValueError: If the model is not a `LOCAForPreTraining`.
    """
    model = encoder.pretraining_model
    if not isinstance(model, LOCAForPreTraining):
        raise ValueError(missing_head(encoder))
    views = _views(encoder, model, settings)
    side = views.reference_size // views.patch_size
    samples = data.samples(data.test_split, size=round(SOURCE_SCALE * views.reference_size))
    visible = max(1, round(settings.visible_tokens * side * side))
    collected: dict[str, list[torch.Tensor]] = {}
    for batch in options.batches(samples, f"{encoder.name}: positions"):
        for name, sums in _score_batch(model, views, batch, visible, encoder.device, options.seed).items():
            collected.setdefault(name, []).append(sums)
    of_images = {name: torch.cat(parts).numpy() for name, parts in collected.items()}
    names = sorted({name.removesuffix("_masked") for name in of_images})
    metrics: dict[str, float] = {}
    intervals: dict[str, tuple[float, float]] = {}
    for suffix in ("", "_masked"):
        total = np.sum([of_images[f"{name}{suffix}"] for name in names], axis=0)
        metrics |= {f"position_{key}{suffix}": value for key, value in summarize(total.sum(axis=0)).items()}
        ends = options.intervals(summarize, total)
        intervals |= {f"position_{key}{suffix}": value for key, value in ends.items()}
    chance = 1 / (side * side)
    queries = {name: summarize(values.sum(axis=0)) for name, values in of_images.items()}

    def draw() -> Image.Image:
        from hf_geossl.evaluation.pictures.charts import bars

        values = {name.replace("_", " "): numbers["accuracy"] for name, numbers in queries.items()}
        title = f"{encoder.name} on {samples.name}"
        return bars({**values, "chance": chance}, ylabel="position accuracy", title=title)

    details = {
        "settings": asdict(settings),
        "test_images": len(of_images[names[0]]),
        "positions": side * side,
        "visible_positions_masked": visible,
        "queries": queries,
        "floors": {name: {"chance": chance} for name in ("position_accuracy", "position_accuracy_masked")},
    }
    return TaskResult(metrics, intervals, details, {"position_accuracy": draw})


@torch.no_grad()
def _score_batch(
    model: LOCAForPreTraining, views: LOCAViews, batch: dict[str, Any], visible: int, device: torch.device, seed: int
) -> dict[str, torch.Tensor]:
    """`score_positions` of the images of a batch by query, and with `_masked` where the reference is hidden.

    The random draws for an image follow from its index, whatever batch it is in.
    """
    drawn = []
    for index, image in zip(batch["index"].tolist(), batch["image"], strict=True):
        number = int(np.random.SeedSequence([seed, index]).generate_state(1)[0])
        crops = views.collate([views.views(image.permute(1, 2, 0).numpy(), seed=number)])
        drawn.append(views.augment(crops, torch.Generator().manual_seed(number)))
    inputs: dict[str, torch.Tensor] = {}
    for key in drawn[0]:
        parts = [tensor for views_of_image in drawn if (tensor := views_of_image[key]) is not None]
        if parts:
            inputs[key] = torch.cat(parts).to(device)
    references = inputs["reference_pixel_values"]
    side = views.reference_size // views.patch_size
    queries: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}  # pixels (B, Q, 3, s, s) and positions (B, Q * tokens)
    if model.config.location_target == "self":
        own = torch.arange(side * side, device=device).expand(len(references), -1)
        queries["own"] = references[:, None], own
    else:
        random_query, positions = inputs["random_query_pixel_values"], inputs["random_query_positions"]
        queries["random_query"] = random_query[:, None], positions
        if views.num_focal:
            queries["focal_queries"] = inputs["focal_query_pixel_values"], inputs["focal_query_positions"].flatten(1)
    sums = {}
    for name, (pixels, positions) in queries.items():
        sums[name] = _score(model, references, pixels, positions, None, side)
        masked = torch.empty_like(sums[name])
        for mask in range(HIDDEN_PATTERNS):
            rows = (batch["index"] % HIDDEN_PATTERNS == mask).nonzero()[:, 0]
            if len(rows):
                order = np.random.default_rng([seed, mask]).permutation(side * side)
                tokens = torch.from_numpy(order[:visible])
                masked[rows] = _score(model, references[rows], pixels[rows], positions[rows], tokens, side)
        sums[f"{name}_masked"] = masked
    return sums


def _score(
    model: LOCAForPreTraining,
    references: torch.Tensor,
    queries: torch.Tensor,
    positions: torch.Tensor,
    visible: torch.Tensor | None,
    side: int,
) -> torch.Tensor:
    """`score_positions` of queries `(batch, Q, 3, s, s)` that attend to some tokens of the references, on the CPU.

    In float32, since scores that are rounded tie and the first of them would win.
    """
    repeated = references.repeat_interleave(queries.shape[1], dim=0)
    with full_precision(references.device):
        logits = model.predict_positions(repeated, queries.flatten(0, 1), visible)
    return score_positions(logits.unflatten(0, queries.shape[:2]).flatten(1, 2), positions, side).cpu()


PROTOCOLS = {"position": EvaluationProtocol(measure_position, PositionSettings, missing_head)}
