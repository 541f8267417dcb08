"""The keywords of `evaluate_model`."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict

from hf_geossl.evaluation.encoders import Encoder
from hf_geossl.evaluation.options import DEFAULT_CACHE, EvaluationData, EvaluationOptions
from hf_geossl.evaluation.reading.sample_store import SampleStore
from hf_geossl.evaluation.samples import Columns
from hf_geossl.evaluation.settings import QUICK_IMAGES


class EvaluationKeywords(TypedDict, total=False):
    """Further keywords of `evaluate_model`, with the defaults of `EvaluationArguments`."""

    limit: int | None
    image_size: int | None
    train_split: str
    test_split: str
    columns: Columns | None
    config_name: str | None
    dataset_revision: str | None
    token: str | None
    batch_size: int
    num_workers: int | None
    seed: int
    bootstrap: int
    cache_dir: str | Path | None
    progress: bool
    device: str | None
    trust_remote_code: bool
    revision: str | None
    quick: bool


@dataclass(frozen=True)
class EvaluationArguments:
    """How `evaluate_model` reads the data, computes, and opens the model.

    Args:
        limit (`int`, *optional*): At most so many images of each split.
        image_size (`int`, *optional*): Side of the images in pixels, a multiple of the patch size; the model's own by
            default.
        train_split, test_split (`str`): What heads are trained on, and what is measured.
        columns (`Columns`, *optional*): The names of the dataset's columns.
        config_name, dataset_revision, token (`str`, *optional*): Of a dataset on the Hub; the mode of the scenes ("topdown",
            "object") is their `config_name`.
        num_workers (`int`, *optional*): Processes that read and render images; as many as there are cores by default.
        batch_size, seed, bootstrap, cache_dir, progress: See `EvaluationOptions`.
        device (`str`, *optional*): A GPU if there is one.
        trust_remote_code, revision: Of a model on the Hub, see `load_encoder`.
        quick (`bool`): At most `QUICK_IMAGES` images of each split and short training of heads, see
            `hf_geossl.evaluation.settings.bounded`: whether all runs, in under a minute a task, and no number to publish.
    """

    limit: int | None = None
    image_size: int | None = None
    train_split: str = "train"
    test_split: str = "test"
    columns: Columns | None = None
    config_name: str | None = None
    dataset_revision: str | None = None
    token: str | None = None
    batch_size: int = 64
    num_workers: int | None = None
    seed: int = 0
    bootstrap: int = 1000
    cache_dir: str | Path | None = DEFAULT_CACHE
    progress: bool = True
    device: str | None = None
    trust_remote_code: bool = False
    revision: str | None = None
    quick: bool = False

    @property
    def most_images(self) -> int | None:
        """At most so many images of each split are read."""
        return min(self.limit or QUICK_IMAGES, QUICK_IMAGES) if self.quick else self.limit

    @property
    def options(self) -> EvaluationOptions:
        """How to compute."""
        cache = None if self.cache_dir is None else Path(self.cache_dir)
        workers = (os.cpu_count() or 1) if self.num_workers is None else self.num_workers
        return EvaluationOptions(self.batch_size, workers, self.seed, self.bootstrap, cache, self.progress)

    def data(self, dataset: str, encoder: Encoder, store: SampleStore | None = None) -> EvaluationData:
        """What to read, at a size that suits an encoder, and where decoded samples are kept."""
        if store is None:
            store = SampleStore(num_workers=self.options.num_workers, progress=self.progress)
        return EvaluationData(
            dataset,
            image_size_of(encoder, self.image_size),
            self.most_images,
            self.train_split,
            self.test_split,
            self.columns or Columns(),
            self.config_name,
            self.dataset_revision,
            self.token,
            encoder.image_format,
            store,
        )


def image_size_of(encoder: Encoder, side: int | None) -> int:
    """Checks that a side of images, in pixels, is a multiple of the patch size; by default that of training, rounded to one."""
    patch = encoder.patch_size
    if side is None:
        return max(1, round(encoder.image_size / patch)) * patch
    if side < patch or side % patch:
        nearest = max(1, round(side / patch)) * patch
        raise ValueError(
            f"image_size must be a multiple of the patch size {patch}, got {side}; {nearest} is the nearest"
        )
    return side
