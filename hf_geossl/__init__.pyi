"""Types of the public names, which `__init__.py` imports when they are first used."""

from hf_geossl.data import load_scenes
from hf_geossl.data.streams import ImageStream, load_stream
from hf_geossl.evaluation.evaluate import evaluate_model
from hf_geossl.hub.auto_classes import compose_model, load_backbone
from hf_geossl.hub.push import Publication, PublishedFile, PublishError, publish
from hf_geossl.modeling.configuration_equicoherent import EquiCoherentConfig
from hf_geossl.modeling.configuration_gtsa import GTSAConfig
from hf_geossl.modeling.configuration_loca import LOCAConfig
from hf_geossl.modeling.modeling_equicoherent import (
    EquiCoherentBackbone,
    EquiCoherentForDepthEstimation,
    EquiCoherentForImageClassification,
    EquiCoherentForObjectDetection,
    EquiCoherentForSemanticSegmentation,
    EquiCoherentModel,
)
from hf_geossl.modeling.modeling_gtsa import (
    GTSABackbone,
    GTSAForDepthEstimation,
    GTSAForImageClassification,
    GTSAForObjectDetection,
    GTSAForSemanticSegmentation,
    GTSAModel,
)
from hf_geossl.modeling.modeling_loca import (
    LOCABackbone,
    LOCAForDepthEstimation,
    LOCAForImageClassification,
    LOCAForObjectDetection,
    LOCAForSemanticSegmentation,
    LOCAModel,
)
from hf_geossl.modeling.pretraining_equicoherent import EquiCoherentForPreTraining, EquiCoherentForPreTrainingOutput
from hf_geossl.modeling.pretraining_gtsa import GTSAForPreTraining, GTSAForPreTrainingOutput
from hf_geossl.modeling.pretraining_loca import LOCAForPreTraining, LOCAForPreTrainingOutput
from hf_geossl.training.adaptation.initialization import load_for_pretraining
from hf_geossl.training.arguments import (
    TeacherStudentTrainingArguments,
)
from hf_geossl.training.arguments_equicoherent import EquiCoherentTrainingArguments
from hf_geossl.training.arguments_gtsa import GTSATrainingArguments
from hf_geossl.training.arguments_loca import LOCATrainingArguments
from hf_geossl.training.trainer import TeacherStudentTrainer
from hf_geossl.training.trainer_equicoherent import EquiCoherentTrainer
from hf_geossl.training.trainer_gtsa import GTSATrainer
from hf_geossl.training.trainer_loca import LOCATrainer
from hf_geossl.views.equicoherent import EquiCoherentViews
from hf_geossl.views.gtsa import GTSAViews
from hf_geossl.views.loca import LOCAViews

__version__: str
__all__ = [
    "EquiCoherentBackbone",
    "EquiCoherentConfig",
    "EquiCoherentForDepthEstimation",
    "EquiCoherentForImageClassification",
    "EquiCoherentForObjectDetection",
    "EquiCoherentForPreTraining",
    "EquiCoherentForPreTrainingOutput",
    "EquiCoherentForSemanticSegmentation",
    "EquiCoherentModel",
    "EquiCoherentTrainer",
    "EquiCoherentTrainingArguments",
    "EquiCoherentViews",
    "GTSABackbone",
    "GTSAConfig",
    "GTSAForDepthEstimation",
    "GTSAForImageClassification",
    "GTSAForObjectDetection",
    "GTSAForPreTraining",
    "GTSAForPreTrainingOutput",
    "GTSAForSemanticSegmentation",
    "GTSAModel",
    "GTSATrainer",
    "GTSATrainingArguments",
    "GTSAViews",
    "ImageStream",
    "LOCABackbone",
    "LOCAConfig",
    "LOCAForDepthEstimation",
    "LOCAForImageClassification",
    "LOCAForObjectDetection",
    "LOCAForPreTraining",
    "LOCAForPreTrainingOutput",
    "LOCAForSemanticSegmentation",
    "LOCAModel",
    "LOCATrainer",
    "LOCATrainingArguments",
    "LOCAViews",
    "Publication",
    "PublishError",
    "PublishedFile",
    "TeacherStudentTrainer",
    "TeacherStudentTrainingArguments",
    "compose_model",
    "evaluate_model",
    "load_backbone",
    "load_for_pretraining",
    "load_scenes",
    "load_stream",
    "publish",
]
