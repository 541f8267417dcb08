"""Depth of every pixel by transformers' DPT, trained with the trunk."""

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

import torch

from hf_geossl.evaluation.encoders import Encoder
from hf_geossl.evaluation.fitting.dense_training import DenseTraining, require, slide, train_dense
from hf_geossl.evaluation.fitting.depth_scores import EvalCrop, ScoredDepth, check_depth_settings, score_depth
from hf_geossl.evaluation.fitting.fit import seeded
from hf_geossl.evaluation.fitting.segmenters import Batch
from hf_geossl.evaluation.heads.depth import DPTHead, silog_loss
from hf_geossl.evaluation.options import EvaluationData, EvaluationOptions
from hf_geossl.evaluation.precision import mixed_precision
from hf_geossl.evaluation.protocol import RANDOM_WEIGHTS, EvaluationProtocol, TaskResult
from hf_geossl.evaluation.samples import Samples
from hf_geossl.evaluation.settings import check_settings


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
        check_settings(self)
        check_depth_settings(self.cap, self.eval_crop)


def measure_dpt(
    encoder: Encoder, data: EvaluationData, options: EvaluationOptions, settings: DPTSettings
) -> TaskResult:
    """Errors of the depths of DPT, trained with the trunk by the scale-invariant logarithmic loss.

    Args:
        encoder, data, options, settings: As in `measure_linear_depth`.

    Returns:
        `TaskResult`: `abs_rel`, `rmse` (metres), `delta1`; with `random_floor` the details hold the floor of each.

    Raises:
        ValueError: If the data have no depth.
    """
    train, test = data.train, data.test
    require(test, "depth")

    def measure(model: Encoder) -> ScoredDepth:
        predict = train_dpt(model, train, settings, options, description=f"{model.name}: DPT")
        return score_depth(_predictions(predict, test, options), settings.cap, settings.eval_crop)

    scored = measure(encoder)
    details: dict[str, Any] = {"settings": asdict(settings), "training_images": train.count}
    if settings.random_floor:
        floor = measure(encoder.random_twin(options.seed)).numbers
        details["floors"] = {metric: {RANDOM_WEIGHTS: value} for metric, value in floor.items()}
    return scored.result(options, f"{encoder.name}: DPT", details)


def train_dpt(
    encoder: Encoder, samples: Samples, settings: DPTSettings, options: EvaluationOptions, *, description: str
) -> Callable[[torch.Tensor], torch.Tensor]:
    """Trains a copy of a trunk with a fresh DPT head.

    Args:
        encoder (`Encoder`): The trunk, left as it is.
        samples (`Samples`): With `depth`.
        settings (`DPTSettings`): How.
        options (`EvaluationOptions`): Workers, progress and seed.
        description (`str`): For the progress bar.

    Returns:
        `Callable`: Maps images `(batch, 3, height, width)`, uint8, to metres `(batch, height, width)`.
    """
    device = encoder.device
    with seeded(options.seed, device):
        trunk = encoder.trainable_copy()
        head = DPTHead(
            encoder.width,
            neck_hidden_sizes=settings.neck_hidden_sizes,
            fusion_hidden_size=settings.fusion_hidden_size,
            cap=settings.cap,
        )
        head.to(device).train()
        train_dense(
            trunk,
            head,
            samples,
            "depth",
            lambda pixel_values, depth: silog_loss(head(trunk, pixel_values), depth, settings.cap),
            settings,
            options,
            unknown=0,
            seed=options.seed,
            description=description,
        )
    trunk.module.eval()
    head.eval()
    window = settings.crop_size or samples.size

    @torch.no_grad()
    def predict(images: torch.Tensor) -> torch.Tensor:
        with mixed_precision(device):
            pixel_values = trunk.normalize(images)
            return slide(lambda part: head(trunk, part)[:, None], pixel_values, window, window)[:, 0].exp()

    return predict


def _predictions(
    predict: Callable[[torch.Tensor], torch.Tensor], samples: Samples, options: EvaluationOptions
) -> Iterator[Batch]:
    with options.progress_bar(f"depth of {samples.name}", samples.count) as bar:
        for batch in samples.batches(options.batch_size, num_workers=options.num_workers):
            yield batch["image"], batch["depth"], predict(batch["image"])
            bar.update(len(batch["image"]))


PROTOCOLS = {"depth_dpt": EvaluationProtocol(measure_dpt, DPTSettings)}
