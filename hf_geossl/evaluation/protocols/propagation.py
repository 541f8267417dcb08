"""Label propagation in video: the first frame's masks are propagated by the similarity of features; nothing is trained."""

import logging
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.nn import functional

from hf_geossl.data import SEMANTIC_CLASSES
from hf_geossl.data.wording import counted, name_of
from hf_geossl.evaluation.bootstrap import metric_intervals
from hf_geossl.evaluation.clips import Clip, folder_clips, scene_clips
from hf_geossl.evaluation.encoders import Encoder, mixed_precision
from hf_geossl.evaluation.metrics.j_and_f import JAndF
from hf_geossl.evaluation.metrics.mean_iou import MeanIoU
from hf_geossl.evaluation.metrics.metric import Metric
from hf_geossl.evaluation.options import EvaluationData, EvaluationOptions
from hf_geossl.evaluation.protocol import EvaluationProtocol, TaskResult
from hf_geossl.evaluation.settings import ProtocolSettings, Scale, Work

logger = logging.getLogger(__name__)

IGNORED = 255  # in masks: a pixel without truth
RADIUS = 12  # patches
SCENE_RADIUS = RADIUS / 60  # of the grid's side
_BLOCK = 2**24  # affinities in memory at once: 64 MB


@dataclass(frozen=True)
class PropagationSettings(ProtocolSettings):
    """How labels are propagated.

    The defaults are DINO's for DAVIS 2017 (top 5, 7 frames and the first, radius 12 patches at 480 pixels, temperature .1); VIP
    is `PropagationSettings(semantic=True, top_k=10, context_frames=20, side=560)`.

    Args:
        context_frames (`int`): Frames before the present one that labels come from, beside the first.
        top_k (`int`): Most similar patches whose labels are averaged.
        temperature (`float`): Of the softmax over cosine similarities.
        radius (`int`, *optional*): Patches, along each axis, within which a patch is compared with others. By default 12 for data on
            the disk, as published at 480 pixels for patches of 8 and of 16 alike (DINO, iBOT); for scenes, which are small,
            a fifth of the grid's shorter side, as 12 is of 60.
        semantic (`bool`): Masks hold classes, and their mean IoU is measured, not J and F of objects.
        side (`int`): Shorter side in pixels that frames of a folder are resized to.
        magnification (`int`): Of scenes: side of the frames over the data's, as DAVIS shows models of 224 pixels 480.
        clips (`int`): Of scenes: how many, at most the data's limit.
        frames (`int`): Of scenes: frames a clip, 3 or more.
        seconds (`float`): Of scenes: from the first frame to the last, at most 2.
        smallest_object (`float`): Of scenes: share of the image below which an object of the first frame is background.
    """

    context_frames: int = 7
    top_k: int = 5
    temperature: float = 0.1
    radius: int | None = None
    semantic: bool = False
    side: int = 480
    magnification: int = 2
    clips: int = 50
    frames: int = 8
    seconds: float = 1.0
    smallest_object: float = 0.01

    def work(self, scale: Scale) -> Work:
        """See `ProtocolSettings`."""
        frames = min(self.clips, scale.test) * self.frames * self.magnification**2
        affinities = 2.0 * frames * (self.context_frames + 1) * scale.width * (scale.tokens * self.magnification) ** 2
        return Work({"frames": frames}, 2 * frames, operations=affinities)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.temperature <= 0 or (self.radius is not None and self.radius < 0):
            raise ValueError(
                f"temperature must be above 0 and radius not negative, got {self.temperature}, {self.radius}"
            )
        if not 0 < self.seconds <= 2:
            raise ValueError(f"seconds must be above 0 and at most 2, got {self.seconds}")


def propagate_labels(
    features: torch.Tensor,
    labels: torch.Tensor,
    *,
    context_frames: int = 7,
    top_k: int = 5,
    radius: int = RADIUS,
    temperature: float = 0.1,
) -> torch.Tensor:
    """Propagates the labels of a clip's first frame to the others.

    Those of a patch are the average of the `top_k` most similar patches' within `radius` rows and columns, in the first frame
    and the frames just before.

    Args:
        features (`torch.Tensor` of shape `(frames, rows, columns, width)`): Patch tokens.
        labels (`torch.Tensor` of shape `(rows, columns, labels)`): Shares of each label in the first frame's patches.
        context_frames, top_k, radius, temperature: See `PropagationSettings`.

    Returns:
        `torch.Tensor` of shape `(frames, rows, columns, labels)`: Shares, float32, the first frame's as they came.

    Source: Jabri et al. (arXiv 2006.14613), as in DINO (arXiv 2104.14294), section 4.2.1.
    """
    if features.ndim != 4 or labels.ndim != 3 or features.shape[1:3] != labels.shape[:2]:
        raise ValueError(
            "features must have shape (frames, rows, columns, width) and labels (rows, columns, labels), got "
            f"{tuple(features.shape)} and {tuple(labels.shape)}"
        )
    count, rows, columns, _ = features.shape
    features = functional.normalize(features.float(), dim=-1)
    shares = [labels.float()]
    beside = torch.arange(columns, device=features.device)
    near_columns = (beside[:, None] - beside).abs() <= radius  # (columns, columns)
    for frame in range(1, count):
        context = sorted({0, *range(max(0, frame - context_frames), frame)})
        keys, values = features[context], torch.stack([shares[index] for index in context])
        # as many rows at a time as memory allows, compared with the rows in reach alone
        step = max(1, min(rows, _BLOCK // (columns * len(context) * min(rows, 2 * radius + 1) * columns)))
        blocks = []
        for start in range(0, rows, step):
            stop = min(start + step, rows)
            low, high = max(0, start - radius), min(rows, stop + radius)
            affinity = torch.einsum("rcd,fsed->rcfse", features[frame, start:stop], keys[:, low:high])
            here = torch.arange(start, stop, device=features.device)
            there = torch.arange(low, high, device=features.device)
            near_rows = (here[:, None] - there).abs() <= radius
            far = ~(near_rows[:, None, None, :, None] & near_columns[None, :, None, None, :])
            affinity = affinity.masked_fill(far, -torch.inf).flatten(2)  # (rows, columns, candidates)
            best, where = affinity.topk(min(top_k, affinity.shape[-1]), dim=-1)
            weights = (best / temperature).softmax(dim=-1)  # 0 where fewer than top_k are in reach
            candidates = values[:, low:high].flatten(0, 2)
            blocks.append(torch.einsum("rck,rckl->rcl", weights, candidates[where]))
        shares.append(torch.cat(blocks))
    return torch.stack(shares)


@torch.no_grad()
def propagate_masks(encoder: Encoder, clip: Clip, settings: PropagationSettings, *, batch_size: int = 8) -> np.ndarray:
    """The masks of a clip, uint8, from its first one by the patch tokens of the last layer, `batch_size` frames at a time."""
    frames = torch.from_numpy(clip.frames).permute(0, 3, 1, 2)
    _check_sides(encoder, tuple(frames.shape[-2:]))
    features = []
    for part in frames.split(batch_size):
        with mixed_precision(encoder.device):
            features.append(encoder.tokens(encoder.normalize(part)).patches.float())
    patches = torch.cat(features)
    rows, columns = patches.shape[1:3]
    ids = _ids(clip)
    shares = propagate_labels(
        patches,
        _shares(clip.masks[0], ids, (rows, columns)).to(encoder.device),
        context_frames=settings.context_frames,
        top_k=settings.top_k,
        radius=RADIUS if settings.radius is None else settings.radius,
        temperature=settings.temperature,
    )
    return np.stack([clip.masks[0], *(_enlarge(share, ids, clip.masks.shape[1:]) for share in shares[1:])])


def _ids(clip: Clip) -> np.ndarray:
    """The labels of the first frame, background among them."""
    ids = np.union1d(clip.masks[0], [0])
    return ids[ids != IGNORED]


def _shares(mask: np.ndarray, ids: np.ndarray, grid: tuple[int, int]) -> torch.Tensor:
    """The share of each label in each patch, `(rows, columns, labels)`."""
    one_hot = torch.from_numpy(mask[None] == ids[:, None, None]).float()
    return functional.adaptive_avg_pool2d(one_hot, grid).permute(1, 2, 0)


def _enlarge(shares: torch.Tensor, ids: np.ndarray, size: tuple[int, ...]) -> np.ndarray:
    """Shares `(rows, columns, labels)` as a mask `(height, width)`, uint8."""
    enlarged = functional.interpolate(shares.permute(2, 0, 1)[None], size, mode="bilinear", align_corners=False)
    return ids[enlarged[0].argmax(dim=0).cpu().numpy()].astype(np.uint8)


def measure_propagation(
    encoder: Encoder, data: EvaluationData, options: EvaluationOptions, settings: PropagationSettings
) -> TaskResult:
    """`j_and_f_mean`, `j_mean` and `f_mean` (`mean_iou`, `pixel_accuracy`, `mean_class_accuracy` if `semantic`) of masks.

    Beside them what leaving the first mask in place gives, and the same architecture with random weights; and as the ceiling
    what the true masks give that are reduced to the grid of patches.

    Clips are made of scenes in the data's mode, or read from the test split of a folder, see `folder_clips`. Of mode "object"
    most objects hardly move: mind the floor `first_mask`.

    Raises:
        ValueError: If the data are neither, or the image size is no multiple of the patch size.
    """
    if data.is_scenes and settings.radius is None:
        rows = data.size * settings.magnification // encoder.patch_size
        settings = replace(settings, radius=max(1, round(rows * SCENE_RADIUS)))
    readers = _readers(encoder, data, settings)
    contenders = {"": encoder, "random_weights": encoder.random_twin(options.seed)}
    metric: Metric[Any] = JAndF(ignore_index=IGNORED)
    if settings.semantic:
        metric = MeanIoU(len(SEMANTIC_CLASSES) if data.is_scenes else IGNORED, IGNORED)
    parts: dict[str, list[Any]] = {}
    clips = frames = 0
    changes: Counter[str] = Counter()
    shown: list[tuple[Clip, np.ndarray]] = []
    with options.progress_bar(f"{encoder.name}: label propagation", len(readers), unit="clip") as bar:
        for read in readers:
            clip, clips = read(), clips + 1
            frames += len(clip.frames)
            changes.update(clip.changes)
            masks = {
                name: propagate_masks(one, clip, settings, batch_size=options.batch_size)
                for name, one in contenders.items()
            }
            masks |= _reference_masks(clip, encoder.patch_size)
            for name, predicted in masks.items():
                parts.setdefault(name, []).append(_row_of(metric, predicted, clip))
            if not shown and len(np.unique(clip.masks[0])) > 1:
                shown.append((clip, masks[""]))
            bar.update()
    _report(changes, frames, f"{name_of(data.dataset)} ({data.test_split})")
    rows_of = {name: metric.join(rows) for name, rows in parts.items()}
    others = {name: metric.numbers_of(rows) for name, rows in rows_of.items() if name}
    details = {
        "settings": asdict(settings),
        "radius": RADIUS if settings.radius is None else settings.radius,
        "clips": clips,
        "ceiling": others.pop("ceiling"),
        "floors": others,
    }
    if not settings.semantic:
        details["objects"] = sum(map(len, rows_of[""]))
    return TaskResult(
        metric.numbers_of(rows_of[""]),
        metric_intervals(metric, rows_of[""], repeats=options.bootstrap, seed=options.seed),
        details,
        {"strip": partial(_draw, *shown[0], encoder.name)} if shown else {},
    )


def _readers(encoder: Encoder, data: EvaluationData, settings: PropagationSettings) -> list[Callable[[], Clip]]:
    """Functions that read or render a clip each, to be called in order."""
    if encoder.image_format is not None:
        raise ValueError(
            f"clips are RGB of 8 bits, and {encoder.name} takes {encoder.image_format.describe()}: leave propagation out"
        )
    if not data.is_scenes:
        if not Path(data.dataset).is_dir():
            raise ValueError(f"propagation needs clips: the scenes, or a folder laid out as DAVIS, got {data.dataset}")
        return folder_clips(data.dataset, data.test_split, settings.side, encoder.patch_size, limit=data.limit)
    size = data.size * settings.magnification
    _check_sides(encoder, (size, size))
    clips = scene_clips(
        data.test_split,
        size,
        data.mode,
        clips=settings.clips,
        frames=settings.frames,
        seconds=settings.seconds,
        smallest_object=None if settings.semantic else settings.smallest_object,
    )
    return [lambda: next(clips)] * min(settings.clips, data.limit or settings.clips)


def _report(changes: Mapping[str, int], frames: int, name: str) -> None:
    """Says what reading did to frames, in a line each."""
    for what, number in changes.items():
        logger.warning("%s: %s: %d (%s read)", name, what, number, counted(frames, "frame"))


def _reference_masks(clip: Clip, patch_size: int) -> dict[str, np.ndarray]:
    """The masks of a floor, the first mask left in place, and of a ceiling, true masks reduced to the grid of patches."""
    grid = (clip.frames.shape[1] // patch_size, clip.frames.shape[2] // patch_size)
    ids = _ids(clip)
    first = np.where(clip.masks[:1] == IGNORED, 0, clip.masks[:1])
    return {
        "first_mask": np.repeat(first, len(clip.masks), axis=0),
        "ceiling": np.stack([_enlarge(_shares(mask, ids, grid), ids, mask.shape) for mask in clip.masks]),
    }


def _row_of(metric: Metric[Any], predicted: np.ndarray, clip: Clip) -> Any:
    """What a clip contributes to the metric: one row. The first frame, which is given, is left out."""
    if isinstance(metric, JAndF):
        return metric.rows_of([predicted], [clip.masks])
    return metric.rows_of(predicted[1:], clip.masks[1:]).sum(axis=0, keepdims=True)


def _draw(clip: Clip, predicted: np.ndarray, name: str) -> Image.Image:
    from hf_geossl.evaluation.pictures.images import strip

    shape = clip.masks.shape[:0:-1]
    frames = np.stack([np.asarray(Image.fromarray(frame).resize(shape)) for frame in clip.frames])
    return strip(frames, predicted, f"{name}: {clip.name}", truths=clip.masks)


def _check_sides(encoder: Encoder, sides: tuple[int, ...]) -> None:
    if any(side % encoder.patch_size for side in sides):
        raise ValueError(
            f"image sides must be multiples of {encoder.name}'s patch size {encoder.patch_size}, got {sides}"
        )


PROTOCOLS = {"propagation": EvaluationProtocol(measure_propagation, PropagationSettings)}
