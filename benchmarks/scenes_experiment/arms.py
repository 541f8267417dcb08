"""The arms: which model, trainer and views each is made of, at the sizes of a preset."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from benchmarks.scenes_experiment.presets import Preset
from hf_geossl import (
    EquiCoherentConfig,
    EquiCoherentForPreTraining,
    EquiCoherentTrainer,
    EquiCoherentTrainingArguments,
    EquiCoherentViews,
    GTSAConfig,
    GTSAForPreTraining,
    GTSATrainer,
    GTSATrainingArguments,
    GTSAViews,
    LOCAConfig,
    LOCAForPreTraining,
    LOCATrainer,
    LOCATrainingArguments,
    LOCAViews,
)


@dataclass(frozen=True)
class Parts:
    """A model, and the classes and views that it is trained with."""

    model: Any
    trainer: Any
    arguments: Any
    views: Any


@dataclass(frozen=True)
class Arm:
    """
    An arm of the experiment.

    Args:
        objective (`str`): Its row in `presets.RECIPES`.
        make (`Callable`): Makes the parts at the sizes of a preset.
        trained (`bool`): Whether it is pretrained; random weights are not.
        mode (`str`): Of the scenes that it is pretrained and measured on: "scene" or "object".
    """

    objective: str
    make: Callable[[Preset], Parts]
    trained: bool = True
    mode: str = "scene"


def _trunk(preset: Preset) -> dict[str, Any]:
    return {
        "hidden_size": preset.hidden_size,
        "num_hidden_layers": preset.num_hidden_layers,
        "num_attention_heads": preset.num_attention_heads,
        "image_size": preset.image_size,
        "patch_size": preset.patch_size,
        "drop_path_rate": 0.0,
    }


def _gtsa(preset: Preset) -> Parts:
    side, local = (size // preset.patch_size for size in (preset.image_size, preset.local_size))
    settings = {
        "projector_hidden_size": preset.hidden_size,
        "projection_size": preset.head_size,
        "predictor_hidden_size": preset.head_size,
        "rotation_hidden_sizes": (preset.head_size, preset.head_size, preset.bottleneck),
        "roi_output_sizes": (side * 10 // 14, max(local * 4 // 6, 1)),  # as large a share of the maps as the paper's
        "num_matches": (side * side // 2, local * local // 2),
    }
    views = {
        "global_size": preset.image_size,
        "local_size": preset.local_size,
        "num_local": preset.num_local,
        "global_scale": preset.global_scale,
        "local_scale": preset.local_scale,
        "blur_probability": 0.0,
    }
    config = GTSAConfig(**_trunk(preset) | settings | preset.of_objective("gtsa", "model"))
    return Parts(
        GTSAForPreTraining(config),
        GTSATrainer,
        GTSATrainingArguments,
        GTSAViews(**preset.colors | views | preset.of_objective("gtsa", "views")),
    )


def _loca(preset: Preset, location_weight: float | None = None) -> Parts:
    tokens = (preset.image_size // preset.patch_size) ** 2
    settings = {
        "head_hidden_size": preset.head_size,
        "head_bottleneck_size": preset.bottleneck,
        "num_prototypes": preset.prototypes,
        "num_kept_query_tokens": round(tokens * 70 / 196),
    } | preset.of_objective("loca", "model")
    views = {
        "reference_size": preset.image_size,
        "focal_size": preset.local_size,
        "num_focal": preset.num_focal,
        "patch_size": preset.patch_size,
        "reference_scale": preset.global_scale,
        "focal_scale": preset.local_scale,
        "solarize_probability": 0.0,
    }
    if location_weight is not None:
        settings["location_weight"] = location_weight
    return Parts(
        LOCAForPreTraining(LOCAConfig(**_trunk(preset) | settings)),
        LOCATrainer,
        LOCATrainingArguments,
        LOCAViews(**preset.colors | views | preset.of_objective("loca", "views")),
    )


def _host(preset: Preset, host: str, transformation: str | None, weight: float | None) -> Parts:
    with_locals = host in ("dino", "ibot", "dinov2")
    settings = {
        "patch_features": preset.patch_features,
        "equivariant_features": preset.equivariant_features,
        "head_hidden_size": preset.head_size,
        "head_bottleneck_size": preset.bottleneck,
        "num_prototypes": preset.prototypes if with_locals else None,
        "projector_sizes": (preset.head_size,) * 3,
    } | preset.of_objective(host, "model")
    if weight is None:
        weight = preset.reconstruction_weight or 1.0  # where none is chosen yet, of arms that have none
    config = EquiCoherentConfig(
        **_trunk(preset) | settings, host=host, transformation=transformation, reconstruction_weight=weight
    )
    views = {
        "patch_size": preset.patch_size,
        "global_size": preset.image_size,
        "local_size": preset.local_size,
        "num_local": preset.num_local if with_locals else 0,
        "global_scale": preset.global_scale,
        "local_scale": preset.local_scale if with_locals else None,
        "blur_probability": (0.0, 0.0, 0.0),
        "solarize_probability": 0.0,
    }
    views |= preset.of_objective(host, "views")
    return Parts(
        EquiCoherentForPreTraining(config),
        EquiCoherentTrainer,
        EquiCoherentTrainingArguments,
        EquiCoherentViews(host, transformation, config.num_intermediate, **preset.colors | views),
    )


def _arm(host: str, transformation: str | None = None, weight: float | None = None) -> Arm:
    return Arm(host, partial(_host, host=host, transformation=transformation, weight=weight))


_RANDOM = Arm("dino", _arm("dino").make, trained=False)
_GTSA = Arm("gtsa", _gtsa)
_DINO = _arm("dino")
ARMS: dict[str, Arm] = {
    "random": _RANDOM,
    "dino": _DINO,
    "gtsa": _GTSA,
    "loca": Arm("loca", _loca),
    "loca_cluster": Arm("loca", partial(_loca, location_weight=0.0)),
    "ibot": _arm("ibot"),
    "ibot_control": _arm("ibot", "se2", weight=0.0),
    "ibot_equicoherent": _arm("ibot", "se2"),
    "dinov2": _arm("dinov2"),
    "dinov2_equicoherent": _arm("dinov2", "se2"),
    "vicreg": _arm("vicreg"),
    "vicreg_equicoherent": _arm("vicreg", "se2"),
    "simclr": _arm("simclr"),
    # the same, pretrained and measured on the object-centric twin
    "random_object": Arm("dino", _RANDOM.make, trained=False, mode="object"),
    "dino_object": Arm("dino", _DINO.make, mode="object"),
    "gtsa_object": Arm("gtsa", _gtsa, mode="object"),
}
# what the reconstruction weight is chosen by, on a seed of its own
WEIGHTS = (1.0, 5.0, 10.0)
WEIGHT_ARMS: dict[str, Arm] = {f"ibot_equicoherent@{w:g}": _arm("ibot", "se2", weight=w) for w in WEIGHTS}
WEIGHT_TASKS = ("equivariance",)
NO_PROTOTYPES = ("gtsa", "vicreg", "simclr")  # objectives without predictions whose diversity could tell that they live
