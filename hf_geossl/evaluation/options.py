"""What all protocols are told, and what they give back."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from huggingface_hub.constants import HF_HOME
from PIL import Image
from tqdm.auto import tqdm

from hf_geossl.evaluation.encoders import Encoder
from hf_geossl.evaluation.samples import CLIP_FOLDERS, SCENES, Columns, Samples, load_samples

RANDOM_WEIGHTS = "random weights"  # the floor of the same architecture, untrained
DEFAULT_CACHE = Path(HF_HOME) / "hf_geossl" / "features"


@dataclass(frozen=True)
class EvaluationOptions:
    """How to evaluate.

    Args:
        batch_size (`int`): Images that are encoded at a time. Heads are trained with their protocol's batch size.
        num_workers (`int`): Processes that read and render images.
        seed (`int`): Of all that is drawn: transformations, heads, subsets, bootstrap.
        bootstrap (`int`): Resamples for the 95 % intervals; 0 leaves them out.
        cache_dir (`Path`, *optional*): Where features are kept; None keeps none.
        progress (`bool`): Whether progress bars are shown.
    """

    batch_size: int = 64
    num_workers: int = 0
    seed: int = 0
    bootstrap: int = 1000
    cache_dir: Path | None = DEFAULT_CACHE
    progress: bool = True

    def __post_init__(self) -> None:
        for name, least in (("batch_size", 1), ("num_workers", 0), ("seed", 0), ("bootstrap", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be at least {least}, got {getattr(self, name)}")

    def progress_bar(self, description: str, total: int | None, unit: str = "img") -> Any:
        """A progress bar on stderr, a context manager with `update(number)` and `set_postfix(loss=...)`."""
        return tqdm(
            total=total, desc=description, unit=f" {unit}", disable=not self.progress, leave=False, dynamic_ncols=True
        )


@dataclass(frozen=True)
class EvaluationData:
    """The data of an evaluation.

    Args:
        dataset (`str`): As in `load_samples`.
        size (`int`): Side of the images in pixels.
        limit (`int`, *optional*): At most so many images of each split.
        train_split, test_split (`str`): Which part heads are trained on, and which is measured.
        columns (`Columns`): What the columns are called.
        config_name, revision, token (`str`, *optional*): Of a dataset on the Hub; the mode ("topdown", "object") is the
            scenes' `config_name`.
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

    @property
    def train(self) -> Samples:
        """What heads are trained on."""
        return self.samples(self.train_split)

    @property
    def test(self) -> Samples:
        """What is measured."""
        return self.samples(self.test_split)

    @property
    def is_scenes(self) -> bool:
        """Whether these are the embedded scenes."""
        return self.dataset == SCENES

    @property
    def is_clips(self) -> bool:
        """Whether this is a folder of clips, laid out as DAVIS, which only label propagation reads."""
        return all((Path(self.dataset) / name).is_dir() for name in CLIP_FOLDERS)

    @property
    def mode(self) -> str:
        """The mode of the scenes: "scene", "topdown" or "object"; of other data "scene", which nothing asks for."""
        return (self.config_name if self.is_scenes else None) or "scene"

    def samples(self, split: str, *, size: int | None = None, mode: str | None = None) -> Samples:
        """A split at another size, or another mode of the scenes (other data has one mode)."""
        return load_samples(
            self.dataset,
            split,
            size=size or self.size,
            limit=self.limit,
            mode=mode or self.mode,
            columns=self.columns,
            config_name=self.config_name,
            revision=self.revision,
            token=self.token,
        )


@dataclass
class TaskResult:
    """What a protocol gives back.

    Args:
        metrics (`dict[str, float]`): The numbers, by name; the first is the main one.
        intervals (`dict[str, tuple[float, float]]`): 95 % bootstrap intervals of some of them.
        details (`dict`): Settings, floors by model, curves: anything that JSON holds.
        pictures (`dict[str, Callable[[], PIL.Image.Image]]`): What people look at, drawn when asked for.
    """

    metrics: dict[str, float]
    intervals: dict[str, tuple[float, float]] = field(default_factory=dict)
    details: dict[str, Any] = field(default_factory=dict)
    pictures: dict[str, Callable[[], Image.Image]] = field(default_factory=dict)


@dataclass(frozen=True)
class Task:
    """A protocol that can be asked for by name; each protocol's file holds a dictionary `TASKS` of them.

    Args:
        measure (`Callable`): Maps `(encoder, data, options, settings)` to a `TaskResult`.
        settings (`type`): A frozen dataclass of the protocol's own numbers, with its defaults.
        what (`str`): The protocol in a line, for `--help` and reports.
        lacks (`Callable`): Says of an encoder in a sentence what it lacks to be measured at all; None if nothing.
    """

    measure: Callable[[Encoder, EvaluationData, EvaluationOptions, Any], TaskResult]
    settings: type
    what: str
    lacks: Callable[[Encoder], str | None] = lambda encoder: None
