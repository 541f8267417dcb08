"""The arms: which model, trainer and views each is made of, at the sizes of a preset."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from benchmarks.scenes_experiment.presets import Preset
from hf_geossl.cli.describe import shared_settings
from hf_geossl.methods import METHODS


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


def trunk_of(preset: Preset) -> dict[str, Any]:
    """The sizes of the trunk."""
    return {
        "hidden_size": preset.hidden_size,
        "num_hidden_layers": preset.num_hidden_layers,
        "num_attention_heads": preset.num_attention_heads,
        "image_size": preset.image_size,
        "patch_size": preset.patch_size,
        "drop_path_rate": 0.0,
    }


def _parts(
    method: str, objective: str, preset: Preset, model: dict[str, Any], views: dict[str, Any], **own: Any
) -> Parts:
    """Of a method's classes: what the objective's recipe says goes above model and views, `own` (the arm's) above that."""
    row = METHODS[method]
    config = row.load("config")(**trunk_of(preset) | model | preset.of_objective(objective, "model") | own)
    shared = {name: getattr(config, name) for name in shared_settings(row)}
    made = row.load("views")(**preset.colors | views | preset.of_objective(objective, "views") | shared)
    return Parts(row.load("pretraining")(config), row.load("trainer"), row.load("arguments"), made)


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
    return _parts("gtsa", "gtsa", preset, settings, views)


def _loca(preset: Preset, **own: Any) -> Parts:
    tokens = (preset.image_size // preset.patch_size) ** 2
    settings = {
        "head_hidden_size": preset.head_size,
        "head_bottleneck_size": preset.bottleneck,
        "num_prototypes": preset.prototypes,
        "num_kept_query_tokens": round(tokens * 70 / 196),
    }
    views = {
        "reference_size": preset.image_size,
        "focal_size": preset.local_size,
        "num_focal": preset.num_focal,
        "reference_scale": preset.global_scale,
        "focal_scale": preset.local_scale,
        "solarize_probability": 0.0,
    }
    return _parts("loca", "loca", preset, settings, views, **own)


def _host(preset: Preset, host: str, transformation: str | None, weight: float | None) -> Parts:
    with_locals = host in ("dino", "ibot", "dinov2")
    settings = {
        "patch_features": preset.patch_features,
        "equivariant_features": preset.equivariant_features,
        "head_hidden_size": preset.head_size,
        "head_bottleneck_size": preset.bottleneck,
        "num_prototypes": preset.prototypes if with_locals else None,
        "projector_sizes": (preset.head_size,) * 3,
    }
    if weight is None:
        weight = preset.reconstruction_weight or 1.0  # where none is chosen yet, of arms that have none
    views = {
        "global_size": preset.image_size,
        "local_size": preset.local_size,
        "num_local": preset.num_local if with_locals else 0,
        "global_scale": preset.global_scale,
        "local_scale": preset.local_scale if with_locals else None,
        "blur_probability": (0.0, 0.0, 0.0),
        "solarize_probability": 0.0,
    }
    own = {"host": host, "transformation": transformation, "reconstruction_weight": weight}
    return _parts("equicoherent", host, preset, settings, views, **own)


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
