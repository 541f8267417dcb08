"""What the features of a fixed set of images are good for, in numbers: without labels, with a few, and of geometry."""

import logging
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
from torch.nn import functional as F

from hf_geossl.modeling.objectives import prediction_diversity
from hf_geossl.training.monitors.classifiers import Ridge, accuracy, vote
from hf_geossl.training.monitors.spectrum import alpha_req, lidar, mean_entropy, rankme, spread

logger = logging.getLogger(__name__)

BATCH = 64  # images, as in an evaluation, so that its numbers are the same to the bit
NEIGHBOURS, TEMPERATURE = 20, 0.07  # of the evaluation's k-NN
THUMBNAIL_SIDE = 12  # pixels
_SIDE_IN_PATCH = 4  # of a thumbnail's patch, in pixels

# by name what an instrument measures, in the order in which reports show them
INSTRUMENTS = {
    "knn_accuracy": "k-NN",
    "linear_accuracy": "linear probe",
    "quarter_turn_accuracy": "quarter turns",
    "position_accuracy": "positions",
    "correspondence_accuracy": "correspondences",
    "rankme": "RankMe",
    "lidar": "LiDAR",
    "alpha_req": "alpha-ReQ",
    "feature_spread": "feature spread",
    "target_spread": "target spread",
    "teacher_entropy": "teacher entropy",
    "prediction_diversity": "prediction diversity",
}


@dataclass(frozen=True)
class LabelledImages:
    """A few images with classes, for k-NN and a linear probe.

    Args:
        name (`str`): What reports call them.
        train_images, images (`torch.Tensor` of shape `(images, channels, size, size)`): Those that vote, and those that are
            classified: uint8, or float32 in units of the value range.
        train_labels, labels (`torch.Tensor` of shape `(images,)`, int64): Their classes, from 0.
        num_classes (`int`): How many classes there are.
    """

    name: str
    train_images: torch.Tensor
    train_labels: torch.Tensor
    images: torch.Tensor
    labels: torch.Tensor
    num_classes: int


class ProbeDataset(Protocol):
    """Where labelled images come from; `hf_geossl.evaluation.online` has it for every dataset that is evaluated."""

    def seconds(self, count: int, size: int) -> float:
        """About how long `load` takes."""

    def load(self, count: int, size: int) -> LabelledImages:
        """The first `count` images of each split, `size` pixels square."""


@dataclass(frozen=True)
class Encoded:
    """What an encoder makes of images: `pooled (images, channels)`, `patches (images, rows, columns, channels)`.

    `targets` are a method's own, by name: features whose spread is measured, and `predictions (rows, prototypes)`.
    """

    pooled: torch.Tensor
    patches: torch.Tensor
    targets: Mapping[str, torch.Tensor]


Encode = Callable[[torch.Tensor], Encoded]  # of images `(batch, channels, size, size)` in units, on the device


def in_units(images: torch.Tensor) -> torch.Tensor:
    """Images as float32 in units: uint8 divided by 255, others as they are."""
    return images.float().div_(255) if images.dtype == torch.uint8 else images.float()


def encode_thumbnail(images: torch.Tensor, patch_size: int) -> Encoded:
    """The trivial feature: an image's pixels at 12 x 12, and of each patch those at 4 x 4."""
    rows, columns = images.shape[-2] // patch_size, images.shape[-1] // patch_size
    inner = min(_SIDE_IN_PATCH, patch_size)
    small = F.adaptive_avg_pool2d(images, (rows * inner, columns * inner))
    # (B, C, rows * 4, columns * 4) -> (B, rows, columns, C * 16)
    patches = small.unflatten(2, (rows, inner)).unflatten(4, (columns, inner)).permute(0, 2, 4, 1, 3, 5).flatten(3)
    return Encoded(F.adaptive_avg_pool2d(images, THUMBNAIL_SIDE).flatten(1), patches, {})


@dataclass(frozen=True)
class GeometricViews:
    """Two further views of each image whose geometry is known, and whose feature says whether it is in there.

    Args:
        patch_size (`int`): Side of a patch in pixels.

    The first, of the image at place i, is mirrored and turned by `i % 4` quarter turns. The second is a quarter of the image (its
    corner is `i // 4 % 4`), enlarged to twice its size and turned by `i % 4` quarter turns.
    """

    patch_size: int

    def mirrored_and_turned(self, images: torch.Tensor, places: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The first views of images `(B, C, S, S)` at `places (B,)`, and the quarter turns `(B,)`."""
        turns = places % 4
        return torch.stack([_turn(image.flip(-1), turn) for image, turn in zip(images, turns, strict=True)]), turns

    def enlarged_quarter(
        self, images: torch.Tensor, places: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """The second views, the corners `(B,)`, and for each patch the one of the whole image that shows the same.

        The latter is `(B, rows, columns)`, raster places in the whole image's `S / patch_size` squared.
        """
        side = images.shape[-1] // self.patch_size
        half = side // 2
        corners = places // 4 % 4
        near = torch.arange(2 * half) // 2
        views, same = [], []
        for image, place, corner in zip(images, places, corners, strict=True):
            top, left = (int(part) * (side - half) for part in (corner // 2, corner % 2))
            y, x, size = top * self.patch_size, left * self.patch_size, half * self.patch_size
            cut = image[None, :, y : y + size, x : x + size]
            larger = F.interpolate(cut, scale_factor=2, mode="bilinear", align_corners=False)[0]
            views.append(_turn(larger, place))
            same.append(_turn((top + near)[:, None] * side + left + near, place))
        return torch.stack(views), corners, torch.stack(same)


def _turn(image: torch.Tensor, quarter_turns: torch.Tensor) -> torch.Tensor:
    return torch.rot90(image, int(quarter_turns) % 4, dims=(-2, -1))


def matching_patches(queries: torch.Tensor, keys: torch.Tensor, same: torch.Tensor) -> torch.Tensor:
    """Share of the patches of one view whose nearest in another, by cosine, is the one that shows the same.

    Args:
        queries, keys (`torch.Tensor` of shape `(images, rows, columns, channels)`): Patch features of the two views.
        same (`torch.Tensor` of shape `(images, rows, columns)`): For each query the raster place of the right key.

    Returns:
        `torch.Tensor` of shape `(images,)`: In [0, 1]; chance is 1 / number of keys.
    """
    first, second = (F.normalize(patches.float().flatten(1, 2), dim=-1) for patches in (queries, keys))
    nearest = (first @ second.transpose(1, 2)).argmax(dim=-1)
    return (nearest == same.flatten(1).to(nearest.device)).double().mean(dim=1)


def measure(
    encode: Encode, images: torch.Tensor, patch_size: int, device: torch.device, labelled: LabelledImages | None
) -> dict[str, float]:
    """All numbers of an encoder, by their names in `INSTRUMENTS`; those that cannot be measured are left out.

    Of features that are not finite there are none, which a line says.

    Args:
        encode (`Encode`): The encoder, with frozen weights.
        images (`torch.Tensor` of shape `(images, channels, size, size)`): The fixed set; the labelled images that are
            classified, where there are such.
        patch_size (`int`): Side of a patch in pixels.
        device (`torch.device`): Where it computes.
        labelled (`LabelledImages`, *optional*): For k-NN and the linear probe.
    """
    views = GeometricViews(patch_size)
    can_match = images.shape[-1] // patch_size >= 2
    # their order may be that of the classes, so what is done to an image follows from a shuffled place
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    whole, turned, quarters, turns, corners, hits = [], [], [], [], [], []
    targets: Mapping[str, torch.Tensor] = {}
    for first in range(0, len(images), BATCH):
        batch = in_units(images[first : first + BATCH].to(device))
        places = order[first : first + len(batch)]
        encoded = encode(batch)
        targets = targets or encoded.targets  # of the first batch
        whole.append(encoded.pooled.float())
        view, of_view = views.mirrored_and_turned(batch, places)
        turned.append(encode(view).pooled.float())
        turns.append(of_view)
        if can_match:
            view, of_view, same = views.enlarged_quarter(batch, places)
            quarter = encode(view)
            quarters.append(quarter.pooled.float())
            corners.append(of_view)
            hits.append(matching_patches(quarter.patches, encoded.patches, same))
    pooled = torch.cat(whole)
    if not torch.cat([pooled, *turned, *quarters]).isfinite().all():
        logger.warning("features are not measured: they are not finite")
        return {}
    numbers: dict[str, float | None] = {}
    if labelled is not None:
        numbers |= _with_labels(encode, pooled, labelled, device)
    numbers["quarter_turn_accuracy"] = _left_out(torch.cat(turned), torch.cat(turns).to(device))
    if can_match:
        numbers["position_accuracy"] = _left_out(torch.cat(quarters), torch.cat(corners).to(device))
        numbers["correspondence_accuracy"] = torch.cat(hits).mean().item()
    numbers["rankme"] = rankme(pooled)
    numbers["lidar"] = lidar(torch.stack([pooled, torch.cat(turned), *([torch.cat(quarters)] if can_match else [])], 1))
    numbers["alpha_req"] = alpha_req(pooled)
    numbers["feature_spread"] = spread(pooled)
    numbers |= {name: spread(rows) for name, rows in targets.items() if name != "predictions"}
    if "predictions" in targets:
        numbers["teacher_entropy"] = mean_entropy(targets["predictions"])
        numbers["prediction_diversity"] = prediction_diversity(targets["predictions"]).item()
    return {name: number for name in INSTRUMENTS if (number := numbers.get(name)) is not None and math.isfinite(number)}


def chance_levels(image_size: int, patch_size: int, labelled: LabelledImages | None) -> dict[str, float]:
    """What guessing reaches, of the instruments for which that is known; for classes, always the most frequent one."""
    chances = {"quarter_turn_accuracy": 0.25, "position_accuracy": 0.25}
    chances["correspondence_accuracy"] = 1 / (image_size // patch_size) ** 2
    if labelled is not None:
        guess = (labelled.labels == labelled.train_labels.bincount().argmax()).double().mean().item()
        chances |= {"knn_accuracy": guess, "linear_accuracy": guess}
    return chances


def _left_out(features: torch.Tensor, labels: torch.Tensor) -> float | None:
    """Accuracy of ridge regression of four classes, each row left out in turn."""
    return accuracy(Ridge(features, labels, 4).left_out, labels) if len(features) > 1 else None


def _with_labels(
    encode: Encode, pooled: torch.Tensor, labelled: LabelledImages, device: torch.device
) -> dict[str, float | None]:
    batches = labelled.train_images.split(BATCH)
    bank = torch.cat([encode(in_units(images.to(device))).pooled.float() for images in batches])
    voting = min(NEIGHBOURS, len(bank))
    arrays = pooled.cpu().numpy(), bank.cpu().numpy(), labelled.train_labels.numpy()
    votes = vote(*arrays, [voting], labelled.num_classes, TEMPERATURE, device)[voting]
    ridge = Ridge(bank, labelled.train_labels.to(device), labelled.num_classes)
    return {
        "knn_accuracy": accuracy(torch.from_numpy(votes), labelled.labels),
        "linear_accuracy": accuracy(ridge.scores(pooled).cpu(), labelled.labels),
    }
