"""Sizes of the experiment, and the table of the learning settings of every objective."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import yaml

Recipe = dict[str, dict[str, Any]]  # sections "model", "views", "training", as in a recipe of `geossl pretrain`

# Scores of unit vectors with prototypes deviate by about sqrt(.4 / bottleneck) before anything is learned. A temperature above
# that makes all targets uniform, where they stay. So does a high peak with a teacher that keeps up with it: at 2e-3 and .98
# predictions told images apart by .29 nat at the lowest, at 5e-4 and .99 by 1.05 (results/learning/README.md).
_FROM_A_START_THAT_DIFFERS: Recipe = {
    "model": {"head_bottleneck_size": 32, "teacher_temperature": 0.025},
    "training": {"teacher_temperature_start": 0.025, "learning_rate": 5e-4, "teacher_momentum": 0.99},
}
# k-NN is measured on the class token, which a loss of the mean patch token never reaches.
_OF_THE_CLASS_TOKEN: Recipe = {"model": {"pool": "class"}}

# THE table of learning settings: by objective, what differs from `Preset.training` and from the sizes of the preset.
# Arms of one objective (plain, control, with EquiCoherent, on the object twin) share its row, so that pairs stay pairs.
# Where they come from: results/learning/README.md.
RECIPES: dict[str, Recipe] = {
    "dino": _FROM_A_START_THAT_DIFFERS,
    "ibot": _FROM_A_START_THAT_DIFFERS,
    "dinov2": _FROM_A_START_THAT_DIFFERS,
    "vicreg": _OF_THE_CLASS_TOKEN,
    "simclr": _OF_THE_CLASS_TOKEN,
    "gtsa": {},
    # as its quickstart: few prototypes, all of the reference visible, a teacher that keeps up
    "loca": {
        "model": {"num_prototypes": 64, "visible_reference_ratio": 1.0},
        "training": {"teacher_momentum": 0.95, "adam_beta2": 0.95},
    },
}


# scenes have fewer colours than photographs, and what turns them all into each other leaves little to tell them by
COLORS = {
    "brightness": 0.4,
    "contrast": 0.4,
    "saturation": 0.2,
    "hue": 0.05,
    "color_jitter_probability": 0.8,
    "grayscale_probability": 0.1,
}


@dataclass(frozen=True)
class Preset:
    """
    The settings of an experiment (section 3 of its specification).

    Args:
        image_size, patch_size, local_size (`int`): Pixels.
        hidden_size, num_hidden_layers, num_attention_heads (`int`): Of the trunk.
        train_images, probe_images (`int`): Images to pretrain on; to train and to measure probes on, each.
        batch_size, steps (`int`): Of the pretraining.
        head_size, prototypes, bottleneck (`int`): Of all heads.
        patch_features, equivariant_features (`int`): EquiCoherent's d_patch and d_equi.
        global_scale, local_scale (`tuple[float, float]`): Shares of the image's area.
        num_local, num_focal (`int`): Local views; focal queries of LOCA.
        tasks (`dict`): Which probes with which settings.
        colors (`dict`): The colour jitter of all arms.
        training (`dict`): Training arguments that all objectives share.
        recipes (`dict[str, Recipe]`): By objective, what differs from them; see `RECIPES`.
        reconstruction_weight (`float`, *optional*): EquiCoherent's; None chooses it from 1, 5 and 10 on a seed outside of
            those that are compared, before these are run.
        not_read (`dict[str, tuple[str, ...]]`): By arm or objective, probes that are left out since neither the gate nor a
            claim reads them there.
        bootstrap (`int`): Resamples for the intervals, and for "above all floors".
    """

    image_size: int
    patch_size: int
    local_size: int
    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    train_images: int
    probe_images: int
    batch_size: int
    steps: int
    head_size: int
    prototypes: int
    bottleneck: int
    patch_features: int
    equivariant_features: int
    global_scale: tuple[float, float]
    local_scale: tuple[float, float]
    num_local: int
    num_focal: int
    tasks: dict[str, dict[str, Any]]
    training: dict[str, Any]
    colors: dict[str, float] = field(default_factory=lambda: COLORS)
    recipes: dict[str, Recipe] = field(default_factory=lambda: RECIPES)
    reconstruction_weight: float | None = 1.0
    not_read: dict[str, tuple[str, ...]] = field(default_factory=dict)
    bootstrap: int = 1000

    def of_objective(self, objective: str, section: str) -> dict[str, Any]:
        """What an objective's recipe says in a section: "model", "views" or "training"."""
        return self.recipes.get(objective, {}).get(section, {})

    def changed(self, settings: Mapping[str, Any]) -> "Preset":
        """
        A preset with some settings changed.

        Args:
            settings: By name: a field (`steps`), or one of a recipe (`dino.training.learning_rate`).

        Raises:
            ValueError: If there is no such setting.
        """
        changed = self
        for name, value in settings.items():
            parts = name.split(".")
            if len(parts) == 3 and parts[0] in RECIPES and parts[1] in ("model", "views", "training"):
                objective, section, key = parts
                recipe = changed.recipes.get(objective, {})
                recipe = recipe | {section: recipe.get(section, {}) | {key: value}}
                changed = replace(changed, recipes=changed.recipes | {objective: recipe})
            elif len(parts) == 2 and parts[0] == "training":
                changed = replace(changed, training=changed.training | {parts[1]: value})
            elif len(parts) == 1 and parts[0] in self.__dataclass_fields__:
                changed = replace(changed, **{parts[0]: value})
            else:
                raise ValueError(
                    f"there is no setting {name}: name a field of the preset (steps), training.NAME of all objectives, or "
                    f"OBJECTIVE.SECTION.NAME (dino.training.learning_rate), with objectives {', '.join(RECIPES)}"
                )
        return changed

    def of_pretraining(self, objective: str) -> dict[str, Any]:
        """All settings that the weights of an objective depend on, in plain values."""
        values = asdict(self)
        for name in ("tasks", "not_read", "bootstrap", "probe_images", "recipes"):
            del values[name]
        return values | {"recipe": self.recipes.get(objective, {})}


def read_settings(words: list[str]) -> dict[str, Any]:
    """
    Settings of a command line, `name=value` with values in YAML.

    Raises:
        ValueError: If one is of another form.
    """
    settings = {}
    for word in words:
        name, equals, value = word.partition("=")
        if not equals:
            raise ValueError(f"a setting is name=value, got {word!r}")
        settings[name] = _number(yaml.safe_load(value))
    return settings


def _number(value: Any) -> Any:
    """YAML 1.1 reads 1e-4 as text."""
    try:
        return float(value) if isinstance(value, str) else value
    except ValueError:
        return value


# ---- Probes and their settings, where they are not the protocols' own defaults ----

_SHARES = [1 / 32, 1 / 8, 1.0]
_PROBES: dict[str, dict[str, Any]] = {
    "knn": {},
    "linear": {},
    "multilabel": {},
    "rotation": {},
    "equivariance": {},
    "orientation": {},
    "segmentation": {"random_floor": False},  # which is an arm of its own
    "segmentation_few_shot": {"shares": _SHARES},
    "depth": {"random_floor": False},
    "detection": {},
    "propagation": {},
}
# for half an hour of one GPU: what no claim rests on is left out, or measured once instead of three times
_GPU_PROBES = {
    **_PROBES,
    "equivariance": {"padded": False, "mlp_epochs": 0},
    "segmentation_few_shot": {"shares": _SHARES, "subsets": 1},
    "detection": {"masks": False},
    "propagation": {"clips": 20},
}
# for a CPU: fewer images and shorter training of heads
_CPU_PROBES = {
    **_PROBES,
    "equivariance": {"padded": False, "mlp_epochs": 0, "train_images": 300, "test_images": 300},
    "segmentation": {"steps": 300, "random_floor": False},
    "segmentation_few_shot": {"shares": _SHARES, "subsets": 1, "steps": 40},
    "depth": {"random_floor": False},
    "detection": {"steps": 40, "masks": False},
    "propagation": {"clips": 20},
}
# for one core: what the gate and the claims read, and of fine-tuning and detection no more than that core can carry
_DESK_PROBES: dict[str, dict[str, Any]] = {
    "knn": {},
    "linear": {"c_values": [0.01, 0.1, 1.0]},
    "rotation": {"c_values": [0.01], "max_iterations": 100},
    "equivariance": {
        "transformations": ["rotation"],
        "padded": False,
        "mlp_epochs": 0,
        "train_images": 300,
        "test_images": 300,
    },
    "segmentation": {"random_floor": False},
    "segmentation_few_shot": {"shares": [1 / 32, 1.0], "subsets": 1, "steps": 40},
    "detection": {"steps": 40, "masks": False},
}
_NOT_READ: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(("dino", "gtsa"), ("equivariance",)),
    "loca": ("equivariance", "detection"),
    **dict.fromkeys(("ibot", "dinov2", "vicreg", "simclr"), ("rotation", "segmentation_few_shot", "detection")),
}
_TINY_PROBES: dict[str, dict[str, Any]] = {
    "knn": {},
    "equivariance": {
        "transformations": ["rotation"],
        "transformations_per_image": 1,
        "padded": False,
        "mlp_epochs": 0,
        "components": 4,
        "penalties": [0.1, 1.0],
    },
    "segmentation": {"steps": 2, "random_floor": False},
}

# ---- The presets ----

# AdamW; warm-up over a tenth, cosine
_TRAINING = {
    "learning_rate": 1e-3,
    "warmup_steps": 0.1,
    "weight_decay": 0.04,
    "weight_decay_end": 0.4,
    "adam_beta2": 0.999,
    "teacher_momentum": 0.99,
    "max_grad_norm": 3.0,
    "clip_mode": "tensor",
}
# section 3 of the specification, to the letter
_GPU_LONG = Preset(
    image_size=96,
    patch_size=8,
    local_size=48,
    hidden_size=192,
    num_hidden_layers=12,
    num_attention_heads=3,
    train_images=40_000,
    probe_images=4000,
    batch_size=512,
    steps=3000,
    head_size=512,
    prototypes=2048,
    bottleneck=128,
    patch_features=512,
    equivariant_features=128,
    global_scale=(0.3, 1.0),
    local_scale=(0.1, 0.3),
    num_local=4,
    num_focal=9,
    tasks=_PROBES,
    training=_TRAINING,
    reconstruction_weight=None,
)
_SMOKE = Preset(
    image_size=64,
    patch_size=8,
    local_size=32,
    hidden_size=128,
    num_hidden_layers=4,
    num_attention_heads=2,
    train_images=4000,
    probe_images=1000,
    batch_size=32,
    steps=600,
    head_size=256,
    prototypes=256,
    bottleneck=64,
    patch_features=256,
    equivariant_features=64,
    global_scale=(0.4, 1.0),
    local_scale=(0.1, 0.4),
    num_local=2,
    num_focal=2,
    tasks=_CPU_PROBES,
    training=_TRAINING | {"learning_rate": 1e-4, "weight_decay_end": 0.2, "teacher_momentum": 0.96},
    bootstrap=100,
)
_DESK = replace(
    _SMOKE,
    image_size=48,
    local_size=24,
    hidden_size=96,
    num_hidden_layers=3,
    num_attention_heads=3,
    train_images=6000,
    probe_images=1000,
    batch_size=64,
    steps=60,
    tasks=_DESK_PROBES,
    not_read=_NOT_READ,
    training=_TRAINING
    | {"learning_rate": 2e-3, "weight_decay_end": 0.04, "teacher_momentum": 0.98, "adam_beta2": 0.95},
    reconstruction_weight=None,
    bootstrap=200,
)
PRESETS = {
    # seconds: tests of the machinery
    "tiny": replace(
        _SMOKE,
        image_size=32,
        local_size=16,
        hidden_size=32,
        num_hidden_layers=1,
        train_images=16,
        probe_images=32,
        batch_size=4,
        steps=3,
        head_size=16,
        prototypes=16,
        bottleneck=8,
        patch_features=16,
        equivariant_features=4,
        tasks=_TINY_PROBES,
        reconstruction_weight=None,
        bootstrap=20,
    ),
    # two CPU cores, a smoke test of all probes: nothing is claimed from it
    "smoke": _SMOKE,
    # one CPU core, an hour or two for all arms and seeds: the sizes and learning settings of the quickstarts
    "desk": _DESK,
    # the same for ten minutes an arm and more, a night for all of them, with fine-tuning that gets somewhere
    "desk_long": replace(
        _DESK,
        train_images=24_000,
        steps=2000,
        recipes=RECIPES
        | {"loca": RECIPES["loca"] | {"training": {**RECIPES["loca"]["training"], "learning_rate": 3e-3}}},
        tasks=_DESK_PROBES
        | {
            "segmentation_few_shot": _DESK_PROBES["segmentation_few_shot"] | {"steps": 400},
            "detection": _DESK_PROBES["detection"] | {"steps": 400},
        },
        not_read=_NOT_READ | {"random": ("equivariance", "detection")},
    ),
    # one GPU, half an hour for all arms and seeds
    "gpu": replace(_GPU_LONG, image_size=64, local_size=32, steps=600, probe_images=2000, tasks=_GPU_PROBES),
    # one GPU, the sizes of the specification
    "gpu_long": _GPU_LONG,
}
