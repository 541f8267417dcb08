"""What people do with a trunk: fine-tune it, embed with it, predict with what came of it."""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from hf_geossl.tasks.embedding.arguments import EmbeddingArguments as EmbeddingArguments
    from hf_geossl.tasks.embedding.duplicates import find_duplicates as find_duplicates
    from hf_geossl.tasks.embedding.embed import embed as embed
    from hf_geossl.tasks.embedding.neighbours import find_neighbours as find_neighbours
    from hf_geossl.tasks.finetuning.arguments import FineTuningArguments as FineTuningArguments
    from hf_geossl.tasks.finetuning.finetune import measure_folder as measure_folder
    from hf_geossl.tasks.finetuning.finetune import prepare_finetuning as prepare_finetuning
    from hf_geossl.tasks.finetuning.splits import LabelledDataset as LabelledDataset
    from hf_geossl.tasks.prediction.predict import predict_images as predict_images
    from hf_geossl.tasks.prediction.settings import PredictionSettings as PredictionSettings

_HOMES = {
    "EmbeddingArguments": "hf_geossl.tasks.embedding.arguments",
    "find_duplicates": "hf_geossl.tasks.embedding.duplicates",
    "find_neighbours": "hf_geossl.tasks.embedding.neighbours",
    "embed": "hf_geossl.tasks.embedding.embed",
    "FineTuningArguments": "hf_geossl.tasks.finetuning.arguments",
    "LabelledDataset": "hf_geossl.tasks.finetuning.splits",
    "measure_folder": "hf_geossl.tasks.finetuning.finetune",
    "prepare_finetuning": "hf_geossl.tasks.finetuning.finetune",
    "PredictionSettings": "hf_geossl.tasks.prediction.settings",
    "predict_images": "hf_geossl.tasks.prediction.predict",
}

__all__ = sorted(_HOMES)


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module 'hf_geossl.tasks' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
