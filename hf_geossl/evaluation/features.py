"""Features of images, computed once: in batches, from a stream, cached on the disk by what they were computed from."""

import hashlib
import json
import logging
import math
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hf_geossl.evaluation.encoders import Encoder, Tokens, mixed_precision, unit_images
from hf_geossl.evaluation.options import EvaluationOptions
from hf_geossl.evaluation.samples import Samples

logger = logging.getLogger(__name__)

FORMAT = 1  # of the folders of the cache
PART, ABANDONED = ".part-", 2 * 86400.0  # begins names of unfinished folders; seconds after which nobody writes one
_OF_TOKENS = ("pooled", "both", "mean", "patches")


@dataclass(frozen=True)
class Transform:
    """A transform of images before they are encoded.

    Args:
        key (`str`): Names the transform with all of its numbers and seeds: features are cached by it. Empty where images
            stay as they are.
        apply (`Callable`): Maps a batch of samples, of which images and indices are sure to be there, to `(images, targets)`: uint8 or float images in [0, 1],
            `(batch, 3, height, width)`, and further targets by name, one row a sample. A function of the samples alone.
    """

    key: str
    apply: Callable[[dict[str, Any]], tuple[torch.Tensor, dict[str, torch.Tensor]]]


def compute_features(
    encoder: Encoder,
    samples: Samples,
    columns: Sequence[str],
    options: EvaluationOptions,
    *,
    transform: Transform | None = None,
) -> dict[str, np.ndarray]:
    """Computes features and targets of samples; what an earlier call has cached is read.

    Args:
        encoder (`Encoder`): The model.
        samples (`Samples`): The images, each visited once, in order.
        columns (`Sequence[str]`): Which: of the model `"pooled"`, `"both"`, `"mean"` (see `Tokens`), `"patches"`
            (`(rows, columns, width)` an image), `"class_tokens_N"` (of the last N layers); of the samples any target of
            one shape (`"label"`, `"multi_label"`, `"semantic"`, `"depth"`), `"image"` or `"index"`; of the transform its
            targets.
        options (`EvaluationOptions`): Batch size, cache and progress.
        transform (`Transform`, *optional*): Applied to the images first.

    Returns:
        `dict[str, numpy.ndarray]`: One row an image each, read from the disk as needed; features are float32 (computed in
        bfloat16 autocast on a GPU).

    Raises:
        ValueError: If the samples have no such target.
        RuntimeError: If not all images that were read for the cache can be read now.
    """
    key = _key(encoder, samples, transform)
    root = None if options.cache_dir is None else Path(options.cache_dir) / key
    cached = {} if root is None else {name: _open_column(root / name) for name in columns}
    missing = [name for name in columns if cached.get(name) is None]
    if root is not None and not (transform and transform.key) and any(map(_is_of_encoder, missing)):
        # other tasks want these of the same images: one pass of the trunk gives them all
        missing += [name for name in options.together if name not in columns and not (root / name).is_dir()]
    if not missing:
        return {name: array for name, array in cached.items() if array is not None}
    if root is None:
        folder = Path(tempfile.mkdtemp(prefix="hf_geossl-features-"))
    else:
        root.parent.mkdir(parents=True, exist_ok=True)
        _remove_abandoned(root.parent)
        folder = Path(tempfile.mkdtemp(prefix=PART, dir=root.parent))
    try:
        _write_columns(folder, encoder, samples, missing, options, transform)
        computed = {}
        for name in missing:
            if root is not None:
                _move(folder / name, root / name)
            computed[name] = _open_column((folder if root is None else root) / name)
    finally:
        shutil.rmtree(folder, ignore_errors=True)  # arrays that are mapped stay readable
    merged = {name: array for name in columns if (array := {**cached, **computed}[name]) is not None}
    lengths = {name: len(array) for name, array in merged.items()}
    if len(set(lengths.values())) > 1:
        raise RuntimeError(
            f"{samples.name} gave other images than before ({lengths}): some could not be read; empty the cache and try again"
        )
    return merged


def _key(encoder: Encoder, samples: Samples, transform: Transform | None) -> str:
    precision = "bfloat16" if encoder.device.type == "cuda" else "float32"
    parts = [FORMAT, encoder.fingerprint, samples.fingerprint, transform.key if transform else "", precision]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:32]


@torch.no_grad()
def _write_columns(
    folder: Path,
    encoder: Encoder,
    samples: Samples,
    columns: Sequence[str],
    options: EvaluationOptions,
    transform: Transform | None,
) -> None:
    """One pass over the samples; each column grows in a file of its own."""
    shapes: dict[str, tuple[tuple[int, ...], str]] = {}
    count = 0
    for name in columns:
        (folder / name).mkdir()
    files = {name: open(folder / name / "values.bin", "wb") for name in columns}  # noqa: SIM115
    try:
        encodes = any(map(_is_of_encoder, columns))
        with options.progress_bar(f"{encoder.name if encodes else 'images'}: {samples.name}", samples.count) as bar:
            wanted = list(dict.fromkeys(("image", "index", *columns)))
            for batch in samples.batches(options.batch_size, num_workers=options.num_workers, columns=wanted):
                targets: dict[str, Any] = dict(batch)
                images = batch["image"]
                if transform is not None:
                    images, further = transform.apply(batch)
                    targets |= further
                needed = [name for name in columns if name not in targets]
                samples.refuse_lack(*(name for name in needed if not _is_of_encoder(name)))
                features = _encode(encoder, images, needed) if needed else {}
                for name in columns:
                    values = np.ascontiguousarray((features | targets)[name].cpu().numpy())
                    shapes[name] = (values.shape[1:], str(values.dtype))
                    files[name].write(values.tobytes())
                count += len(batch["index"])
                bar.update(len(batch["index"]))
    finally:
        for file in files.values():
            file.flush()
            os.fsync(file.fileno())  # a form that outlives a power cut without its values would give zeros
            file.close()
    for name, (shape, dtype) in shapes.items():
        (folder / name / "form.json").write_text(json.dumps({"shape": [count, *shape], "dtype": dtype}))


def _is_of_encoder(name: str) -> bool:
    return name in _OF_TOKENS or name.startswith("class_tokens_")


def _encode(encoder: Encoder, images: torch.Tensor, columns: Sequence[str]) -> dict[str, torch.Tensor]:
    pixel_values = encoder.normalize(images)
    features: dict[str, torch.Tensor] = {}
    with mixed_precision(encoder.device):
        tokens: Tokens | None = None
        for name in columns:
            if name.startswith("class_tokens_"):
                features[name] = encoder.class_tokens(pixel_values, int(name.removeprefix("class_tokens_"))).float()
                continue
            tokens = encoder.tokens(pixel_values) if tokens is None else tokens
            features[name] = getattr(tokens, name).float()
    return features


def _open_column(folder: Path) -> np.ndarray | None:
    """A column of the cache; None where there is none, or a damaged one, which is deleted."""
    if not folder.is_dir():
        return None
    try:
        form = json.loads((folder / "form.json").read_text())
        shape, dtype = tuple(form["shape"]), np.dtype(form["dtype"])
        expected, size = math.prod(shape) * dtype.itemsize, (folder / "values.bin").stat().st_size
        if size != expected:
            raise ValueError(f"{size} bytes instead of {expected}")
        return np.memmap(folder / "values.bin", dtype, mode="r", shape=shape)
    except (OSError, ValueError, TypeError, KeyError) as error:
        why = error.strerror if isinstance(error, OSError) else error
        logger.warning(f"features of the cache are damaged and computed again ({folder.name}: {why})")
        shutil.rmtree(folder, ignore_errors=True)
        return None


def _move(source: Path, target: Path) -> None:
    """Puts a finished column in its place, unless another process has been faster."""
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.replace(source, target)
    except OSError:
        if _open_column(target) is None:
            os.replace(source, target)


def _remove_abandoned(cache: Path) -> None:
    """Deletes unfinished folders of runs that were killed."""
    for folder in cache.glob(f"{PART}*"):
        if time.time() - folder.stat().st_mtime > ABANDONED:
            shutil.rmtree(folder, ignore_errors=True)


THUMBNAIL_SIDE = 12  # pixels


def thumbnails(images: torch.Tensor) -> torch.Tensor:
    """Shrinks images to a few pixels: the baseline that a feature has to beat.

    Args:
        images (`torch.Tensor` of shape `(batch, 3, height, width)`): uint8, or float in [0, 1].

    Returns:
        `torch.Tensor` of shape `(batch, channels * 12 * 12)`: Means of areas, channel by channel, in [0, 1].
    """
    return torch.nn.functional.adaptive_avg_pool2d(unit_images(images), THUMBNAIL_SIDE).flatten(1)


def grey(colours: np.ndarray) -> np.ndarray:
    """Returns the mean of the channels of `thumbnails`, `(images, channels * pixels)` -> `(images, pixels)`."""
    return np.asarray(colours).reshape(len(colours), -1, THUMBNAIL_SIDE**2).mean(axis=1)


def thumbnailed(key: str, change: Callable[[torch.Tensor], torch.Tensor]) -> Transform:
    """A change of images, and the `"thumbnail"` of what comes out."""

    def apply(batch: dict[str, Any]) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        images = change(batch["image"])
        return images, {"thumbnail": thumbnails(images)}

    return Transform(key, apply)


THUMBNAILS = thumbnailed("", lambda images: images)
