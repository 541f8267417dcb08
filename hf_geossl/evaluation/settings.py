"""The settings of protocols: made of what a user gives, checked in every protocol by the same rules."""

import dataclasses
import math
import re
import typing
from collections.abc import Callable, Collection, Mapping, Sequence
from types import UnionType
from typing import Any, ClassVar, TypeVar

from hf_geossl.evaluation.registry import nearest

Settings = TypeVar("Settings")

MOST_PASSES = 40  # over a limited number of training images: a head gains nothing from more
TRAINED = 4.5  # times the work of an image without gradients: forward, twice that backward, and the optimizer
BACKWARD = 2  # times the operations of a head forward
PASS = 100  # operations of matrix products that take as long as to read and write one number of a map
INTERVAL = 40  # steps that a confidence interval takes as long as
BATCHES = ("batch_size", "images_per_step")  # what settings call the images of a step
QUICK_IMAGES, QUICK_STEPS = 64, 30  # images of each split, and optimizer steps, of a quick evaluation
QUICK_MEANING = (
    f"quick: at most {QUICK_IMAGES} images and a few steps of training: enough to see that everything runs, "
    "and large differences; no number to publish"
)

# what settings of these names must be, in every protocol that has them; of those with several values each of them
_RULES: tuple[tuple[str, Callable[[Any], bool], str], ...] = (
    (
        "at least 1",
        lambda value: value >= 1,
        "steps epochs batch_size images_per_step max_iterations class_token_layers crop_size window_stride num_categories "
        "subsets transformations_per_image test_images pool_scales mlp_hidden_size mlp_batch_size channels head_width "
        "regions proposals hidden_size auxiliary_channels pyramid_channels head_channels neck_hidden_sizes "
        "fusion_hidden_size context_frames top_k side magnification clips pooled_side",
    ),
    ("at least 2", lambda value: value >= 2, "num_classes train_images"),
    ("at least 3", lambda value: value >= 3, "frames"),
    (
        "at least 0",
        lambda value: 0 <= value < math.inf,
        "warmup_steps weight_decay trunk_factor auxiliary_weight components mlp_epochs focal_queries",
    ),
    (
        "above 0 and finite",
        lambda value: 0 < value < math.inf,
        "learning_rate learning_rates mlp_learning_rate c_values penalties scales",
    ),
    (
        "above 0 and at most 1",
        lambda value: 0 < value <= 1,
        "shares layer_decay visible_tokens reference_scale focal_scale",
    ),
    ("at least 0 and below 1", lambda value: 0 <= value < 1, "momentum dropout smallest_side smallest_object"),
    ("between 0 and 1", lambda value: 0 < value < 1, "held_out"),
    (
        "pooled, both, mean or class_tokens_N with N from 1",
        lambda value: re.fullmatch(r"pooled|both|mean|class_tokens_[1-9]\d*", value) is not None,
        "feature",
    ),
)
_RULE_OF = {name: (words, holds) for words, holds, names in _RULES for name in names.split()}
_RANGES = ("scales", "reference_scale", "focal_scale")  # from the smaller to the larger


@dataclasses.dataclass(frozen=True)
class Scale:
    """What the work of a task grows with: training and test images, the trunk's width, patches, pixels and channels, modes of scenes that are seen."""

    train: int
    test: int
    width: int
    tokens: int
    pixels: int
    channels: int = 3
    modes: int = 1

    @property
    def images(self) -> int:
        """Of both splits."""
        return self.train + self.test


@dataclasses.dataclass(frozen=True)
class Work:
    """What a task has to do.

    Args:
        images (`Mapping[str, float]`): How many are read, by kinds that tasks share.
        encoded (`float`): Images through the trunk; one that it is trained on counts `TRAINED` times.
        steps (`float`): Of training; a confidence interval counts as `INTERVAL`.
        operations (`float`): Additions and multiplications of heads and regressions; a pass over numbers counts `PASS` each.
    """

    images: Mapping[str, float]
    encoded: float = 0.0
    steps: float = 0.0
    operations: float = 0.0


@dataclasses.dataclass(frozen=True)
class ProtocolSettings:
    """A protocol's own numbers. Counts, shares, learning rates and features are checked by their names, in every protocol alike.

    None, where a setting may be that, is left alone.

    Attributes:
        PASSES (`int`): Over a limited number of training images at most so many; see `bounded`.
        PER_IMAGE (`int`): About so many parts of an image go through trunk and head, each as large as an image.
        QUICK (`Mapping[str, object]`): What replaces the defaults in a quick evaluation; the number of steps is
            bounded by `QUICK_STEPS` unless it says another.

    Raises:
        ValueError: If a setting makes no sense.
    """

    QUICK: ClassVar[Mapping[str, object]] = {}
    PASSES: ClassVar[int] = MOST_PASSES
    PER_IMAGE: ClassVar[int] = 1

    @property
    def features(self) -> tuple[str, ...]:
        """The features of untouched images that the protocol reads, by their names in `compute_features`."""
        feature = getattr(self, "feature", None)
        return () if feature is None else (feature,)

    def work(self, scale: Scale) -> Work:
        """What there is to do; of a protocol that trains trunk and head together for so many steps, where it says nothing else."""
        steps, batch = (
            getattr(self, "steps", 0),
            next((getattr(self, name) for name in BATCHES if hasattr(self, name)), 1),
        )
        runs = 1 + bool(getattr(self, "random_floor", False))
        trained, tested = (runs * self.PER_IMAGE * images for images in (steps * batch, scale.test))
        in_training, in_test = self.head_operations(scale)
        operations = (1 + BACKWARD) * trained * in_training + tested * in_test
        return Work({"images": scale.images}, TRAINED * trained + tested, runs * steps, operations)

    def head_operations(self, scale: Scale) -> tuple[float, float]:
        """Multiplications and additions of the head forward, for an image in training and for one in the test."""
        return 0.0, 0.0

    def for_limit(self, limit: int) -> dict[str, object]:
        """What replaces the defaults where at most so many images are trained on."""
        return {}

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if field.name not in _RULE_OF or value is None:
                continue
            words, holds = _RULE_OF[field.name]
            several = isinstance(value, (tuple, list))
            if several and not value:
                raise ValueError(f"{field.name} must hold at least one value, got none")
            if not all(map(holds, value if several else (value,))):
                raise ValueError(f"{field.name} must be {words}, got {value}")
            if field.name in _RANGES and (len(value) != 2 or value[0] > value[1]):
                raise ValueError(f"{field.name} must be the smaller and the larger end of a range, got {value}")


def make_settings(task: str, kind: type[Settings], given: Mapping[str, object]) -> Settings:
    """Makes a protocol's settings, some of them given by name: integers stand for floats, lists for tuples.

    Raises:
        ValueError: If there is no such setting, or a value is of another kind than its default.
    """
    hints = typing.get_type_hints(kind)
    values = {}
    for key, value in given.items():
        if key not in hints:
            raise ValueError(f"{task} has no setting {key!r}{nearest(key, list(hints), 'its settings')}")
        try:
            values[key] = _converted(hints[key], value)
        except TypeError:
            default = getattr(kind(), key)
            name = str(hints[key]) if typing.get_args(hints[key]) else getattr(hints[key], "__name__", str(hints[key]))
            raise ValueError(f"{task}.{key} must be {name}, such as {default!r}, got {value!r}") from None
    return kind(**values)


def bounded(settings: Settings, given: Collection[str], *, limit: int | None, quick: bool) -> Settings:
    """Shortens the training of heads to what a limited number of images deserves; settings that were given by name stay.

    Args:
        settings (`ProtocolSettings`): Of a protocol.
        given (`Collection[str]`): The names of those that the user has chosen.
        limit (`int`, *optional*): At most so many training images: `steps` are then at most `PASSES` over them.
        quick (`bool`): Whether the protocol's `QUICK` settings and at most `QUICK_STEPS` steps are taken.

    Returns:
        The same kind of settings.
    """
    values: dict[str, Any] = {}
    passes = getattr(settings, "PASSES", MOST_PASSES)
    if isinstance(settings, ProtocolSettings):
        values = settings.for_limit(limit) if limit is not None else {}
        values.update(settings.QUICK if quick else {})
    if (steps := values.get("steps", getattr(settings, "steps", None))) is not None:
        bounds = [steps]
        batch = next((values.get(name, getattr(settings, name)) for name in BATCHES if hasattr(settings, name)), None)
        if limit is not None and batch:
            bounds.append(max(1, math.ceil(passes * limit / batch)))
        if quick and "steps" not in getattr(settings, "QUICK", {}):
            bounds.append(QUICK_STEPS)
        values["steps"] = min(bounds)
        if min(bounds) < steps and hasattr(settings, "warmup_steps"):
            values["warmup_steps"] = min(settings.warmup_steps, min(bounds) // 10)
    values = {name: value for name, value in values.items() if name not in given}
    return dataclasses.replace(settings, **values) if values else settings  # type: ignore[type-var]


def differences(settings: ProtocolSettings, others: ProtocolSettings) -> str:
    """In words what settings have other values of than others of their kind, such as `steps 30 instead of 1000`."""
    pairs = [
        (field.name, getattr(settings, field.name), getattr(others, field.name))
        for field in dataclasses.fields(settings)
    ]
    return ", ".join(f"{name} {own!r} instead of {other!r}" for name, own, other in pairs if own != other)


def _converted(kind: object, value: object) -> object:
    """A value as one of the annotated kind; `TypeError` where it is none."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, UnionType):
        for option in arguments:
            try:
                return _converted(option, value)
            except TypeError:
                continue
        raise TypeError
    if origin is typing.Literal:
        if value in arguments:
            return value
        raise TypeError
    if origin in (tuple, Sequence) and isinstance(value, (list, tuple)):
        kinds = arguments if origin is tuple and arguments[-1:] != (Ellipsis,) else [arguments[0]] * len(value)
        if len(kinds) != len(value):
            raise TypeError
        return tuple(_converted(one, entry) for one, entry in zip(kinds, value, strict=True))
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if kind is type(None) and value is None:
        return None
    if isinstance(kind, type) and isinstance(value, kind) and (kind is bool or not isinstance(value, bool)):
        return value
    raise TypeError
