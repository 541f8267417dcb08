"""How an evaluation computes, and on which data."""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NoReturn

import numpy as np
from huggingface_hub.constants import HF_HOME
from tqdm.auto import tqdm

from hf_geossl.data.sources.opening import holds_clips
from hf_geossl.evaluation.bootstrap import interval
from hf_geossl.evaluation.reading.sample_store import SampleStore, update_seconds
from hf_geossl.evaluation.samples import SCENES, Columns, Samples, load_samples
from hf_geossl.evaluation.truth import SharedTruth
from hf_geossl.modeling.image_format import ImageFormat

logger = logging.getLogger(__name__)

DEFAULT_CACHE = Path(HF_HOME) / "hf_geossl" / "features"


@dataclass(frozen=True)
class EvaluationOptions:
    """How to evaluate.

    Args:
        batch_size (`int`): Images that are encoded at a time. Heads are trained with their protocol's batch size.
        num_workers (`int`): Processes that read and render images.
        seed (`int`): Of all random draws: transformations, heads, subsets, bootstrap.
        bootstrap (`int`): Resamples for the 95 % intervals; 0 leaves them out.
        cache_dir (`Path`, *optional*): Where features are cached; nowhere if None.
        progress (`bool`): Whether progress bars are shown.
        together (`tuple[str, ...]`): Features that further tasks need of the same images: they are computed and cached with
            the first of them, see `compute_features`.
    """

    batch_size: int = 64
    num_workers: int = 0
    seed: int = 0
    bootstrap: int = 1000
    cache_dir: Path | None = DEFAULT_CACHE
    progress: bool = True
    together: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name, least in (("batch_size", 1), ("num_workers", 0), ("seed", 0), ("bootstrap", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be at least {least}, got {getattr(self, name)}")

    @contextmanager
    def feature_cache(self) -> Iterator["EvaluationOptions"]:
        """These options with a cache of features: their own, or a temporary one for what tasks share."""
        if self.cache_dir is not None:
            try:
                self.cache_dir.mkdir(parents=True, exist_ok=True)
                with TemporaryDirectory(dir=self.cache_dir):
                    pass
            except OSError as error:  # of a home that is read-only, or none
                logger.warning(
                    "features are not cached for other runs: %s cannot be written (%s); --cache_dir names another folder",
                    self.cache_dir, error.strerror or error,
                )  # fmt: skip
            else:
                yield self
                return
        with TemporaryDirectory(prefix="hf_geossl-features-") as folder:
            yield replace(self, cache_dir=Path(folder))

    def progress_bar(self, description: str, total: int | None, unit: str = "img") -> "tqdm[NoReturn]":
        """A progress bar on stderr, a context manager with `update(number)` and `set_postfix(loss=...)`."""
        return tqdm(
            total=total,
            desc=description,
            unit=f" {unit}",
            disable=not self.progress,
            leave=False,
            dynamic_ncols=True,
            mininterval=update_seconds(),
        )

    def batches(self, samples: Samples, description: str) -> Iterator[dict[str, Any]]:
        """Every sample once, in order, in batches, beside a progress bar."""
        with self.progress_bar(description, samples.count) as bar:
            for batch in samples.batches(self.batch_size, num_workers=self.num_workers):
                yield batch
                bar.update(len(batch["index"]))

    def intervals(
        self, summarize: Callable[[np.ndarray], dict[str, float]], sums: np.ndarray
    ) -> dict[str, tuple[float, float]]:
        """`interval` of the numbers of sums over images; empty without a bootstrap."""
        return interval(summarize, sums, repeats=self.bootstrap, seed=self.seed) if self.bootstrap else {}


@dataclass(frozen=True)
class EvaluationData:
    """The data of an evaluation.

    Args:
        dataset (`str`): As in `load_samples`.
        size (`int`): Side of the images in pixels.
        limit (`int`, *optional*): At most so many images of each split.
        train_split, test_split (`str`): Which split heads are trained on, and which is measured.
        columns (`Columns`): The names of its columns.
        config_name, revision, token (`str`, *optional*): Of a dataset on the Hub; the mode ("topdown", "object") is the
            scenes' `config_name`.
        image_format (`ImageFormat`, *optional*): What the model's images are; RGB of 8 bits by default.
        store (`SampleStore`): Where decoded samples are kept, for all tasks; its own by default.
    """

    dataset: str = SCENES
    size: int = 96
    limit: int | None = None
    train_split: str = "train"
    test_split: str = "test"
    columns: Columns = field(default_factory=Columns)
    config_name: str | None = None
    revision: str | None = None
    token: str | None = None
    image_format: ImageFormat | None = None
    store: SampleStore = field(default_factory=SampleStore, compare=False, repr=False)
    _shared: SharedTruth = field(init=False, compare=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_shared", SharedTruth((self.train_split, self.test_split)))

    @property
    def train(self) -> Samples:
        """The samples that heads are trained on."""
        return self.samples(self.train_split)

    @property
    def test(self) -> Samples:
        """The samples that are measured."""
        return self.samples(self.test_split)

    @property
    def is_scenes(self) -> bool:
        """Whether these are the embedded scenes."""
        return self.dataset == SCENES

    @property
    def is_clips(self) -> bool:
        """Whether this is a folder of clips, laid out as DAVIS, which only label propagation reads."""
        return holds_clips(Path(self.dataset))

    @property
    def mode(self) -> str:
        """The mode of the scenes: "scene", "topdown" or "object"; "scene" of other data, which have no modes."""
        return (self.config_name if self.is_scenes else None) or "scene"

    def samples(self, split: str, *, size: int | None = None, mode: str | None = None) -> Samples:
        """A split at another size, or another mode of the scenes (other data has one mode)."""
        samples = load_samples(
            self.dataset,
            split,
            size=size or self.size,
            limit=self.limit,
            mode=mode or self.mode,
            columns=self.columns,
            config_name=self.config_name,
            revision=self.revision,
            token=self.token,
            image_format=self.image_format,
            shared=self._shared if split in self._shared.splits else None,
        )
        return samples.store_in(self.store)
