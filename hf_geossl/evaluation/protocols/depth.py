"""Depth of every pixel: a linear map of frozen patch tokens, and DPT trained with the trunk."""

import math
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, Literal

import numpy as np
import torch
from torch import nn
from transformers import DPTConfig
from transformers.models.dpt.modeling_dpt import DPTDepthEstimationHead, DPTNeck

from hf_geossl.evaluation.bootstrap import interval
from hf_geossl.evaluation.encoders import Encoder, mixed_precision
from hf_geossl.evaluation.features import compute_features
from hf_geossl.evaluation.heads.pyramid import layers_of_maps
from hf_geossl.evaluation.metrics import depth_errors
from hf_geossl.evaluation.options import RANDOM_WEIGHTS, EvaluationData, EvaluationOptions, Task, TaskResult
from hf_geossl.evaluation.protocols.dense_training import DenseTraining, require, shuffled_rows, slide, train_dense
from hf_geossl.evaluation.protocols.fit import check_settings, fit, seeded
from hf_geossl.evaluation.protocols.segmenters import SHOWN, Batch, upsample
from hf_geossl.evaluation.samples import Samples

MINIMUM = 1e-3  # metres; what is nearer has no truth
EvalCrop = Literal[None, "eigen", "garg"]
# first and last row, first and last column (exclusive), in parts of the map's height and width
EVAL_CROPS = {
    "eigen": (45 / 480, 471 / 480, 41 / 640, 601 / 640),
    "garg": (0.40810811, 0.99189189, 0.03594771, 0.96405229),
}


def crop_mask(eval_crop: EvalCrop, height: int, width: int) -> np.ndarray:
    """The pixels that count by a published crop.

    Args:
        eval_crop (`str`, *optional*): "eigen", of NYU Depth v2: rows 45 to 471 and columns 41 to 601 of 480 x 640; "garg", of
            KITTI: the lower part without the sides; None for all pixels. Eigen's own crop of KITTI has other shares.
        height, width (`int`): Of the map. The crop is taken in parts of them and rounded down.

    Returns:
        `numpy.ndarray` of shape `(height, width)`, bool.

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


def silog_loss(log_depth: torch.Tensor, depth: torch.Tensor, cap: float, mean_weight: float = 0.5) -> torch.Tensor:
    """Scale-invariant logarithmic error: with g = log prediction - log truth, sqrt(mean(g^2) - mean_weight * mean(g)^2) over all
    pixels of the batch whose truth lies between 1 mm and the cap; 0 where there is none.

    Args:
        log_depth (`torch.Tensor` of shape `(batch, height, width)`): Logarithm of the predicted metres.
        depth (`torch.Tensor` of shape `(batch, height, width)`): True metres, 0 where unknown.
        cap (`float`): Metres from which on depths do not count.
        mean_weight (`float`): 1 forgives any common factor, 0 none.

    Returns:
        `torch.Tensor` of shape `()`.

    Source: Eigen et al., NIPS 2014, equation 4; its root as in Depth Anything V2 (arXiv 2406.09414).
    """
    known = (depth > MINIMUM) & (depth < cap)
    count = known.sum().clamp(min=1)
    error = torch.where(known, log_depth.float() - depth.clamp(min=MINIMUM).log(), 0.0)
    variance = error.square().sum() / count - mean_weight * (error.sum() / count).square()
    return variance.clamp(min=1e-12).sqrt()  # the root's slope is infinite at 0


def _score(batches: Iterator[Batch], cap: float, eval_crop: EvalCrop) -> tuple[np.ndarray, list[np.ndarray]]:
    """Sums of errors, one row an image, and some images with truth and prediction."""
    sums: list[np.ndarray] = []
    shown: list[Batch] = []
    for images, truth, predicted in batches:
        predicted = predicted.float().cpu()
        valid = np.broadcast_to(crop_mask(eval_crop, *truth.shape[-2:]), truth.shape)
        sums.append(depth_errors.sums_of(predicted, truth, valid=valid, minimum=MINIMUM, cap=cap))
        if len(shown) * len(images) < SHOWN:
            shown.append((images, truth, predicted))
    return np.concatenate(sums), [torch.cat(parts)[:SHOWN].numpy() for parts in zip(*shown, strict=True)]


def _result(
    sums: np.ndarray, shown: list[np.ndarray], options: EvaluationOptions, title: str, details: dict[str, Any]
) -> TaskResult:
    intervals = {}
    if options.bootstrap:
        intervals = interval(depth_errors.summarize, sums, repeats=options.bootstrap, seed=options.seed)
    details = {**details, "images": int(sums[:, -1].sum())}
    metrics = depth_errors.summarize(sums.sum(axis=0))
    return TaskResult(metrics, intervals, details, {"samples": partial(_draw, shown, title)})


def _draw(shown: list[np.ndarray], title: str) -> Any:
    from hf_geossl.evaluation.pictures import depth_samples

    images, truths, predictions = shown
    return depth_samples(images.transpose(0, 2, 3, 1), truths, predictions, title)


def _mean_log_depth(depths: np.ndarray, cap: float) -> float:
    """The mean logarithm of the metres that count."""
    total, count = 0.0, 0
    for depth in depths:
        logs = np.log(depth[(depth > MINIMUM) & (depth < cap)], dtype=np.float64)
        total, count = total + float(logs.sum()), count + len(logs)
    if count == 0:
        raise ValueError(f"no training pixel has a depth between {MINIMUM} and {cap} metres: check depth_scale and cap")
    return total / count


def _check_depth_settings(settings: Any) -> None:
    check_settings(settings)
    if not settings.cap > MINIMUM:
        raise ValueError(f"cap must be above {MINIMUM} metres, got {settings.cap}")
    if settings.eval_crop is not None and settings.eval_crop not in EVAL_CROPS:
        raise ValueError(f"eval_crop must be one of {', '.join(EVAL_CROPS)}, or None, got {settings.eval_crop!r}")


# ---- frozen ----


@dataclass(frozen=True)
class LinearDepthSettings:
    """A linear map of frozen patch tokens to log depth. The defaults are of desk scale.

    Args:
        steps (`int`): Optimizer steps.
        batch_size (`int`): Images a step.
        learning_rate, weight_decay (`float`): Of AdamW.
        warmup_steps (`int`): Steps in which the learning rate rises; then it falls linearly.
        cap (`float`): Metres from which on depths do not count: 80 on scenes (where the sky is) and KITTI, 10 on NYU.
        eval_crop (`str`, *optional*): Test pixels that count, see `crop_mask`: "eigen" on NYU, "garg" on KITTI; all by
            default. It is taken in parts of the map that is measured, which `Samples` cuts as a square out of the image.
        random_floor (`bool`): Whether the same architecture with random weights is measured too.
    """

    steps: int = 1000
    batch_size: int = 16
    learning_rate: float = 3e-3
    weight_decay: float = 1e-4
    warmup_steps: int = 50
    cap: float = 80.0
    eval_crop: EvalCrop = None
    random_floor: bool = True

    def __post_init__(self) -> None:
        _check_depth_settings(self)


class LinearDepthHead(nn.Module):
    """A BatchNorm and one linear map of each patch token to log metres, brought to the size of the image.

    Args:
        width (`int`): Channels of a token.
        mean_log_depth (`float`): What it says at first.
    """

    def __init__(self, width: int, mean_log_depth: float) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(width)
        self.linear = nn.Conv2d(width, 1, 1)
        nn.init.zeros_(self.linear.weight)
        nn.init.constant_(self.linear.bias, mean_log_depth)  # type: ignore[arg-type]

    def forward(self, patches: torch.Tensor, size: Any) -> torch.Tensor:
        """Log metres `(batch, height, width)` of patch tokens `(batch, rows, columns, width)`."""
        return upsample(self.linear(self.norm(patches.permute(0, 3, 1, 2))), size)[:, 0]


def measure_linear_depth(
    encoder: Encoder, data: EvaluationData, options: EvaluationOptions, settings: LinearDepthSettings
) -> TaskResult:
    """Errors of depths that are read linearly, in their logarithm, from frozen patch tokens.

    Args:
        encoder (`Encoder`): The model.
        data (`EvaluationData`): With `depth` in both splits.
        options (`EvaluationOptions`): How to evaluate.
        settings (`LinearDepthSettings`): The protocol's own numbers.

    Returns:
        `TaskResult`: `abs_rel`, `rmse` (metres), `delta1`; in the details AbsRel of the floors: random weights, and the
        training pixels' geometric mean everywhere.

    Raises:
        ValueError: If the data have no depth, or none between 1 mm and the cap.
    """
    require(data.train, "depth")
    require(data.test, "depth")
    sums, shown, constant = _score_frozen(encoder, data, options, settings)
    floors = {"constant": constant}
    if settings.random_floor:
        random_sums, _, _ = _score_frozen(encoder.random_twin(options.seed), data, options, settings)
        floors["random_weights"] = depth_errors.summarize(random_sums.sum(axis=0))["abs_rel"]
    title = f"{encoder.name}: linear depth of frozen tokens"
    return _result(sums, shown, options, title, {"settings": asdict(settings), "floors": floors})


def _score_frozen(
    encoder: Encoder, data: EvaluationData, options: EvaluationOptions, settings: LinearDepthSettings
) -> tuple[np.ndarray, list[np.ndarray], float]:
    """Errors and pictures of the head's predictions, and the AbsRel of one depth everywhere."""
    train = compute_features(encoder, data.train, ["patches", "depth"], options)
    test = compute_features(encoder, data.test, ["patches", "depth", "image"], options)
    device = encoder.device
    mean = _mean_log_depth(train["depth"], settings.cap)

    def on_device(array: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(np.array(array)).to(device)

    def batches() -> Iterator[dict[str, Any]]:
        for rows in shuffled_rows(len(train["patches"]), settings.batch_size, options.seed):
            yield {name: on_device(column[rows]) for name, column in train.items()}

    def compute_loss(batch: dict[str, Any]) -> torch.Tensor:
        return silog_loss(head(batch["patches"], batch["depth"].shape[-2:]), batch["depth"], settings.cap)

    with seeded(options.seed, device):
        head = LinearDepthHead(encoder.width, mean).to(device)
        fit(
            torch.optim.AdamW(head.parameters(), settings.learning_rate, weight_decay=settings.weight_decay),
            compute_loss,
            batches(),
            options,
            steps=settings.steps,
            description=f"{encoder.name}: linear depth",
            warmup_steps=settings.warmup_steps,
        )
    head.eval()

    def predictions(predict: Callable[[slice, torch.Tensor], torch.Tensor]) -> Iterator[Batch]:
        for start in range(0, len(test["patches"]), options.batch_size):
            rows = slice(start, start + options.batch_size)
            truth = torch.from_numpy(np.array(test["depth"][rows]))
            with torch.no_grad():
                yield torch.from_numpy(np.array(test["image"][rows])), truth, predict(rows, truth)

    sums, shown = _score(
        predictions(lambda rows, truth: head(on_device(test["patches"][rows]), truth.shape[-2:]).exp()),
        settings.cap,
        settings.eval_crop,
    )
    constant = predictions(lambda rows, truth: torch.full_like(truth, math.exp(mean)))
    flat, _ = _score(constant, settings.cap, settings.eval_crop)
    return sums, shown, depth_errors.summarize(flat.sum(axis=0))["abs_rel"]


# ---- DPT ----


@dataclass(frozen=True)
class DPTSettings(DenseTraining):
    """transformers' DPT neck and head, trained with the trunk. The defaults are of desk scale; ZoeDepth and Depth Anything train
    5 epochs of 16 images with learning rate 1.6e-4, the trunk's a fiftieth of it; Depth Anything V2's ViT-S has twice the
    channels, (48, 96, 192, 384) and 64.

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
        _check_depth_settings(self)


class DPTHead(nn.Module):
    """transformers' DPT neck and head over layers 2, 5, 8 and 11 of 12, without the class token; a sigmoid in the place of the
    last ReLU says which part of the cap the depth is, as in Depth Anything V2's metric models.

    Args:
        width (`int`): Channels of a token.
        settings (`DPTSettings`): Widths and cap.

    Source: DPT (arXiv 2103.13413), section 3; Depth Anything V2 (arXiv 2406.09414).
    """

    def __init__(self, width: int, settings: DPTSettings) -> None:
        super().__init__()
        config = DPTConfig(
            hidden_size=width,
            neck_hidden_sizes=list(settings.neck_hidden_sizes),
            fusion_hidden_size=settings.fusion_hidden_size,
            readout_type="ignore",
        )
        self.cap = settings.cap
        self.neck = DPTNeck(config)
        self.head = DPTDepthEstimationHead(config)
        self.head.head[-1] = nn.Identity()

    def forward(self, encoder: Encoder, pixel_values: torch.Tensor) -> torch.Tensor:
        """Log metres `(batch, height, width)` of normalised images."""
        maps = encoder.maps(pixel_values, layers_of_maps(encoder.num_layers))
        rows, columns = maps[0].shape[-2:]
        tokens = [part.flatten(2).transpose(1, 2) for part in maps]
        tokens = [torch.cat([part[:, :1], part], dim=1) for part in tokens]  # the first is what DPT ignores
        features = self.neck(tokens, rows, columns)
        with torch.autocast(pixel_values.device.type, enabled=False):  # bfloat16 would round depths to a percent
            logits = self.head([part.float() for part in features])
        logits = upsample(logits[:, None], pixel_values.shape[-2:])[:, 0]
        return nn.functional.logsigmoid(logits) + math.log(self.cap)


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

    def measure(model: Encoder) -> tuple[np.ndarray, list[np.ndarray]]:
        predict = train_dpt(model, train, settings, options, description=f"{model.name}: DPT")
        return _score(_predictions(predict, test, options), settings.cap, settings.eval_crop)

    sums, shown = measure(encoder)
    details: dict[str, Any] = {"settings": asdict(settings), "training_images": train.count}
    if settings.random_floor:
        floor = depth_errors.summarize(measure(encoder.random_twin(options.seed))[0].sum(axis=0))
        details["floors"] = {metric: {RANDOM_WEIGHTS: value} for metric, value in floor.items()}
    return _result(sums, shown, options, f"{encoder.name}: DPT", details)


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
        head = DPTHead(encoder.width, settings).to(device).train()
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


TASKS = {
    "depth": Task(
        measure_linear_depth,
        LinearDepthSettings,
        "depth, linear map of frozen patch tokens to log metres (AbsRel, RMSE, delta1)",
    ),
    "depth_dpt": Task(measure_dpt, DPTSettings, "depth, DPT trained end to end (AbsRel, RMSE, delta1)"),
}
