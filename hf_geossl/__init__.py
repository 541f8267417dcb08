"""
Self-supervised vision transformers that keep geometry, for the Hugging Face stack.

Importing the package registers its models with transformers' Auto classes; everything else is imported when first used.
"""

from importlib import import_module
from typing import Any

from hf_geossl.hub.auto_classes import register_auto_classes

__version__ = "0.1.0"

_HOMES = {
    "modeling.configuration_equicoherent": ["EquiCoherentConfig"],
    "modeling.configuration_gtsa": ["GTSAConfig"],
    "modeling.configuration_loca": ["LOCAConfig"],
    "modeling.modeling_equicoherent": [
        "EquiCoherentBackbone",
        "EquiCoherentForImageClassification",
        "EquiCoherentForSemanticSegmentation",
        "EquiCoherentModel",
    ],
    "modeling.modeling_gtsa": [
        "GTSABackbone",
        "GTSAForImageClassification",
        "GTSAForSemanticSegmentation",
        "GTSAModel",
    ],
    "modeling.modeling_loca": [
        "LOCABackbone",
        "LOCAForImageClassification",
        "LOCAForSemanticSegmentation",
        "LOCAModel",
    ],
    "modeling.pretraining_equicoherent": ["EquiCoherentForPreTraining", "EquiCoherentForPreTrainingOutput"],
    "modeling.pretraining_gtsa": ["GTSAForPreTraining", "GTSAForPreTrainingOutput"],
    "modeling.pretraining_loca": ["LOCAForPreTraining", "LOCAForPreTrainingOutput"],
    "training.arguments": [
        "EquiCoherentTrainingArguments",
        "GTSATrainingArguments",
        "LOCATrainingArguments",
        "TeacherStudentTrainingArguments",
    ],
    "data.streams": ["ImageStream", "load_stream"],
    "training.trainer": ["TeacherStudentTrainer"],
    "training.trainer_equicoherent": ["EquiCoherentTrainer"],
    "training.trainer_gtsa": ["GTSATrainer"],
    "training.trainer_loca": ["LOCATrainer"],
    "views.equicoherent": ["EquiCoherentViews"],
    "views.gtsa": ["GTSAViews"],
    "views.loca": ["LOCAViews"],
    "data": ["load_scenes"],
    "evaluation.evaluate": ["evaluate_model"],
    "hub.push": ["Publication", "PublishError", "PublishedFile", "publish"],
    "hub.auto_classes": ["load_backbone"],
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}

__all__ = sorted(_HOME_OF)


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module 'hf_geossl' has no attribute {name!r}")
    return getattr(import_module(f"hf_geossl.{_HOME_OF[name]}"), name)


def __dir__() -> list[str]:
    return [*globals(), *__all__]


register_auto_classes()
