"""Self-supervised vision transformers that keep geometry, for the Hugging Face stack.

Importing the package lets transformers' Auto classes open its models; everything is imported when it is first used. Types of the
public names are in `__init__.pyi`.
"""

from importlib import import_module

from hf_geossl.hub.auto_classes import register_auto_classes
from hf_geossl.methods import METHODS
from hf_geossl.version import __version__ as __version__

_HOMES = {
    "ImageStream": "hf_geossl.data.streams",
    "Publication": "hf_geossl.hub.push",
    "PublishError": "hf_geossl.hub.push",
    "PublishedFile": "hf_geossl.hub.push",
    "TeacherStudentTrainer": "hf_geossl.training.trainer",
    "TeacherStudentTrainingArguments": "hf_geossl.training.arguments",
    "compose_model": "hf_geossl.hub.auto_classes",
    "evaluate_model": "hf_geossl.evaluation.evaluate",
    "load_backbone": "hf_geossl.hub.auto_classes",
    "load_for_pretraining": "hf_geossl.training.adaptation.initialization",
    "load_scenes": "hf_geossl.data",
    "load_stream": "hf_geossl.data.streams",
    "publish": "hf_geossl.hub.push",
}
for _method in METHODS.values():
    _HOMES.update(_method.public_names())

__all__ = sorted(_HOMES)


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module 'hf_geossl' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return [*globals(), *__all__]


register_auto_classes()
