"""Depth of every pixel: a linear map of frozen patch tokens, and transformers' DPT, trained with the trunk.

Both give `abs_rel`, `rmse` (metres) and `delta1`, and refuse data without `depth` in both splits.
"""

import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image

from hf_geossl.evaluation.encoders import Encoder
from hf_geossl.evaluation.fitting.classifiers import hold_out
from hf_geossl.evaluation.fitting.dense_training import (
    BLOCK,
    Batch,
    DenseTraining,
    FrozenTokens,
    Predict,
    predicted_batches,
    train_dense,
)
from hf_geossl.evaluation.fitting.patch_truth import patch_sums
from hf_geossl.evaluation.fitting.regression import fit_ridge
from hf_geossl.evaluation.fitting.segmenters import DenseScore, measure_end_to_end, score_batches
from hf_geossl.evaluation.heads.segmentation import DenseHead
from hf_geossl.evaluation.metrics.depth_errors import DepthErrors
from hf_geossl.evaluation.options import EvaluationData, EvaluationOptions
from hf_geossl.evaluation.protocol import EvaluationProtocol, TaskResult
from hf_geossl.evaluation.samples import Samples
from hf_geossl.evaluation.settings import ProtocolSettings, Scale, Work
from hf_geossl.modeling.dense_heads import (
    MINIMUM_DEPTH,
    DPTDecoder,
    layers_of_maps,
    log_metres,
    silog_loss,
    upsample,
)

logger = logging.getLogger(__name__)

EvalCrop = Literal[None, "eigen", "garg"]
# first and last row, first and last column (exclusive), in parts of the map's height and width
EVAL_CROPS = {
    "eigen": (45 / 480, 471 / 480, 41 / 640, 601 / 640),
    "garg": (0.40810811, 0.99189189, 0.03594771, 0.96405229),
}


def check_depth_settings(cap: float, eval_crop: str | None) -> None:
    """Refuses a crop that there is not, and a cap below the smallest depth."""
    if not cap > MINIMUM_DEPTH:
        raise ValueError(f"cap must be above {MINIMUM_DEPTH} metres, got {cap}")
    if eval_crop is not None and eval_crop not in EVAL_CROPS:
        raise ValueError(f"eval_crop must be one of {', '.join(EVAL_CROPS)}, or None, got {eval_crop!r}")


class DPTHead(DenseHead):
    """transformers' DPT neck and head over layers 2, 5, 8 and 11 of 12, without the class token.

    A sigmoid in the place of the last ReLU gives the depth as a share of the cap, as in Depth Anything V2's metric models. The
    arguments are those of `DPTSettings`.

    Source: DPT (arXiv 2103.13413), section 3; Depth Anything V2 (arXiv 2406.09414).
    """

    target, unknown = "depth", 0

    def __init__(self, width: int, *, neck_hidden_sizes: Sequence[int], fusion_hidden_size: int, cap: float) -> None:
        super().__init__()
        self.cap = cap
        self.decoder = DPTDecoder(width, neck_hidden_sizes, fusion_hidden_size)

    def forward(self, encoder: Encoder, pixel_values: torch.Tensor) -> torch.Tensor:
        """Log metres `(batch, height, width)` of normalised images."""
        maps = encoder.maps(pixel_values, layers_of_maps(encoder.num_layers))
        return log_metres(self.decoder(maps, pixel_values.shape[-2:]), self.cap)

    def predict(self, encoder: Encoder, pixel_values: torch.Tensor) -> torch.Tensor:
        """Log metres `(batch, 1, height, width)` of normalised images."""
        return self(encoder, pixel_values)[:, None]

    def compute_loss(self, encoder: Encoder, pixel_values: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
        """The scale-invariant logarithmic error."""
        return silog_loss(self(encoder, pixel_values), truth, self.cap)


def crop_mask(eval_crop: EvalCrop, height: int, width: int) -> np.ndarray:
    """The pixels that count by a published crop.

    "eigen" is that of NYU Depth v2, rows 45 to 471 and columns 41 to 601 of 480 x 640; "garg" of KITTI, the lower part without
    the sides (Eigen's own crop of KITTI has other shares); None all pixels. The crop is taken in parts of the map's height
    and width, and rounded down.

    Source: Eigen et al., NIPS 2014, as in BTS (arXiv 1907.10326); Garg et al. (arXiv 1603.04992), as in Monodepth
    (arXiv 1609.03677).
    """
    mask = np.zeros((height, width), dtype=bool)
    parts = EVAL_CROPS[eval_crop] if eval_crop else (0, 1, 0, 1)
    # a part such as 471 / 480 of 480 may come out a little below 471
    top, bottom, left, right = (
        int(part * length + 1e-9) for part, length in zip(parts, (height, height, width, width), strict=True)
    )
    mask[top:bottom, left:right] = True
    return mask


@dataclass(frozen=True)
class ScoredDepth(DenseScore):
    """The score of predicted depths."""

    def result(self, options: EvaluationOptions, title: str, details: Mapping[str, Any]) -> TaskResult:
        """That of `DenseScore`; images without a pixel that counts are not counted."""
        result = super().result(options, title, details)
        with_depth, every = int(self.rows[:, -1].sum()), len(self.rows)
        if with_depth < every:
            left_out = every - with_depth
            logger.warning("%d of %d test images have no pixel whose depth counts, and are left out", left_out, every)
        result.details["images"] = with_depth
        return result

    def draw(self, title: str) -> Image.Image:
        """See `DenseScore`."""
        from hf_geossl.evaluation.pictures.images import depth_samples

        return depth_samples(*self.shown, title)


def score_depth(batches: Iterator[Batch], cap: float, eval_crop: EvalCrop) -> ScoredDepth:
    """Measures predicted metres `(batch, height, width)`, see `LinearDepthSettings`."""
    metric = DepthErrors(MINIMUM_DEPTH, cap)

    def rows_of(predicted: torch.Tensor, truth: torch.Tensor) -> np.ndarray:
        valid = np.broadcast_to(crop_mask(eval_crop, *truth.shape[-2:]), truth.shape)
        return metric.rows_of(predicted, truth, valid)

    return ScoredDepth(metric, *score_batches(metric, batches, rows_of))


@dataclass(frozen=True)
class LinearDepthSettings(ProtocolSettings):
    """A linear map of frozen patch tokens to log depth, in closed form.

    It minimises the squared error of log metres over all training pixels, each with the value of its patch, by ridge
    regression. That is also the least scale-invariant logarithmic error (`silog_loss`) that a linear map with a bias can have,
    whatever the weight of the mean, by nearest upsampling.

    Args:
        penalties (`tuple[float, ...]`): Of ridge regression, see `fit_ridge`; the best on held-out training images is taken.
        held_out (`float`): Share of the training images that it is chosen on.
        random_floor (`bool`): Whether the same architecture with random weights is measured too.
        cap (`float`): Metres from which on depths do not count: 80 on scenes (where the sky is) and KITTI, 10 on NYU.
        eval_crop (`str`, *optional*): Test pixels that count, see `crop_mask`: "eigen" on NYU, "garg" on KITTI; all by
            default. It is taken in parts of the map that is measured, which `Samples` cuts as a square out of the image.
    """

    penalties: tuple[float, ...] = (1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0)
    held_out: float = 0.2
    random_floor: bool = True
    cap: float = 80.0
    eval_crop: EvalCrop = None

    @property
    def features(self) -> tuple[str, ...]:
        """See `ProtocolSettings`."""
        return ("patches",)

    def work(self, scale: Scale) -> Work:
        """See `ProtocolSettings`."""
        floors = 1 + self.random_floor
        products = 2 * scale.train * scale.tokens * scale.width**2
        # in float64, which takes twice as long
        return Work({"images": scale.images}, floors * scale.images, operations=2 * floors * products)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_depth_settings(self.cap, self.eval_crop)


@dataclass(frozen=True)
class LinearDepth:
    """A linear map of patch tokens to log metres.

    Args:
        weight (`torch.Tensor` of shape `(width,)`): In float64, as all.
        bias (`torch.Tensor`): One number.
        mean (`float`): The mean of the logarithms of all training pixels that count.
        penalty (`float`): The chosen one of `LinearDepthSettings`.
    """

    weight: torch.Tensor
    bias: torch.Tensor
    mean: float
    penalty: float

    def log_depth(self, patches: torch.Tensor, size: Sequence[int]) -> torch.Tensor:
        """Log metres `(batch, height, width)` of patch tokens `(batch, rows, columns, width)`, bilinearly brought to a size."""
        logs = patches.double() @ self.weight + self.bias
        return upsample(logs[:, None], size)[:, 0]


def fit_linear_depth(
    patches: np.ndarray, depth: np.ndarray, settings: LinearDepthSettings, *, seed: int, device: torch.device
) -> LinearDepth:
    """Ridge regression of log metres on patch tokens over all pixels that count.

    A patch stands in it with the mean of its pixels' logarithms, as often as it has such pixels: the normal equations are the
    same as of the pixels one by one.

    Args:
        patches (`numpy.ndarray` of shape `(images, rows, columns, width)`): Patch tokens.
        depth (`numpy.ndarray` of shape `(images, height, width)`): Metres, 0 where unknown.
        seed (`int`): Of the choice of held-out images.

    Raises:
        ValueError: If no pixel counts.
    """
    held_out, grid = hold_out(len(patches), settings.held_out, seed), (patches.shape[1], patches.shape[2])
    shift: torch.Tensor | None = None  # so that the products below do not cancel
    moments = torch.zeros(2, patches.shape[3] + 2, patches.shape[3] + 2, dtype=torch.float64, device=device)
    for start in range(0, len(patches), BLOCK):
        rows = slice(start, start + BLOCK)
        tokens, metres = (torch.from_numpy(np.array(part[rows])).to(device).double() for part in (patches, depth))
        shift = tokens.mean(dim=(0, 1, 2)) if shift is None else shift
        known = (metres > MINIMUM_DEPTH) & (metres < settings.cap)
        counts = patch_sums(known.double(), grid)
        means = patch_sums(torch.where(known, metres, 1).log(), grid) / counts.clamp(min=1)
        table = torch.cat([torch.ones_like(means)[..., None], tokens - shift, means[..., None]], dim=-1)
        for part in (0, 1):
            chosen = torch.from_numpy(held_out[rows] == part).to(device)
            one = table[chosen].flatten(0, 2)
            moments[part].addmm_((one * counts[chosen].flatten()[:, None]).T, one)
    total = moments.sum(dim=0)
    if shift is None or not total[0, 0]:
        raise ValueError(
            f"no training pixel has a depth between {MINIMUM_DEPTH} and {settings.cap} metres: check depth_scale and cap"
        )
    if not moments[:, 0, 0].all():  # one of the parts has no pixel that counts: nothing to choose by
        moments[:] = total / 2
    weight, bias, penalty = fit_ridge(moments[0], moments[1], 1, settings.penalties)
    weight = weight[:, 0]
    return LinearDepth(weight, bias[0] - shift @ weight, float(total[0, -1] / total[0, 0]), penalty)


def measure_linear_depth(
    encoder: Encoder, data: EvaluationData, options: EvaluationOptions, settings: LinearDepthSettings
) -> TaskResult:
    """Errors of depths that are read linearly, in their logarithm, from frozen patch tokens.

    Predictions are bilinearly brought to the size of the images. The details hold the chosen penalty and AbsRel of the floors:
    random weights, and the training pixels' geometric mean everywhere.
    """
    data.train.require("depth")
    data.test.require("depth")

    def fit(model: Encoder) -> tuple[FrozenTokens, LinearDepth]:
        tokens = FrozenTokens(model, data, "depth", options)
        train = tokens.train["patches"], tokens.train["depth"]
        return tokens, fit_linear_depth(*train, settings, seed=options.seed, device=model.device)

    def score(tokens: FrozenTokens, predict: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]) -> ScoredDepth:
        return score_depth(tokens.predictions(predict), settings.cap, settings.eval_crop)

    def score_linear(tokens: FrozenTokens, head: LinearDepth) -> ScoredDepth:
        return score(tokens, lambda patches, truth: head.log_depth(patches, truth.shape[-2:]).exp())

    tokens, head = fit(encoder)
    scored = score_linear(tokens, head)
    constant = score(tokens, lambda _, truth: torch.full_like(truth, math.exp(head.mean)))
    floors = {"constant": constant.numbers["abs_rel"]}
    if settings.random_floor:
        floors["random_weights"] = score_linear(*fit(encoder.random_twin(options.seed))).numbers["abs_rel"]
    title = f"{encoder.name}: linear depth of frozen tokens"
    return scored.result(options, title, {"settings": asdict(settings), "penalty": head.penalty, "floors": floors})


@dataclass(frozen=True)
class DPTSettings(DenseTraining):
    """transformers' DPT neck and head, trained with the trunk.

    The defaults are of desk scale; ZoeDepth and Depth Anything train 5 epochs of 16 images with learning rate 1.6e-4, the
    trunk's a fiftieth of it; Depth Anything V2's ViT-S has twice the channels, (48, 96, 192, 384) and 64.

    Args:
        neck_hidden_sizes (`tuple[int, int, int, int]`): Channels of the four maps.
        fusion_hidden_size (`int`): Channels of the decoder.
        cap (`float`): As in `LinearDepthSettings`; also the largest depth that is predicted.
        eval_crop (`str`, *optional*): As in `LinearDepthSettings`.
        others: As in `DenseTraining`. Images are not scaled by default, which would change their depths.
    """

    steps: int = 200
    learning_rate: float = 1e-3
    trunk_factor: float = 1 / 50
    warmup_steps: int = 20
    scales: tuple[float, float] = (1.0, 1.0)
    neck_hidden_sizes: tuple[int, int, int, int] = (24, 48, 96, 192)
    fusion_hidden_size: int = 32
    cap: float = 80.0
    eval_crop: EvalCrop = None

    def make_head(self, encoder: Encoder, num_classes: int) -> DPTHead:
        """See `DenseTraining`; depth has no classes."""
        sizes = self.neck_hidden_sizes, self.fusion_hidden_size
        return DPTHead(encoder.width, neck_hidden_sizes=sizes[0], fusion_hidden_size=sizes[1], cap=self.cap)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_depth_settings(self.cap, self.eval_crop)


def measure_dpt(
    encoder: Encoder, data: EvaluationData, options: EvaluationOptions, settings: DPTSettings
) -> TaskResult:
    """Errors of the depths of DPT, trained with the trunk by the scale-invariant logarithmic loss."""
    train, test = data.train, data.test
    test.require("depth")

    def measure(model: Encoder, title: str) -> ScoredDepth:
        predict = train_dpt(model, train, settings, options, description=title)
        batches = predicted_batches(predict, test, "depth", options, "depth")
        return score_depth(batches, settings.cap, settings.eval_crop)

    return measure_end_to_end(encoder, train.count, options, settings, measure, "DPT")


def train_dpt(
    encoder: Encoder, samples: Samples, settings: DPTSettings, options: EvaluationOptions, *, description: str
) -> Predict:
    """Trains a copy of a trunk with a fresh DPT head, which gives metres `(batch, height, width)`."""
    make_head = partial(settings.make_head, encoder, 0)
    predict = train_dense(encoder, make_head, samples, settings, options, seed=options.seed, description=description)
    return lambda images: predict(images)[:, 0].exp()  # windows are averaged as logarithms


PROTOCOLS = {
    "depth": EvaluationProtocol(measure_linear_depth, LinearDepthSettings),
    "depth_dpt": EvaluationProtocol(measure_dpt, DPTSettings),
}
