"""Equivariance: how well a transformation is regressed on frozen features of an image and of the transformed image.

Two leaks make such numbers worthless: pixels that come in at the border reveal a motion, and gravity reveals the angle in the
transformed image alone. So scenes are seen from above, rendered larger and cut after the transformation; and beside each
number stand those of the transformed image alone, random weights, a grey and a thumbnail. The paper's protocol, images
with padding, is measured to compare with it.

A rotation between images whose directions are all alike cannot be predicted by ridge regression on both images' features side
by side, whatever these contain: its prediction is a sum of a function of each image, and neither correlates with the angle. So
ridge regression on products of the two images' features ("bilinear") stands beside it.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property, partial
from types import MappingProxyType
from typing import Any

import numpy as np
from PIL import Image

from hf_geossl.evaluation.bootstrap import metric_intervals
from hf_geossl.evaluation.encoders import Encoder
from hf_geossl.evaluation.features import THUMBNAIL_SIDE, compute_features, grey
from hf_geossl.evaluation.fitting.classifiers import hold_out
from hf_geossl.evaluation.fitting.perceptrons import Perceptrons
from hf_geossl.evaluation.fitting.regression import BilinearRidge, Pairs, Ridge
from hf_geossl.evaluation.metrics.r2 import R2
from hf_geossl.evaluation.options import EvaluationData, EvaluationOptions
from hf_geossl.evaluation.protocol import EvaluationProtocol, TaskResult
from hf_geossl.evaluation.protocols.transformations import (
    ROTATION,
    TRANSFORMATIONS,
    SampledTransform,
    larger_size,
    target_ranges,
    untouched,
)
from hf_geossl.evaluation.settings import INTERVAL, PASS, ProtocolSettings, Scale, Work

MODEL = "model"
FLOORS = ("transformed image alone", "random weights", "grey thumbnail", "thumbnail")
ANGLE_BINS = 9
ANGLES = (np.arange(ANGLE_BINS) + 0.5) * 2 * ROTATION / ANGLE_BINS - ROTATION  # in the middle of the bins
MEAN_ANGLE = "mean angle"  # the same prediction for every pair
MOTIONS = ("rotation", "translation")  # the transformations that bring something in at the border
MOVED = 15  # passes over the numbers of an image, to transform it
FEW, FEW_HIDDEN = 1000, 256  # below so many images 1.8 million weights a perceptron learn nothing more
BORDERLESS_MODE, PADDED_MODE = "topdown", "scene"  # of the scenes, whatever the data's mode


@dataclass(frozen=True)
class EquivarianceSettings(ProtocolSettings):
    """Regression of the transformation on frozen features.

    Args:
        transformations (`tuple[str, ...]`): Of "rotation", "translation", "color" and "blur". Translation is reported, not
            claimed: 10 pixels of 224 are less than a patch.
        train_images, test_images (`int`): At most so many. The paper's are 50,000 and 10,000.
        transformations_per_image (`int`): How often each image is transformed by each of them.
        feature (`str`): Which feature of `compute_features`, of the image and of the transformed image; "both" is class
            token and mean patch token.
        penalties (`tuple[float, ...]`): Of ridge regression, see `Ridge`; the best on held-out training images is taken.
        held_out (`float`): Share of the training images that it is chosen on.
        components (`int`): Principal components whose products are regressed on, see `BilinearRidge`; 0 leaves that out.
        mlp_epochs (`int`): Epochs of the perceptron, see `Perceptrons`; 0 leaves it out.
        mlp_hidden_size (`int`): Of both hidden layers; of fewer than 1,000 training images (`limit`) at most 256.
        mlp_batch_size, mlp_learning_rate: Of the perceptron.
        padded (`bool`): Whether the paper's protocol is measured as well.

    Source: EquiCoherent (arXiv 2503.18753), Table 2 and the benchmark of SIE (arXiv 2302.10283); borderless images from
    above, ridge regressions and the floors are this library's.
    """

    transformations: tuple[str, ...] = TRANSFORMATIONS
    train_images: int = 4000
    test_images: int = 1000
    transformations_per_image: int = 4
    feature: str = "both"
    penalties: tuple[float, ...] = (
        *(1e-5, 3e-5, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 3e-1),
        *(1.0, 3.0, 10.0, 30.0, 100.0, 300.0),
    )
    held_out: float = 0.2
    components: int = 32
    mlp_epochs: int = 100
    mlp_hidden_size: int = 1024
    mlp_batch_size: int = 256
    mlp_learning_rate: float = 1e-3
    padded: bool = True

    QUICK = MappingProxyType(
        {"transformations_per_image": 2, "components": 16, "mlp_epochs": 30, "mlp_hidden_size": 128}
    )

    def work(self, scale: Scale) -> Work:
        """See `ProtocolSettings`."""
        train, test = min(scale.train, self.train_images), min(scale.test, self.test_images)
        moving = sum(name in MOTIONS for name in self.transformations)
        fits = len(self.transformations) + (len(self.transformations) + moving if self.padded else 0)
        repeats = self.transformations_per_image
        encoded = 2 * (train + test) * (1 + self.padded + repeats * fits)
        thumbnails = (THUMBNAIL_SIDE**2, scale.channels * THUMBNAIL_SIDE**2)
        widths = (4 * scale.width, 2 * scale.width, 4 * scale.width, *(2 * pixels for pixels in thumbnails))
        hidden = self.mlp_hidden_size
        perceptrons = 6.0 * self.mlp_epochs * train * sum(width * hidden + hidden**2 for width in widths)
        products = self.components**2 + 2 * self.components
        factors = 2 / 3 * (len(self.penalties) + 1)  # in float64, which takes twice as long, one by one
        solving = factors * sum(width**3 + products**3 for width in widths)
        moments = 4.0 * repeats * (train + test) * sum(width**2 + products**2 for width in widths)
        moved = MOVED * PASS * scale.channels * larger_size(math.isqrt(scale.pixels)) ** 2 * encoded
        steps = fits * self.mlp_epochs * max(1, train // self.mlp_batch_size)
        steps += INTERVAL * (2 + bool(self.components)) * (fits + len(FLOORS) * len(self.transformations))
        kinds = {"from above, larger": train + test, **({"images": train + test} if self.padded else {})}
        return Work(kinds, encoded, steps, moved + fits * (perceptrons + solving + moments))

    def for_limit(self, limit: int) -> dict[str, object]:
        """See `ProtocolSettings`."""
        return {"mlp_hidden_size": min(self.mlp_hidden_size, FEW_HIDDEN)} if limit < FEW else {}

    def __post_init__(self) -> None:
        super().__post_init__()
        unknown = sorted(set(self.transformations) - set(TRANSFORMATIONS))
        if unknown or not self.transformations:
            raise ValueError(
                f"transformations must be some of {', '.join(TRANSFORMATIONS)}, got {', '.join(unknown) or 'none'}"
            )


@dataclass(frozen=True)
class Fitted:
    """Predictions of a regression on one kind of features for the test images: `(transformations * images, outputs)`."""

    predictions: np.ndarray
    truth: np.ndarray
    images: int

    @cached_property
    def rows(self) -> np.ndarray:
        """What each image, with all of its transformations, contributes to R2: `(images, k)`."""
        rows = R2().rows_of(self.predictions, self.truth)
        return rows.reshape(-1, self.images, rows.shape[1]).sum(axis=0)

    @property
    def metrics(self) -> dict[str, float]:
        """`r2`, the mean over outputs, and `r2_variance_weighted`."""
        return R2().numbers_of(self.rows)


class _Bench:
    """Features of one kind of images, cached, and the regressions on them."""

    def __init__(
        self,
        encoder: Encoder,
        data: EvaluationData,
        options: EvaluationOptions,
        settings: EquivarianceSettings,
        *,
        padding: str | None,
    ) -> None:
        self.options, self.settings, self.padding, self.size = options, settings, padding, data.size
        self.encoders = {MODEL: encoder, "random weights": encoder.random_twin(options.seed)}
        mode, size = (BORDERLESS_MODE, larger_size(data.size)) if padding is None else (PADDED_MODE, data.size)
        self.samples = {}
        for split, limit in ((data.train_split, settings.train_images), (data.test_split, settings.test_images)):
            part = replace(data, limit=min(limit, data.limit or limit))
            self.samples[split] = part.samples(split, size=size, mode=mode)
        self.train, self.test = data.train_split, data.test_split
        self.name = self.samples[self.test].name
        self.train_images = 0  # counted when they have been read

    def pairs(self, transformation: str, split: str) -> dict[str, Pairs]:
        """The features that are compared, by name."""
        samples, column = self.samples[split], self.settings.feature
        center = untouched(self.size)
        targets: list[np.ndarray] = []
        parts: dict[str, list[tuple[np.ndarray, ...]]] = {name: [] for name in (MODEL, *FLOORS)}
        for source, encoder in self.encoders.items():
            with_thumbnails = [column, "thumbnail"] if source == MODEL else [column]
            before = compute_features(encoder, samples, with_thumbnails, self.options, transform=center)
            for repeat in range(self.settings.transformations_per_image):
                sampled = SampledTransform(
                    transformation, self.size, self.padding or "zeros", self.options.seed, split, repeat
                ).transform(encoder.device)
                wanted = [*with_thumbnails, "target"] if source == MODEL else with_thumbnails
                after = compute_features(encoder, samples, wanted, self.options, transform=sampled)
                parts[source].append((before[column], after[column]))
                if source == MODEL:
                    targets.append(after["target"])
                    colours = before["thumbnail"], after["thumbnail"]
                    parts["transformed image alone"].append((after[column],))
                    parts["thumbnail"].append(colours)
                    parts["grey thumbnail"].append((grey(colours[0]), grey(colours[1])))
        return {name: Pairs(part, targets) for name, part in parts.items()}

    def fit(self, transformation: str) -> dict[str, dict[str, Fitted]]:
        """By regression ("ridge", "bilinear", "mlp") and by features."""
        settings, encoder = self.settings, self.encoders[MODEL]
        train, test = self.pairs(transformation, self.train), self.pairs(transformation, self.test)
        self.train_images = train[MODEL].images
        ranges = list(target_ranges(transformation, self.size).values())
        predicted: dict[str, dict[str, np.ndarray]] = {}
        for name, pairs in train.items():
            held_out = hold_out(pairs.images, settings.held_out, self.options.seed)
            regressions: dict[str, Any] = {"ridge": Ridge(pairs, held_out, settings.penalties, encoder.device)}
            if settings.components:
                regressions["bilinear"] = BilinearRidge(
                    pairs, held_out, settings.penalties, settings.components, encoder.device
                )
            for kind, regression in regressions.items():
                predicted.setdefault(kind, {})[name] = regression.predict(test[name])
        if settings.mlp_epochs:
            perceptrons = Perceptrons(
                train,
                ranges,
                hidden_size=settings.mlp_hidden_size,
                epochs=settings.mlp_epochs,
                batch_size=settings.mlp_batch_size,
                learning_rate=settings.mlp_learning_rate,
                options=self.options,
                device=encoder.device,
            )
            predicted["mlp"] = perceptrons.predict(test)
        truth, images = test[MODEL].truth, test[MODEL].images
        return {
            kind: {name: Fitted(values, truth, images) for name, values in by_features.items()}
            for kind, by_features in predicted.items()
        }


def measure_equivariance(
    encoder: Encoder, data: EvaluationData, options: EvaluationOptions, settings: EquivarianceSettings
) -> TaskResult:
    """R2 of rotation, translation, colour and blur.

    Scenes are seen from above, those with padding from the side, whatever the data's mode; where other images have an up and
    a down, mind the floor "transformed image alone".

    Metrics are `rotation_r2_ridge`, `rotation_r2_bilinear`, `rotation_r2_mlp` and so on without borders; the mean over
    outputs, for several of them also `..._variance_weighted`, which pools them. With `padded` `rotation_r2_mlp_zeros` and so
    on for ordinary images, black outside (the paper's protocol), and `..._reflection`, mirrored outside, for motions.
    The details hold the floors of each number, in `beats_all_floors` for each transformation and regression whether the model
    is above 0 and all of them by more than chance, and of scenes the `mode` of those without borders and the `padded_mode` of
    the others.

    Raises:
        ValueError: If colours are to be changed of images that are not red, green and blue.
    """
    if "color" in settings.transformations and data.image_format is not None and not data.image_format.is_rgb:
        others = ",".join(name for name in settings.transformations if name != "color")
        raise ValueError(
            f"color changes red, green and blue, and the model's images are {data.image_format.describe()}"
            + (f": leave it out, by --set equivariance.transformations=[{others}]" if others else "")
        )
    report = _Report(options)
    details: dict[str, Any] = {"settings": asdict(settings), "floors": report.floors, "beats_all_floors": {}}
    if data.is_scenes:
        details |= {"mode": BORDERLESS_MODE, **({"padded_mode": PADDED_MODE} if settings.padded else {})}
    bench = _Bench(encoder, data, options, settings, padding=None)
    title = f"{encoder.name} on {bench.name}"
    pictures: dict[str, Callable[[], Image.Image]] = {}
    for transformation in settings.transformations:
        fitted = bench.fit(transformation)
        details["beats_all_floors"][transformation] = {
            kind: all(_is_above(by_features[MODEL], by_features[floor], options) for floor in FLOORS)
            for kind, by_features in fitted.items()
        }
        report.add(fitted, transformation)
        details |= {"train_images": bench.train_images, "test_images": fitted["ridge"][MODEL].images}
        if transformation == "rotation":
            kind = "bilinear" if settings.components else "ridge"
            curves = angle_curves(fitted[kind])
            for key, series in curves.items():
                known = {name: [None if np.isnan(v) else float(v) for v in one] for name, one in series.items()}
                details[key] = {"angle": ANGLES.tolist(), **known}  # None in empty bins
            pictures["rotation_by_angle"] = partial(_draw_angles, curves, f"{title}, {kind} regression")
    for padding in ("zeros", "reflection") if settings.padded else ():
        padded = _Bench(encoder, data, options, settings, padding=padding)
        for transformation in settings.transformations:
            if padding == "zeros" or transformation in MOTIONS:
                report.add(padded.fit(transformation), transformation, f"_{padding}")
    for kind in fitted:
        pictures[f"r2_{kind}"] = partial(report.draw, kind, settings.transformations, f"{title}, {kind}")
    return TaskResult(report.metrics, report.intervals, details, pictures)


def _is_above(model: Fitted, floor: Fitted, options: EvaluationOptions) -> bool:
    """Whether R2 is above 0 and above a floor's: with a bootstrap, in 97.5 % of the draws, of the same images for both."""
    sums = np.concatenate([model.rows, floor.rows], axis=1)
    columns, metric = model.rows.shape[1], R2()

    def difference(row: np.ndarray) -> dict[str, float]:
        of_model, of_floor = (metric.summarize(part)["r2"] for part in (row[:columns], row[columns:]))
        return {"r2": of_model - max(of_floor, 0.0)}

    ends = options.intervals(difference, sums)
    return (ends["r2"][0] if ends else difference(sums.sum(axis=0))["r2"]) > 0


@dataclass
class _Report:
    """R2 by transformation and regression, with intervals and floors."""

    options: EvaluationOptions
    metrics: dict[str, float] = field(default_factory=dict)
    intervals: dict[str, tuple[float, float]] = field(default_factory=dict)
    floors: dict[str, dict[str, float]] = field(default_factory=dict)

    def add(self, fitted: Mapping[str, Mapping[str, Fitted]], transformation: str, suffix: str = "") -> None:
        """Takes the regressions of a transformation in."""
        for kind, by_features in fitted.items():
            name = f"{transformation}_r2_{kind}{suffix}"
            model = by_features[MODEL]
            names = {"r2": name}
            if model.truth.shape[1] > 1:
                names["r2_variance_weighted"] = f"{name}_variance_weighted"
            ends = metric_intervals(R2(), model.rows, repeats=self.options.bootstrap, seed=self.options.seed)
            self.metrics |= {names[key]: value for key, value in model.metrics.items() if key in names}
            self.intervals |= {names[key]: value for key, value in ends.items() if key in names}
            for key, metric in names.items():
                self.floors[metric] = {floor: by_features[floor].metrics[key] for floor in FLOORS}

    def draw(self, kind: str, transformations: Sequence[str], title: str) -> Image.Image:
        """R2 of each transformation beside its floors."""
        from hf_geossl.evaluation.pictures.charts import bars

        values: dict[str, float] = {}
        ends: dict[str, tuple[float, float]] = {}
        for transformation in transformations:
            metric = f"{transformation}_r2_{kind}"
            values[f"{transformation}, {MODEL}"] = self.metrics[metric]
            if metric in self.intervals:
                ends[f"{transformation}, {MODEL}"] = self.intervals[metric]
            values |= {f"{transformation}, {floor}": value for floor, value in self.floors[metric].items()}
        return bars(values, intervals=ends, ylabel="R2", title=title)


def r2_by_angle(predictions: np.ndarray, angles: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """R2 of rotation in `ANGLE_BINS` equal bins of the angle.

    In a bin it is 1 - mean squared error of the bin / mean squared deviation of all angles from their mean. The denominator is
    the same for every bin, since that of a bin by itself goes to 0 in the middle; so the mean over bins, weighted by their
    counts, is R2. Predicting the same angle for every pair gives 1 in the middle, and less than 0 at the ends, which is why
    that curve stands beside the others.

    Returns:
        `(numpy.ndarray, numpy.ndarray)`: R2 and mean absolute error in degrees of each bin, `(ANGLE_BINS,)`; NaN in an empty
        one.
    """
    edges = np.linspace(-ROTATION, ROTATION, ANGLE_BINS + 1)
    place = np.clip(np.digitize(angles, edges) - 1, 0, ANGLE_BINS - 1)
    counts = np.bincount(place, minlength=ANGLE_BINS)
    squares, errors = (
        np.divide(
            np.bincount(place, np.abs(predictions - angles) ** power, minlength=ANGLE_BINS),
            counts,
            out=np.full(ANGLE_BINS, np.nan),
            where=counts > 0,
        )
        for power in (2, 1)
    )
    return 1 - squares / max(angles.var(), 1e-12), errors


def angle_curves(fitted: Mapping[str, Fitted]) -> dict[str, dict[str, np.ndarray]]:
    """R2 and the mean absolute error of rotation by the angle, of each kind of features and of the mean angle."""
    angles = fitted[MODEL].truth[:, 0]
    predictions = {name: one.predictions[:, 0] for name, one in fitted.items()}
    predictions[MEAN_ANGLE] = np.full_like(angles, angles.mean())
    curves = {name: r2_by_angle(predicted, angles) for name, predicted in predictions.items()}
    keys = "rotation_r2_by_angle", "rotation_error_by_angle"
    return {key: {name: pair[place] for name, pair in curves.items()} for place, key in enumerate(keys)}


def _draw_angles(curves: Mapping[str, Mapping[str, np.ndarray]], title: str) -> Image.Image:
    """Both as panels."""
    from hf_geossl.evaluation.pictures.charts import curve_panels

    names = "R2, relative to the variance of all angles", "mean error in degrees"
    panels = dict(zip(names, curves.values(), strict=True))
    return curve_panels(ANGLES, panels, xlabel="angle in degrees", title=title)


PROTOCOLS = {"equivariance": EvaluationProtocol(measure_equivariance, EquivarianceSettings)}
