"""Depth of every pixel: a linear map of frozen patch tokens, and transformers' DPT, trained with the trunk.

Both give `abs_rel`, `rmse` (metres) and `delta1`, and refuse data without `depth` in both splits.
"""

import math
from dataclasses import asdict, dataclass

import torch

from hf_geossl.evaluation.encoders import Encoder
from hf_geossl.evaluation.fitting.dense_training import (
    DenseTraining,
    FrozenTokens,
    FrozenTraining,
    Predict,
    predicted_batches,
    require,
    train_dense,
)
from hf_geossl.evaluation.fitting.depth_scores import (
    EvalCrop,
    ScoredDepth,
    check_depth_settings,
    mean_log_depth,
    score_depth,
)
from hf_geossl.evaluation.fitting.segmenters import measure_end_to_end
from hf_geossl.evaluation.heads.depth import DPTHead, LinearDepthHead, silog_loss
from hf_geossl.evaluation.options import EvaluationData, EvaluationOptions
from hf_geossl.evaluation.protocol import EvaluationProtocol, TaskResult
from hf_geossl.evaluation.samples import Samples


@dataclass(frozen=True)
class LinearDepthSettings(FrozenTraining):
    """A linear map of frozen patch tokens to log depth; the defaults are of desk scale.

    Args:
        cap (`float`): Metres from which on depths do not count: 80 on scenes (where the sky is) and KITTI, 10 on NYU.
        eval_crop (`str`, *optional*): Test pixels that count, see `crop_mask`: "eigen" on NYU, "garg" on KITTI; all by
            default. It is taken in parts of the map that is measured, which `Samples` cuts as a square out of the image.
        others: As in `FrozenTraining`.
    """

    learning_rate: float = 3e-3
    cap: float = 80.0
    eval_crop: EvalCrop = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_depth_settings(self.cap, self.eval_crop)


def measure_linear_depth(
    encoder: Encoder, data: EvaluationData, options: EvaluationOptions, settings: LinearDepthSettings
) -> TaskResult:
    """Errors of depths that are read linearly, in their logarithm, from frozen patch tokens.

    The details hold AbsRel of the floors: random weights, and the training pixels' geometric mean everywhere.
    """
    require(data.train, "depth")
    require(data.test, "depth")
    scored, constant = _score_frozen(encoder, data, options, settings)
    floors = {"constant": constant}
    if settings.random_floor:
        random, _ = _score_frozen(encoder.random_twin(options.seed), data, options, settings)
        floors["random_weights"] = random.numbers["abs_rel"]
    title = f"{encoder.name}: linear depth of frozen tokens"
    return scored.result(options, title, {"settings": asdict(settings), "floors": floors})


def _score_frozen(
    encoder: Encoder, data: EvaluationData, options: EvaluationOptions, settings: LinearDepthSettings
) -> tuple[ScoredDepth, float]:
    """The score of the head's predictions, and the AbsRel of one depth everywhere."""
    tokens = FrozenTokens(encoder, data, "depth", options)
    mean = mean_log_depth(tokens.train["depth"], settings.cap)
    head = tokens.fit(
        lambda: LinearDepthHead(encoder.width, mean),
        lambda head, patches, truth: silog_loss(head(patches, truth.shape[-2:]), truth, settings.cap),
        settings,
        "linear depth",
    )
    scored, constant = (
        score_depth(tokens.predictions(predict), settings.cap, settings.eval_crop)
        for predict in (
            lambda patches, truth: head(patches, truth.shape[-2:]).exp(),
            lambda _, truth: torch.full_like(truth, math.exp(mean)),
        )
    )
    return scored, constant.numbers["abs_rel"]


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

    def __post_init__(self) -> None:
        super().__post_init__()
        check_depth_settings(self.cap, self.eval_crop)


def measure_dpt(
    encoder: Encoder, data: EvaluationData, options: EvaluationOptions, settings: DPTSettings
) -> TaskResult:
    """Errors of the depths of DPT, trained with the trunk by the scale-invariant logarithmic loss."""
    train, test = data.train, data.test
    require(test, "depth")

    def measure(model: Encoder, title: str) -> ScoredDepth:
        predict = train_dpt(model, train, settings, options, description=title)
        batches = predicted_batches(predict, test, "depth", options, "depth")
        return score_depth(batches, settings.cap, settings.eval_crop)

    return measure_end_to_end(encoder, train.count, options, settings, measure, "DPT")


def train_dpt(
    encoder: Encoder, samples: Samples, settings: DPTSettings, options: EvaluationOptions, *, description: str
) -> Predict:
    """Trains a copy of a trunk with a fresh DPT head, which gives metres `(batch, height, width)`."""

    def make_head() -> DPTHead:
        return DPTHead(
            encoder.width,
            neck_hidden_sizes=settings.neck_hidden_sizes,
            fusion_hidden_size=settings.fusion_hidden_size,
            cap=settings.cap,
        )

    predict = train_dense(encoder, make_head, samples, settings, options, seed=options.seed, description=description)
    return lambda images: predict(images)[:, 0].exp()  # windows are averaged as logarithms


PROTOCOLS = {
    "depth": EvaluationProtocol(measure_linear_depth, LinearDepthSettings),
    "depth_dpt": EvaluationProtocol(measure_dpt, DPTSettings),
}
