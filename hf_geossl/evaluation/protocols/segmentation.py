"""Semantic segmentation: a linear map of frozen patch tokens, and heads that are trained with the whole trunk.

Images are squares of one size (see `Samples`), so that numbers on ADE20k are not those of papers, which keep the aspect ratio.
Every protocol gives `mean_iou`, `pixel_accuracy` and `mean_class_accuracy`, and IoU by class and floors in the details; data
without `semantic` maps in both splits are refused.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields, replace
from fractions import Fraction
from functools import partial
from types import MappingProxyType
from typing import Any, Literal

import numpy as np
from PIL import Image

from hf_geossl.evaluation.encoders import Encoder
from hf_geossl.evaluation.fitting.dense_training import FrozenTokens, FrozenTraining
from hf_geossl.evaluation.fitting.patch_truth import class_histograms, histogram_cross_entropy
from hf_geossl.evaluation.fitting.segmenters import (
    Scored,
    SegmentationTraining,
    class_names,
    measure_segmenter,
    score,
    train_and_score,
)
from hf_geossl.evaluation.heads.segmentation import LinearHead, SegmentationHead, SemanticFPNHead, UPerNetHead
from hf_geossl.evaluation.options import EvaluationData, EvaluationOptions
from hf_geossl.evaluation.protocol import RANDOM_WEIGHTS, EvaluationProtocol, TaskResult
from hf_geossl.evaluation.samples import Samples
from hf_geossl.evaluation.settings import Scale, Work
from hf_geossl.modeling.dense_heads import pixel_cross_entropy, upsample


@dataclass(frozen=True)
class LinearSegmentationSettings(FrozenTraining):
    """A linear map of frozen patch tokens.

    The defaults are of desk scale; DINOv2 (arXiv 2304.07193) trains 40,000 steps of 16 images of 512 pixels, warm-up 1500, with
    the same optimizer.

    The loss is that of logits which are brought to the size of the images by nearest upsampling, computed from the histogram of
    classes in each patch. `"bilinear"`, what is measured and what papers train, takes full-size maps and several times as long
    (the more pixels a patch has); its mean IoU was .006 to .009 higher on scenes, with trunks in the same order.

    Args:
        loss_upsampling (`"nearest"` or `"bilinear"`): Of the logits in training; predictions are bilinear.
        num_classes (`int`, *optional*): Where the dataset does not name its classes; by default the largest label of the training images is
            the last class.
        others: As in `FrozenTraining`.
    """

    loss_upsampling: Literal["nearest", "bilinear"] = "nearest"
    num_classes: int | None = None


def measure_linear_segmentation(
    encoder: Encoder, data: EvaluationData, options: EvaluationOptions, settings: LinearSegmentationSettings
) -> TaskResult:
    """Measures a linear map of frozen patch tokens after a BatchNorm, bilinearly brought to the size of the images."""
    names = class_names(data.train, settings.num_classes, options, encoder)
    data.test.require("semantic")

    def measure(model: Encoder) -> Scored:
        tokens = FrozenTokens(model, data, "semantic", options)
        make_head = partial(LinearHead, model.width, len(names), standardize=True)
        nearest = settings.loss_upsampling == "nearest"
        compute = histogram_cross_entropy if nearest else pixel_cross_entropy
        head = tokens.fit(
            make_head,
            lambda head, patches, truth: compute(head.classify(patches), truth),
            settings,
            "linear segmentation",
            partial(class_histograms, grid=tokens.grid, num_classes=len(names)) if nearest else lambda truth: truth,
        )
        predictions = tokens.predictions(
            lambda patches, truth: upsample(head.classify(patches), truth.shape[-2:]).argmax(dim=1)
        )
        return score(predictions, names)

    scored, floors = measure(encoder), {}
    if settings.random_floor:
        floors["random_weights"] = measure(encoder.random_twin(options.seed)).numbers["mean_iou"]
    title = f"{encoder.name}: linear segmentation of frozen tokens"
    return scored.result(options, title, {"settings": asdict(settings), "floors": floors})


@dataclass(frozen=True)
class FineTuningSettings(SegmentationTraining):
    """Segmenter's linear decoder, trained with the whole trunk.

    The defaults are of desk scale; Segmenter trains ADE20k for 64 epochs of 8 images, SGD 1e-3, frames and windows of 512
    pixels without overlap. LOCA's own settings are not published.

    Args:
        others: As in `SegmentationTraining`.
    """

    steps: int = 600
    learning_rate: float = 5e-4
    layer_decay: float = 0.9
    warmup_steps: int = 60


def measure_fine_tuned_segmentation(
    encoder: Encoder, data: EvaluationData, options: EvaluationOptions, settings: FineTuningSettings
) -> TaskResult:
    """Measures a linear map of patch tokens that was trained with the whole trunk, at one scale."""
    return measure_segmenter(encoder, data, options, settings, "fine-tuned linear segmentation")


@dataclass(frozen=True)
class FewShotSettings(SegmentationTraining):
    """Fine-tuning on fixed parts of the training images, the smaller ones parts of the larger ones.

    The defaults are of desk scale, with as many steps on few images as on all; see `FineTuningSettings` for Segmenter's own.

    Args:
        shares (`tuple[float, ...]`): Of the training images, each in (0, 1].
        subsets (`int`): How many parts of each share; of the whole, runs with other seeds.
        others: As in `SegmentationTraining`.
    """

    steps: int = 300
    learning_rate: float = 5e-4
    layer_decay: float = 0.9
    shares: tuple[float, ...] = (1 / 32, 1 / 8, 1.0)
    subsets: int = 3

    QUICK = MappingProxyType({"subsets": 2})
    PASSES = 10  # many runs

    def work(self, scale: Scale) -> Work:
        """See `ProtocolSettings`."""
        one = super().work(scale)
        runs = len(self.shares) * self.subsets
        return replace(one, encoded=runs * one.encoded, steps=runs * one.steps, operations=runs * one.operations)


def measure_few_shot_segmentation(
    encoder: Encoder, data: EvaluationData, options: EvaluationOptions, settings: FewShotSettings
) -> TaskResult:
    """Mean IoU after fine-tuning on few images, by their share: mean and standard deviation over subsets.

    The metrics are `mean_iou_1/32` and so on, the mean over subsets, and `mean_iou_1/32_std`. Intervals are over test images,
    not over subsets. Every subset's number is in the details.
    """
    train, test = data.train, data.test
    names = class_names(train, settings.num_classes, options, encoder)
    test.require("semantic")
    models = {"": encoder, **({"random weights, ": encoder.random_twin(options.seed)} if settings.random_floor else {})}

    metrics: dict[str, float] = {}
    intervals: dict[str, tuple[float, float]] = {}
    details: dict[str, Any] = {"settings": asdict(settings), "subsets": {}, "floors": {}}
    pictures: dict[str, Callable[[], Image.Image]] = {}
    for share in settings.shares:
        of = str(Fraction(share).limit_denominator(1000))
        scores: dict[str, list[Scored]] = {name: [] for name in models}
        sizes = []
        for subset in range(settings.subsets):
            seed = options.seed * settings.subsets + subset
            part: Samples = train if share == 1 else train.subset(share, seed)
            sizes.append(part.count)
            description = f"{encoder.name}: {of} of the images, {subset + 1} of {settings.subsets}"
            for name, model in models.items():
                scores[name].append(
                    train_and_score(
                        model,
                        (part, test),
                        names,
                        settings,
                        options,
                        seed=seed,
                        description=name + description,
                    )
                )
        runs, *others = scores.values()
        values, *random = ([run.numbers["mean_iou"] for run in one] for one in (runs, *others))
        metrics[f"mean_iou_{of}"] = float(np.mean(values))
        metrics |= {f"mean_iou_{of}_std": float(np.std(values, ddof=1))} if len(values) > 1 else {}
        rows = np.concatenate([run.rows for run in runs], axis=1)  # (images, runs * classes * classes)
        intervals |= options.intervals(partial(_mean_over_runs, f"mean_iou_{of}", runs), rows)
        details["subsets"][of] = [
            {"mean_iou": run.numbers["mean_iou"], "training_images": size, "iou_per_class": run.iou_per_class}
            for run, size in zip(runs, sizes, strict=True)
        ]
        details["images"] = len(runs[0].rows)
        floors = {RANDOM_WEIGHTS: float(np.mean(random[0]))} if random else {}
        details["floors"][f"mean_iou_{of}"] = {"constant": runs[0].constant_floor, **floors}
        picture = f"samples_{of.replace('/', '_')}"
        pictures[picture] = partial(runs[0].draw, f"{encoder.name}: fine-tuned on {of} of the images")
    return TaskResult(metrics, intervals, details, pictures)


def _mean_over_runs(name: str, runs: Sequence[Scored], sums: np.ndarray) -> dict[str, float]:
    """The mean of the runs' mean IoU, of confusion matrices `(runs * classes * classes,)` of the same images."""
    parts = np.split(sums, len(runs))
    return {
        name: float(np.mean([run.metric.summarize(part)["mean_iou"] for run, part in zip(runs, parts, strict=True)]))
    }


def _head_settings(settings: SegmentationTraining) -> dict[str, Any]:
    """The settings that are arguments of the head: those beyond the ones of training."""
    training = {field.name for field in fields(SegmentationTraining)}
    return {name: value for name, value in asdict(settings).items() if name not in training}


@dataclass(frozen=True)
class SemanticFPNSettings(SegmentationTraining):
    """A feature pyramid over four layers and its head, trained with the trunk.

    Widths, dropout, weight decay and schedule are the GTSA authors'; steps, warm-up, crop and learning rate are of desk scale.
    Theirs: 40,000 steps of 16 images, warm-up 1500, learning rate 6e-5, frames of 512 pixels.

    Args:
        pyramid_channels (`int`): Channels of the pyramid.
        head_channels (`int`): Channels of its head.
        dropout (`float`): Share of channels that are dropped before the last layer.
        others: As in `SegmentationTraining`.
    """

    steps: int = 200
    learning_rate: float = 5e-4
    warmup_steps: int = 20
    pyramid_channels: int = 256
    head_channels: int = 128
    dropout: float = 0.1

    def make_head(self, encoder: Encoder, num_classes: int) -> SegmentationHead:
        """See `DenseTraining`."""
        return SemanticFPNHead(encoder, num_classes, **_head_settings(self))


def measure_semantic_fpn(
    encoder: Encoder, data: EvaluationData, options: EvaluationOptions, settings: SemanticFPNSettings
) -> TaskResult:
    """Measures Semantic FPN, trained with the whole trunk on all training images."""
    return measure_segmenter(encoder, data, options, settings, "Semantic FPN")


@dataclass(frozen=True)
class UPerNetSettings(SegmentationTraining):
    """UPerNet's decoder and auxiliary head of transformers over four layers, trained with the trunk.

    The defaults are of desk scale; iBOT's recipe, which EquiCoherent follows: 160,000 steps of 16 images, frames of 512 pixels,
    512 channels (256 auxiliary), learning rate 8e-5, weight decay .05, warm-up 1500, layer decay .65 (ViT-S) to .9.

    Args:
        hidden_size (`int`): Channels of the decoder.
        auxiliary_channels (`int`): Channels of the auxiliary head, on the third map.
        auxiliary_weight (`float`): Of its cross-entropy.
        pool_scales (`tuple[int, ...]`): Cells a side that the last map is pooled to.
        others: As in `SegmentationTraining`.
    """

    steps: int = 200
    learning_rate: float = 5e-4
    layer_decay: float = 0.9
    weight_decay: float = 0.05
    warmup_steps: int = 20
    hidden_size: int = 64
    auxiliary_channels: int = 64
    auxiliary_weight: float = 0.4
    pool_scales: tuple[int, ...] = (1, 2, 3, 6)

    def make_head(self, encoder: Encoder, num_classes: int) -> SegmentationHead:
        """See `DenseTraining`."""
        return UPerNetHead(encoder, num_classes, **_head_settings(self))

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.batch_size < 2:
            raise ValueError(
                f"batch_size must be at least 2 for the BatchNorm of what is pooled to one cell, got {self.batch_size}"
            )


def measure_upernet(
    encoder: Encoder, data: EvaluationData, options: EvaluationOptions, settings: UPerNetSettings
) -> TaskResult:
    """Measures UPerNet, trained with the whole trunk on all training images."""
    return measure_segmenter(encoder, data, options, settings, "UPerNet")


PROTOCOLS = {
    "segmentation": EvaluationProtocol(measure_linear_segmentation, LinearSegmentationSettings),
    "segmentation_few_shot": EvaluationProtocol(measure_few_shot_segmentation, FewShotSettings),
    "segmentation_finetune": EvaluationProtocol(measure_fine_tuned_segmentation, FineTuningSettings),
    "semantic_fpn": EvaluationProtocol(measure_semantic_fpn, SemanticFPNSettings),
    "upernet": EvaluationProtocol(measure_upernet, UPerNetSettings),
}
