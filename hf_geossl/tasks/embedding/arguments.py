"""What is computed of the images, and how they are read: the arguments of `embed`, checked."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

FEATURES = ("class_token", "pooled", "patches")
DTYPES = ("float32", "float16")
DEFAULT_MAX_PIXELS = 2**26
_NOT_OF_THE_TABLE = ("num_workers", "device", "revision", "trust_remote_code", "overwrite")  # they change no row


@dataclass(frozen=True)
class EmbeddingArguments:
    """Says which features of which images are written, and how.

    Args:
        split (`str`): Part of the dataset.
        features (`tuple[str, ...]`): Of `"class_token"`, `"pooled"` (what stands for an image: see `Tokens`), `"patches"`.
        dtype (`str`): `"float32"` or `"float16"`, as which features are stored.
        batch_size (`int`): Images that are encoded at a time.
        image_size (`int`, *optional*): Side in pixels to which images are scaled; what the model's processor does by default.
        tile (`int`, *optional*): Side in pixels of the tiles that larger images are cut into.
        tile_overlap (`int`): Pixels that neighbouring tiles share at least.
        shard_rows (`int`, *optional*): Images of a shard, the piece of work that is done whole or again; rounded up to whole
            batches.
        limit (`int`, *optional*): The first images only.
        columns (`tuple[str, ...]`, *optional*): Columns of the dataset that are carried along; all but images and maps by default.
        image_column (`str`): Column with the images.
        config_name, dataset_revision (`str`, *optional*): Of a dataset on the Hub; the first also the mode of the scenes.
        max_pixels (`int`): Images of more pixels count as broken.
        bf16 (`bool`): Whether the model runs in bfloat16 autocast; in float32 by default.
        num_workers (`int`, *optional*): Processes that decode images.
        device (`str`, *optional*): A GPU if there is one.
        revision (`str`, *optional*), trust_remote_code (`bool`): Of a model on the Hub.
        overwrite (`bool`): Whether an output that is there is made anew.

    Raises:
        ValueError: If a value makes no sense.
    """

    split: str = "train"
    features: tuple[str, ...] = ("pooled",)
    dtype: str = "float32"
    batch_size: int = 64
    image_size: int | None = None
    tile: int | None = None
    tile_overlap: int = 0
    shard_rows: int | None = None
    limit: int | None = None
    columns: tuple[str, ...] | None = None
    image_column: str = "image"
    config_name: str | None = None
    dataset_revision: str | None = None
    max_pixels: int = DEFAULT_MAX_PIXELS
    bf16: bool = False
    num_workers: int | None = None
    device: str | None = None
    revision: str | None = None
    trust_remote_code: bool = False
    overwrite: bool = False

    def __post_init__(self) -> None:
        unknown = [name for name in self.features if name not in FEATURES]
        if unknown or not self.features or len(set(self.features)) < len(self.features):
            raise ValueError(
                f"features must be different ones of {', '.join(FEATURES)}, got {', '.join(map(str, self.features)) or 'none'}"
            )
        if self.dtype not in DTYPES:
            raise ValueError(f"dtype must be {' or '.join(DTYPES)}, got {self.dtype!r}")
        for name in ("batch_size", "image_size", "tile", "shard_rows", "limit", "max_pixels"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        if self.num_workers is not None and self.num_workers < 0:
            raise ValueError(f"num_workers must be at least 0, got {self.num_workers}")
        if self.tile_overlap and self.tile is None:
            raise ValueError("tile_overlap means nothing without tile: give the side of the tiles too")
        if self.tile is not None and not 0 <= self.tile_overlap < self.tile:
            raise ValueError(f"tile_overlap must be at least 0 and less than tile={self.tile}, got {self.tile_overlap}")

    def of_the_table(self) -> Mapping[str, Any]:
        """Those that decide what stands in the table, as plain values for JSON."""
        values = asdict(self)
        return {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in values.items()
            if name not in _NOT_OF_THE_TABLE
        }
