"""Equivariance: how well frozen features of an image and of the transformed image tell what was done to it.

Two ways make such numbers worthless: what comes in at the border gives a motion away, and gravity gives the angle away in the
transformed image alone. So scenes are seen from above, rendered larger and cut after the transformation; and beside each
number stand what the transformed image alone, random weights, a grey and an RGB thumbnail reach. The paper's protocol, images
with padding, is measured to compare with it.

A rotation between images whose directions are all alike cannot be told by ridge regression on both images' features side by
side, whatever these know: its prediction is a sum of a function of each image, and neither correlates with the angle. So ridge
regression on products of the two images' features ("bilinear") stands beside it.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from hf_geossl.evaluation.bootstrap import interval
from hf_geossl.evaluation.cached_samples import HeldSamples, grey
from hf_geossl.evaluation.encoders import Encoder
from hf_geossl.evaluation.features import compute_features
from hf_geossl.evaluation.metrics import r2
from hf_geossl.evaluation.options import EvaluationData, EvaluationOptions, Task, TaskResult
from hf_geossl.evaluation.protocols.classifiers import hold_out
from hf_geossl.evaluation.protocols.fit import check_settings
from hf_geossl.evaluation.protocols.regression import BilinearRidge, Pairs, Perceptron, Ridge
from hf_geossl.evaluation.protocols.transformations import (
    ROTATION,
    TRANSFORMATIONS,
    Transformed,
    larger_size,
    target_ranges,
    untouched,
)

MODEL = "model"
FLOORS = ("transformed image alone", "random weights", "grey thumbnail", "RGB thumbnail")
ANGLE_BINS = 9
MEAN_ANGLE = "mean angle"  # what saying the same for every pair gives
BORDERLESS_MODE, PADDED_MODE = "topdown", "scene"  # of the scenes, whatever the data's mode


@dataclass(frozen=True)
class EquivarianceSettings:
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
        mlp_epochs (`int`): Epochs of the perceptron, see `Perceptron`; 0 leaves it out.
        mlp_hidden_size, mlp_batch_size, mlp_learning_rate: Of the perceptron.
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

    def __post_init__(self) -> None:
        check_settings(self)
        unknown = sorted(set(self.transformations) - set(TRANSFORMATIONS))
        if unknown or not self.transformations:
            raise ValueError(
                f"transformations must be some of {', '.join(TRANSFORMATIONS)}, got {', '.join(unknown) or 'none'}"
            )

    @property
    def regressions(self) -> tuple[str, ...]:
        """By which regressions R2 is measured."""
        wanted = {"ridge": True, "bilinear": self.components > 0, "mlp": self.mlp_epochs > 0}
        return tuple(kind for kind, use in wanted.items() if use)


@dataclass(frozen=True)
class Fitted:
    """What one regression on one kind of features says of the test images: `(transformations * images, outputs)`."""

    predictions: np.ndarray
    truth: np.ndarray
    images: int

    @property
    def sums(self) -> np.ndarray:
        """What each image, with all of its transformations, adds to R2: `(images, k)`."""
        rows = r2.sums_of(self.predictions, self.truth)
        return rows.reshape(-1, self.images, rows.shape[1]).sum(axis=0)

    @property
    def metrics(self) -> dict[str, float]:
        """`r2`, the mean over outputs, and `r2_variance_weighted`."""
        return r2.summarize(self.sums.sum(axis=0))


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
            self.samples[split] = HeldSamples(part.samples(split, size=size, mode=mode), [], encoder, options)
        self.train, self.test = data.train_split, data.test_split
        self.name = self.samples[self.test].name
        self.train_images = 0  # known when they have been read

    def pairs(self, transformation: str, split: str) -> dict[str, Pairs]:
        """The features that are compared, by name."""
        samples, column = self.samples[split], self.settings.feature
        middle = untouched(self.size)
        targets: list[np.ndarray] = []
        parts: dict[str, list[tuple[np.ndarray, ...]]] = {name: [] for name in (MODEL, *FLOORS)}
        for source, encoder in self.encoders.items():
            with_thumbnails = [column, "thumbnail"] if source == MODEL else [column]
            before = compute_features(encoder, samples, with_thumbnails, self.options, transform=middle)
            for repeat in range(self.settings.transformations_per_image):
                done = Transformed(
                    transformation, self.size, self.padding or "zeros", self.options.seed, split, repeat
                ).transform(encoder.device)
                wanted = [*with_thumbnails, "target"] if source == MODEL else with_thumbnails
                after = compute_features(encoder, samples, wanted, self.options, transform=done)
                parts[source].append((before[column], after[column]))
                if source == MODEL:
                    targets.append(after["target"])
                    colours = before["thumbnail"], after["thumbnail"]
                    parts["transformed image alone"].append((after[column],))
                    parts["RGB thumbnail"].append(colours)
                    parts["grey thumbnail"].append((grey(colours[0]), grey(colours[1])))
        return {name: Pairs(part, targets) for name, part in parts.items()}

    def fit(self, transformation: str) -> dict[str, dict[str, Fitted]]:
        """By regression ("ridge", "bilinear", "mlp") and by features."""
        settings, encoder = self.settings, self.encoders[MODEL]
        train, test = self.pairs(transformation, self.train), self.pairs(transformation, self.test)
        self.train_images = train[MODEL].images
        ranges = list(target_ranges(transformation, self.size).values())
        fitted: dict[str, dict[str, Fitted]] = {kind: {} for kind in settings.regressions}
        for name, pairs in train.items():
            held = hold_out(pairs.images, settings.held_out, self.options.seed)
            regressions: dict[str, Any] = {"ridge": Ridge(pairs, held, settings.penalties, encoder.device)}
            if settings.components:
                regressions["bilinear"] = BilinearRidge(
                    pairs, held, settings.penalties, settings.components, encoder.device
                )
            if settings.mlp_epochs:
                regressions["mlp"] = Perceptron(
                    pairs,
                    ranges,
                    hidden_size=settings.mlp_hidden_size,
                    epochs=settings.mlp_epochs,
                    batch_size=settings.mlp_batch_size,
                    learning_rate=settings.mlp_learning_rate,
                    options=self.options,
                    device=encoder.device,
                )
            for kind, regression in regressions.items():
                fitted[kind][name] = Fitted(regression.predict(test[name]), test[name].truth, test[name].images)
        return fitted


def measure_equivariance(
    encoder: Encoder, data: EvaluationData, options: EvaluationOptions, settings: EquivarianceSettings
) -> TaskResult:
    """R2 of rotation, translation, colour and blur.

    Args:
        encoder (`Encoder`): The model.
        data (`EvaluationData`): Images, no truth is needed. Scenes are seen from above, those with padding from the side,
            whatever the data's mode; where other images have an up and a down, mind the floor "transformed image alone".
        options (`EvaluationOptions`): How to evaluate.
        settings (`EquivarianceSettings`): The protocol's own.

    Returns:
        `TaskResult`: `rotation_r2_ridge`, `rotation_r2_bilinear`, `rotation_r2_mlp` and so on without borders; the mean over
        outputs, for several of them also `..._variance_weighted`, which pools them. With `padded` `rotation_r2_mlp_zeros`
        and so on for ordinary images, black outside (the paper's protocol), and `..._reflection`, mirrored outside, for
        motions. `details` hold the floors of each number, in `beats_all_floors` for each transformation and regression
        whether the model is above 0 and all of them by more than chance, and of scenes the `mode` of those without borders
        and the `padded_mode` of the others.

    Raises:
        ValueError: If the data holds too few images.
    """
    result = TaskResult({}, details={"settings": asdict(settings), "floors": {}, "beats_all_floors": {}})
    if data.is_scenes:
        result.details |= {"mode": BORDERLESS_MODE, **({"padded_mode": PADDED_MODE} if settings.padded else {})}
    bench = _Bench(encoder, data, options, settings, padding=None)
    for transformation in settings.transformations:
        fitted = bench.fit(transformation)
        result.details["beats_all_floors"][transformation] = {
            kind: all(_is_above(found[MODEL], found[floor], options) for floor in FLOORS)
            for kind, found in fitted.items()
        }
        _report(result, fitted, transformation, "", options)
        result.details |= {"train_images": bench.train_images, "test_images": fitted["ridge"][MODEL].images}
        if transformation == "rotation":
            kind = "bilinear" if settings.components else "ridge"
            _add_angle_curves(result, fitted[kind], f"{encoder.name} on {bench.name}, {kind} regression")
    for padding in ("zeros", "reflection") if settings.padded else ():
        padded = _Bench(encoder, data, options, settings, padding=padding)
        for transformation in settings.transformations:
            if padding == "zeros" or transformation in ("rotation", "translation"):  # others bring nothing in
                _report(result, padded.fit(transformation), transformation, f"_{padding}", options)
    _add_bars(result, settings, f"{encoder.name} on {bench.name}")
    return result


def _is_above(model: Fitted, floor: Fitted, options: EvaluationOptions) -> bool:
    """Whether R2 is above 0 and above a floor's: with a bootstrap, in 97.5 % of the draws, of the same images for both."""
    sums = np.concatenate([model.sums, floor.sums], axis=1)
    middle = model.sums.shape[1]

    def difference(row: np.ndarray) -> dict[str, float]:
        of_model = r2.summarize(row[:middle])["r2"]
        return {"r2": of_model - max(r2.summarize(row[middle:])["r2"], 0.0)}

    if not options.bootstrap:
        return difference(sums.sum(axis=0))["r2"] > 0
    return interval(difference, sums, repeats=options.bootstrap, seed=options.seed)["r2"][0] > 0


def _report(
    result: TaskResult,
    fitted: Mapping[str, Mapping[str, Fitted]],
    transformation: str,
    suffix: str,
    options: EvaluationOptions,
) -> None:
    """Writes R2, its interval and its floors into the result."""
    for kind, found in fitted.items():
        name = f"{transformation}_r2_{kind}{suffix}"
        model = found[MODEL]
        names = {"r2": name}
        if model.truth.shape[1] > 1:
            names["r2_variance_weighted"] = f"{name}_variance_weighted"
        result.metrics |= {names[key]: value for key, value in model.metrics.items() if key in names}
        if options.bootstrap:
            ends = interval(r2.summarize, model.sums, repeats=options.bootstrap, seed=options.seed)
            result.intervals |= {names[key]: value for key, value in ends.items() if key in names}
        for key, metric in names.items():
            result.details["floors"][metric] = {floor: found[floor].metrics[key] for floor in FLOORS}


def r2_by_angle(predictions: np.ndarray, angles: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """R2 of rotation in `ANGLE_BINS` equal bins of the angle: 1 - mean squared error of the bin / mean squared deviation of all
    angles from their mean. The denominator is the same for every bin, since that of a bin by itself goes to 0 in the middle;
    so the mean over bins, weighted by their counts, is R2. Saying the same angle for every pair gives 1 in the middle, and
    less than 0 at the ends, which is why that curve stands beside the others.

    Args:
        predictions (`numpy.ndarray` of shape `(pairs,)`): Degrees.
        angles (`numpy.ndarray` of shape `(pairs,)`): True ones.

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


def _add_angle_curves(result: TaskResult, found: Mapping[str, Fitted], title: str) -> None:
    """R2 and the mean absolute error of the angle, by the angle."""
    angles = found[MODEL].truth[:, 0]
    centres = (np.arange(ANGLE_BINS) + 0.5) * 2 * ROTATION / ANGLE_BINS - ROTATION
    predictions = {name: fitted.predictions[:, 0] for name, fitted in found.items()}
    predictions[MEAN_ANGLE] = np.full_like(angles, angles.mean())
    curves = {name: r2_by_angle(predicted, angles) for name, predicted in predictions.items()}
    panels = {
        "R2, relative to the variance of all angles": {name: r2_of_bins for name, (r2_of_bins, _) in curves.items()},
        "mean error in degrees": {name: errors for name, (_, errors) in curves.items()},
    }
    for key, series in zip(("rotation_r2_by_angle", "rotation_error_by_angle"), panels.values(), strict=True):
        result.details[key] = {
            "angle": centres.tolist(),
            **{name: [None if np.isnan(v) else float(v) for v in values] for name, values in series.items()},
        }

    def draw() -> Any:
        from hf_geossl.evaluation.pictures import curve_panels

        return curve_panels(centres, panels, xlabel="angle in degrees", title=title)

    result.pictures["rotation_by_angle"] = draw


def _add_bars(result: TaskResult, settings: EquivarianceSettings, title: str) -> None:
    """R2 of each transformation beside its floors."""

    def drawing(kind: str) -> Any:
        def draw() -> Any:
            from hf_geossl.evaluation.pictures import bars

            values: dict[str, float] = {}
            ends: dict[str, tuple[float, float]] = {}
            for transformation in settings.transformations:
                metric = f"{transformation}_r2_{kind}"
                values[f"{transformation}, {MODEL}"] = result.metrics[metric]
                if metric in result.intervals:
                    ends[f"{transformation}, {MODEL}"] = result.intervals[metric]
                for floor, value in result.details["floors"][metric].items():
                    values[f"{transformation}, {floor}"] = value
            return bars(values, intervals=ends, ylabel="R2", title=f"{title}, {kind}")

        return draw

    result.pictures |= {f"r2_{kind}": drawing(kind) for kind in settings.regressions}


TASKS = {
    "equivariance": Task(
        measure_equivariance,
        EquivarianceSettings,
        "what was done to an image (rotation, translation, colour, blur), told by frozen features of both images",
    )
}
