"""Homography estimation between two patches of an image (S-COCO, of any images): how well features preserve positions."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn
from torch.nn import functional

from hf_geossl.evaluation.encoders import Encoder, mixed_precision, unit_images
from hf_geossl.evaluation.features import compute_features
from hf_geossl.evaluation.fitting.fit import fit, seeded
from hf_geossl.evaluation.heads.operations import count_operations
from hf_geossl.evaluation.metrics.corner_error import CornerError
from hf_geossl.evaluation.options import EvaluationData, EvaluationOptions
from hf_geossl.evaluation.protocol import EvaluationProtocol, TaskResult
from hf_geossl.evaluation.samples import Samples
from hf_geossl.evaluation.settings import BACKWARD, PASS, ProtocolSettings, Scale, Work
from hf_geossl.modeling.dense_heads import full_precision

SHOWN = 8
PATCH_SHARE = 128 / 240  # DeTone's patch in his image of 320 x 240
SHIFT_SHARE = 32 / 128  # largest shift of a corner, of the patch's side
CUT = 75  # passes over the pixels of an image, to cut two patches out of it with float64 positions
LUMA = (0.299, 0.587, 0.114)


@dataclass(frozen=True)
class HomographySettings(ProtocolSettings):
    """How displacements of corners are learned.

    As published (DeTone et al., arXiv 1606.03798): grey images of 320 x 240 (here: the data's squares, `size=240`), patches of
    128, corner shifts up to 32 pixels, 90,000 steps of 64 pairs. The defaults have those proportions at any image size and are
    of desk scale in steps and channels (256 on a GPU).

    Args:
        steps (`int`): Of training.
        batch_size (`int`): Pairs a step.
        learning_rate (`float`): Of Adam.
        channels (`int`): Of the head's two hidden layers.
        tuned (`bool`): Whether the trunk is trained as well; it is frozen by default.
    """

    steps: int = 1000
    batch_size: int = 64
    learning_rate: float = 1e-4
    channels: int = 64
    tuned: bool = False

    PASSES = 200  # each shows other patches, moved otherwise

    def work(self, scale: Scale) -> Work:
        """See `ProtocolSettings`."""
        share, pairs = PATCH_SHARE**2, 2 * (self.steps * self.batch_size + scale.test)  # of both models
        shape = 1, 1, scale.tokens, scale.width
        one = share * count_operations(
            lambda: HomographyHead(scale.width, self.channels)(torch.empty(shape), torch.empty(shape))
        )
        operations = pairs * ((1 + BACKWARD) * one + CUT * PASS * scale.pixels)
        trained = 1 + BACKWARD * self.tuned
        return Work({"images": scale.images}, 2 * pairs * share * trained, 2 * self.steps, operations)


def solve_homography(sources: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Solves for the homographies that map four points to four others.

    They have shape `(batch, 3, 3)`, float64, with 1 as the last entry; points `(batch, 4, 2)` are x and y, no three on a line.

    Source: direct linear transform; Hartley and Zisserman, Multiple View Geometry, 2004, section 4.1.
    """
    sources, targets = sources.double(), targets.double()
    x, y = sources.unbind(-1)
    u, v = targets.unbind(-1)
    zero, one = torch.zeros_like(x), torch.ones_like(x)
    first = torch.stack([x, y, one, zero, zero, zero, -u * x, -u * y], dim=-1)
    second = torch.stack([zero, zero, zero, x, y, one, -v * x, -v * y], dim=-1)
    numbers = torch.linalg.solve(torch.cat([first, second], dim=1), torch.cat([u, v], dim=1))
    return torch.cat([numbers, torch.ones_like(numbers[:, :1])], dim=1).view(-1, 3, 3)


def cut_patches(images: torch.Tensor, homographies: torch.Tensor, corners: torch.Tensor, side: int) -> torch.Tensor:
    """Square patches `(batch, channels, side, side)` of images that were warped: bilinear, float32.

    Args:
        images (`torch.Tensor` of shape `(batch, channels, height, width)`): Floats.
        homographies (`torch.Tensor` of shape `(batch, 3, 3)`): From positions in the warped image to positions in the image,
            in pixels from the upper left corner of the first pixel.
        corners (`torch.Tensor` of shape `(batch, 2)`): x and y of the patch's upper left corner, in pixels.
    """
    line = torch.arange(side, device=images.device, dtype=torch.float64) + 0.5
    y, x = torch.meshgrid(line, line, indexing="ij")
    positions = torch.stack([x, y], dim=-1) + corners.double()[:, None, None]  # (batch, side, side, 2)
    mapped = map_points(homographies.double(), positions.flatten(1, 2)).view_as(positions)
    extent = mapped.new_tensor([images.shape[-1], images.shape[-2]])
    grid = (mapped / extent * 2 - 1).float()
    return functional.grid_sample(images.float(), grid, mode="bilinear", padding_mode="border", align_corners=False)


def map_points(homographies: torch.Tensor, points: torch.Tensor) -> torch.Tensor:
    """Points `(batch, points, 2)` moved by homographies `(batch, 3, 3)`."""
    moved = functional.pad(points, (0, 1), value=1.0) @ homographies.transpose(1, 2)
    return moved[..., :2] / moved[..., 2:]


@dataclass(frozen=True)
class Pairs:
    """Two grey patches of each image, of which the second shows the image warped.

    Args:
        first, second (`torch.Tensor` of shape `(batch, 3, side, side)`): In [0, 1], three equal channels.
        corners (`torch.Tensor` of shape `(batch, 4, 2)`): Of the patch in the image, in pixels: upper left, upper right, lower
            left, lower right.
        shifts (`torch.Tensor` of shape `(batch, 4, 2)`): From there to where the second patch's corners lie in the image.
    """

    first: torch.Tensor
    second: torch.Tensor
    corners: torch.Tensor
    shifts: torch.Tensor


def patch_side(size: int, multiple: int) -> int:
    """The side of patches in images of `size` pixels: the multiple that is nearest to DeTone's share."""
    side = max(1, round(size * PATCH_SHARE / multiple)) * multiple
    if side * (1 + 2 * SHIFT_SHARE) > size:
        raise ValueError(
            f"patches of {side} pixels with their shifts do not fit into images of {size}; take larger images"
        )
    return side


def make_pairs(images: torch.Tensor, side: int, draws: torch.Tensor) -> Pairs:
    """Cuts pairs of patches out of images `(batch, 3, size, size)`, uint8.

    Draws `(batch, 5, 2)` in [0, 1) say where the patch lies, and the shifts of its corners.
    """
    size = images.shape[-1]
    reach = side * SHIFT_SHARE
    draws = draws.to(images.device).double()
    margin = -int(-reach // 1)
    origin = margin + (draws[:, 0] * (size - side - 2 * margin + 1)).floor()
    square = draws.new_tensor([[0, 0], [side, 0], [0, side], [side, side]])
    corners = origin[:, None] + square
    shifts = (2 * draws[:, 1:] - 1) * reach
    channels = images.shape[1]
    weights = LUMA if channels == len(LUMA) else [1 / channels] * channels
    grey = torch.einsum("bchw,c->bhw", unit_images(images), images.new_tensor(weights, dtype=torch.float32))[:, None]
    still = torch.eye(3, device=images.device).expand(len(images), 3, 3)
    first = cut_patches(grey, still, origin, side)
    second = cut_patches(grey, solve_homography(corners, corners + shifts), origin, side)
    first, second = (patch.expand(-1, channels, -1, -1) for patch in (first, second))
    return Pairs(first, second, corners.float(), shifts.float())


class HomographyHead(nn.Module):
    """Three convolutions over both feature maps, side by side in channels, predict a map of displacements.

    A corner's displacement is the mean over the quarter of the map that it belongs to.
    """

    def __init__(self, width: int, channels: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(2 * width, channels, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(channels, channels, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(channels, 2, 3, padding=1),
        )

    def forward(self, first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
        """Patch tokens `(batch, rows, columns, width)` of both -> shifts of the corners `(batch, 4, 2)`."""
        maps = torch.cat([first, second], dim=-1).permute(0, 3, 1, 2)
        quarters = functional.adaptive_avg_pool2d(self.layers(maps), 2)  # (batch, 2, 2, 2)
        return quarters.flatten(2).transpose(1, 2)


def measure_homography(
    encoder: Encoder, data: EvaluationData, options: EvaluationOptions, settings: HomographySettings
) -> TaskResult:
    """Mean corner error of homographies that a small head predicts from the patch tokens of two patches.

    The metrics are `mean_corner_error` in pixels and `relative_corner_error` in sides of the patch. Beside them those of
    predicting no displacement, and of the same architecture with random weights under a head trained alike.

    Raises:
        ValueError: If patches do not fit into the images.
    """
    side = patch_side(data.size, encoder.patch_size)
    train, test = data.train, data.test
    pixels = None  # scenes are rendered once, other images read as they are needed
    if data.is_scenes:
        pixels = compute_features(encoder, train, ["image"], replace(options, cache_dir=None))["image"]
    metric = CornerError()
    rows: dict[str, np.ndarray] = {}
    shown: list[tuple[np.ndarray, ...]] = []
    for name, model in (("", encoder), ("random_weights", encoder.random_twin(options.seed))):
        if pixels is None:
            batches = _drawn(train, settings.batch_size, options)
        else:
            batches = drawn_rows(pixels, settings.batch_size, options.seed)
        trunk, head = train_homography(model, batches, side, options, settings)
        predicted, true, first = _test(trunk, head, test, side, options, settings)
        rows[name] = metric.rows_of(predicted, true)
        rows["no_displacement"] = metric.rows_of(torch.zeros_like(true), true)
        shown.append(first)

    def summarize(sums: np.ndarray) -> dict[str, float]:
        error = metric.summarize(sums)["mean_corner_error"]
        return {"mean_corner_error": error, "relative_corner_error": error / side}

    numbers = {name: summarize(sums.sum(axis=0)) for name, sums in rows.items()}
    metrics = numbers.pop("")
    details: dict[str, Any] = {
        "settings": asdict(settings),
        "train_images": train.count,
        "test_images": len(rows[""]),
        "patch": side,
        "largest_shift": side * SHIFT_SHARE,
        "floors": numbers,
    }
    draw = partial(_draw, shown[0], side, encoder.name)
    return TaskResult(metrics, options.intervals(summarize, rows[""]), details, {"corners": draw})


def _draw(shown: tuple[np.ndarray, ...], side: int, name: str) -> Image.Image:
    from hf_geossl.evaluation.pictures.images import point_samples

    images, true, predicted = shown
    margin = int(side * SHIFT_SHARE)  # corners lie outside of the patch
    padded = np.pad(images, ((0, 0), (margin, margin), (margin, margin), (0, 0)))
    title = f"{name}: corners of the second patch in the first image"
    links = [(0, 1), (1, 3), (3, 2), (2, 0)]
    return point_samples(padded, true + margin, predicted + margin, title, links=links)


def train_homography(
    encoder: Encoder,
    batches: Iterator[dict[str, torch.Tensor]],
    side: int,
    options: EvaluationOptions,
    settings: HomographySettings,
) -> tuple[Encoder, HomographyHead]:
    """Trains a head on pairs of patches, and where the settings say so a copy of the trunk; batches are as of `drawn_rows`."""
    device = encoder.device
    if settings.tuned:
        encoder = encoder.trainable_copy()
    with seeded(options.seed, device):
        head = HomographyHead(encoder.width, settings.channels).to(device)
        trained = [*head.parameters(), *(encoder.module.parameters() if settings.tuned else ())]

        def compute_loss(batch: dict[str, torch.Tensor]) -> torch.Tensor:
            with full_precision(device):
                pairs = make_pairs(batch["images"].to(device), side, batch["draws"])
            shifts = _shifts(encoder, head, pairs, settings)
            return functional.mse_loss(shifts, pairs.shifts / (side * SHIFT_SHARE))

        fit(
            torch.optim.Adam(trained, lr=settings.learning_rate),
            compute_loss,
            batches,
            options,
            steps=settings.steps,
            description=f"{encoder.name}: homography",
            schedule="constant",
        )
    encoder.module.eval()
    return encoder, head.eval()


def drawn_rows(images: np.ndarray, batch_size: int, seed: int) -> Iterator[dict[str, torch.Tensor]]:
    """Images drawn with replacement, and what `make_pairs` draws for them."""
    generator = np.random.default_rng([seed, 0])
    while True:
        chosen = np.sort(generator.integers(len(images), size=batch_size))
        draws = torch.from_numpy(generator.random((batch_size, 5, 2)))
        yield {"images": torch.from_numpy(images[chosen]), "draws": draws}


def _drawn(samples: Samples, batch_size: int, options: EvaluationOptions) -> Iterator[dict[str, torch.Tensor]]:
    """The same of images that are read each time, each once a pass."""
    generator = np.random.default_rng([options.seed, 0])
    for batch in samples.endless_batches(batch_size, options.seed, num_workers=options.num_workers):
        draws = torch.from_numpy(generator.random((len(batch["image"]), 5, 2)))
        yield {"images": batch["image"], "draws": draws}


@torch.no_grad()
def _test(
    trunk: Encoder,
    head: HomographyHead,
    samples: Samples,
    side: int,
    options: EvaluationOptions,
    settings: HomographySettings,
) -> tuple[torch.Tensor, torch.Tensor, tuple[np.ndarray, ...]]:
    """Predicted and true shifts of one fixed pair of each image, whatever the batch size; and what pictures show."""
    generator = np.random.default_rng([options.seed, 1])
    predicted, true = [], []
    shown: tuple[np.ndarray, ...] = ()
    square = torch.tensor([[0, 0], [side, 0], [0, side], [side, side]], dtype=torch.float32)
    for batch in samples.batches(options.batch_size, num_workers=options.num_workers, columns=["image"]):
        draws = torch.from_numpy(generator.random((len(batch["image"]), 5, 2)))
        pairs = make_pairs(batch["image"].to(trunk.device), side, draws)
        predicted.append((_shifts(trunk, head, pairs, settings) * side * SHIFT_SHARE).cpu())
        true.append(pairs.shifts.cpu())
        if not shown:
            images = (pairs.second * 255).round().byte().permute(0, 2, 3, 1).cpu()
            parts = images, true[0] + square, predicted[0] + square
            shown = tuple(part[:SHOWN].numpy() for part in parts)
    return torch.cat(predicted), torch.cat(true), shown


def _shifts(encoder: Encoder, head: HomographyHead, pairs: Pairs, settings: HomographySettings) -> torch.Tensor:
    """The predicted shifts, as shares of the largest one; in float32, since bfloat16 has steps of an eighth of a pixel."""
    both = torch.cat([pairs.first, pairs.second])
    with torch.set_grad_enabled(settings.tuned and torch.is_grad_enabled()), mixed_precision(encoder.device):
        first, second = encoder.tokens(encoder.normalize(both)).patches.chunk(2)
    with full_precision(encoder.device):
        return head(first.float(), second.float())


PROTOCOLS = {"homography": EvaluationProtocol(measure_homography, HomographySettings)}
