"""Label propagation in video: the first frame's masks are carried along by features alone; nothing is trained."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.nn import functional

from hf_geossl.data import SEMANTIC_CLASSES, sample_scene
from hf_geossl.data.images import decode_image
from hf_geossl.data.scenes import render
from hf_geossl.evaluation.bootstrap import interval
from hf_geossl.evaluation.encoders import Encoder, mixed_precision
from hf_geossl.evaluation.metrics import j_and_f, mean_iou
from hf_geossl.evaluation.options import EvaluationData, EvaluationOptions, Task, TaskResult
from hf_geossl.evaluation.protocols.fit import check_settings

IGNORED = 255  # in masks: a pixel without truth
RADIUS = 12  # patches
SCENE_RADIUS = RADIUS / 60  # of the grid's side
_BLOCK = 2**24  # affinities held at once: 64 MB


@dataclass(frozen=True)
class PropagationSettings:
    """How labels are propagated. The defaults are DINO's for DAVIS 2017 (top 5, 7 frames and the first, radius 12 patches at
    480 pixels, temperature .1); VIP is `PropagationSettings(semantic=True, top_k=10, context_frames=20, side=560)`.

    Args:
        context_frames (`int`): Frames before the present one that labels come from, beside the first.
        top_k (`int`): Most similar patches whose labels are averaged.
        temperature (`float`): Of the softmax over cosine similarities.
        radius (`int`, *optional*): Patches, along each axis, within which a patch looks for others. By default 12 for data on
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

    def __post_init__(self) -> None:
        check_settings(self)
        least = {"context_frames": 1, "top_k": 1, "side": 1, "magnification": 1, "clips": 1, "frames": 3}
        for name, number in least.items():
            if getattr(self, name) < number:
                raise ValueError(f"{name} must be at least {number}, got {getattr(self, name)}")
        if self.temperature <= 0 or (self.radius is not None and self.radius < 0):
            raise ValueError(
                f"temperature must be above 0 and radius not negative, got {self.temperature}, {self.radius}"
            )
        if not 0 < self.seconds <= 2:
            raise ValueError(f"seconds must be above 0 and at most 2, got {self.seconds}")


@dataclass(frozen=True)
class Clip:
    """A video with truth.

    Args:
        name (`str`): What it is called.
        frames (`numpy.ndarray` of shape `(frames, height, width, 3)`, uint8): RGB, as they are encoded.
        masks (`numpy.ndarray` of shape `(frames, height, width)`, uint8): Ids of objects, or classes; 0 is background, 255
            where there is no truth. At their own size, at which they are compared.
    """

    name: str
    frames: np.ndarray
    masks: np.ndarray


def propagate_labels(
    features: torch.Tensor,
    labels: torch.Tensor,
    *,
    context_frames: int = 7,
    top_k: int = 5,
    radius: int = RADIUS,
    temperature: float = 0.1,
) -> torch.Tensor:
    """Carries the labels of a clip's first frame to the others: those of a patch are the average of the `top_k` most similar
    patches' within `radius` rows and columns, in the first frame and the frames just before.

    Args:
        features (`torch.Tensor` of shape `(frames, rows, columns, width)`): Patch tokens.
        labels (`torch.Tensor` of shape `(rows, columns, labels)`): Shares of each label in the first frame's patches.
        context_frames, top_k, radius, temperature: See `PropagationSettings`.

    Returns:
        `torch.Tensor` of shape `(frames, rows, columns, labels)`: Shares of each label, float32, the first frame's as they
        came.

    Raises:
        ValueError: If shapes do not fit.

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
    """The masks of a clip, from its first one.

    Args:
        encoder (`Encoder`): Whose patch tokens of the last layer are compared.
        clip (`Clip`): Sides of its frames are multiples of the encoder's patch size.
        settings (`PropagationSettings`): How.
        batch_size (`int`): Frames that are encoded at a time.

    Returns:
        `numpy.ndarray` of shape `(frames, height, width)`, uint8: Of the size of its masks; the first is the given one.
    """
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


def scene_clips(split: str, size: int, settings: PropagationSettings, mode: str = "scene") -> Iterator[Clip]:
    """Clips of the scenes of a mode, in order; objects that the first frame does not show, or too small, are background."""
    for index in range(settings.clips):
        scene = sample_scene(split, index, mode=mode)
        times = np.linspace(0, settings.seconds, settings.frames)
        rendered = [render(scene, size, float(t)) for t in times]
        if settings.semantic:
            masks = np.stack([frame.semantic for frame in rendered])
        else:
            masks = np.stack([frame.instance for frame in rendered])
            areas = np.bincount(masks[0].ravel(), minlength=256)
            kept = areas >= settings.smallest_object * size**2
            masks = np.where(kept[masks], masks, 0).astype(np.uint8)
        yield Clip(f"{split} {index}", np.stack([frame.image for frame in rendered]), masks)


def folder_clips(folder: str | Path, split: str, side: int, multiple: int, *, limit: int | None = None) -> list[Any]:
    """The clips of a folder in the layout of DAVIS: `JPEGImages/480p/CLIP/*.jpg` and `Annotations/480p/CLIP/*.png`, where a
    pixel's palette index is its object or class (the folder `480p` may be missing).

    Args:
        folder (`str` or `Path`): The dataset.
        split (`str`): Which clips where `ImageSets/2017/*.txt` or `ImageSets/*.txt` list them; otherwise all are taken.
        side (`int`): Shorter side of the frames in pixels, rounded to the multiple.
        multiple (`int`): What both sides are multiples of.
        limit (`int`, *optional*): At most so many.

    Returns:
        A list of functions without arguments that read a `Clip` each.

    Raises:
        ValueError: If the folder has another layout, no such split, or a clip without masks.
    """
    root = Path(folder)
    images, masks = root / "JPEGImages", root / "Annotations"
    if not images.is_dir() or not masks.is_dir():
        raise ValueError(
            f"{root.name} must hold JPEGImages and Annotations as DAVIS does: choose another folder, or the scenes"
        )
    images, masks = (part / "480p" if (part / "480p").is_dir() else part for part in (images, masks))
    lists = next((path for path in (root / "ImageSets/2017", root / "ImageSets") if list(path.glob("*.txt"))), None)
    if lists is None:
        names = sorted(path.name for path in images.iterdir() if path.is_dir())
    elif not (lists / f"{split}.txt").is_file():
        known = ", ".join(sorted(path.stem for path in lists.glob("*.txt")))
        raise ValueError(f"{root.name} has no split {split!r} but {known}: choose it by test_split")
    else:
        names = (lists / f"{split}.txt").read_text().split()

    def reader(name: str) -> Any:
        frames = sorted(path for path in (images / name).glob("*") if path.suffix.lower() in (".jpg", ".jpeg", ".png"))
        if len(frames) < 3:
            raise ValueError(f"the clip {name} of {root.name} must have at least 3 frames, got {len(frames)}")
        for frame in frames:
            if not (masks / name / f"{frame.stem}.png").is_file():
                raise ValueError(f"the clip {name} of {root.name} has no mask {frame.stem}.png")

        def read() -> Clip:
            pictures = [decode_image(str(frame)) for frame in frames]
            width, height = pictures[0].size
            scale = side / min(width, height)
            shape = [max(1, round(length * scale / multiple)) * multiple for length in (width, height)]
            return Clip(
                name,
                np.stack([np.asarray(picture.resize(shape, Image.Resampling.BICUBIC)) for picture in pictures]),
                np.stack([_read_mask(masks / name / f"{frame.stem}.png") for frame in frames]),
            )

        return read

    return [reader(name) for name in names[:limit]]


def _read_mask(path: Path) -> np.ndarray:
    with Image.open(path, formats=("PNG",)) as mask:
        if mask.mode not in ("P", "L", "1"):
            raise ValueError(
                f"the mask {path.parent.name}/{path.name} must hold ids (mode P or L), got mode {mask.mode}"
            )
        return np.asarray(mask).astype(np.uint8)


def measure_propagation(
    encoder: Encoder, data: EvaluationData, options: EvaluationOptions, settings: PropagationSettings
) -> TaskResult:
    """J, F and their mean (mean IoU with `semantic`) of propagated masks; beside it what leaving the first mask in place gives,
    and the same architecture with random weights; and as the ceiling what the true masks give that are put through the grid
    of patches.

    Args:
        encoder (`Encoder`): The model.
        data (`EvaluationData`): Scenes, of which clips are made in their mode, or a folder as `folder_clips` reads it; its
            test split. Of mode "object" most things hardly move: mind the floor `first_mask`.
        options (`EvaluationOptions`): How to evaluate.
        settings (`PropagationSettings`): How labels are propagated.

    Returns:
        `TaskResult`: `j_and_f_mean`, `j_mean`, `f_mean`, or `mean_iou`, `pixel_accuracy`, `mean_class_accuracy`.

    Raises:
        ValueError: If the data are neither, or the image size is no multiple of the patch size.
    """
    readers: list[Any]
    if data.is_scenes:
        size = data.size * settings.magnification
        _check_sides(encoder, (size, size))
        if settings.radius is None:
            settings = replace(settings, radius=max(1, round(size // encoder.patch_size * SCENE_RADIUS)))
        count = min(settings.clips, data.limit or settings.clips)
        clips: Iterator[Clip] = scene_clips(data.test_split, size, settings, data.mode)
        readers = [lambda: next(clips)] * count
    else:
        if not Path(data.dataset).is_dir():
            raise ValueError(f"propagation needs clips: the scenes, or a folder laid out as DAVIS, got {data.dataset}")
        readers = folder_clips(data.dataset, data.test_split, settings.side, encoder.patch_size, limit=data.limit)
    contenders = {"": encoder, "random_weights": encoder.random_twin(options.seed)}
    sums: dict[str, list[np.ndarray]] = {"": [], "random_weights": [], "first_mask": [], "ceiling": []}
    summarize: Any = mean_iou.summarize if settings.semantic else j_and_f.summarize
    names: list[str] = []
    shown: list[tuple[Clip, np.ndarray]] = []
    with options.progress_bar(f"{encoder.name}: label propagation", len(readers), unit="clip") as bar:
        for read in readers:
            clip = read()
            names.append(clip.name)
            masks = {
                name: propagate_masks(one, clip, settings, batch_size=options.batch_size)
                for name, one in contenders.items()
            }
            first = np.where(clip.masks[:1] == IGNORED, 0, clip.masks[:1])
            grid = (clip.frames.shape[1] // encoder.patch_size, clip.frames.shape[2] // encoder.patch_size)
            masks["ceiling"] = np.stack(
                [_enlarge(_shares(mask, _ids(clip), grid), _ids(clip), mask.shape) for mask in clip.masks]
            )
            masks["first_mask"] = np.repeat(first, len(clip.masks), axis=0)
            for name, predicted in masks.items():
                sums[name].append(_sums_of(predicted, clip, settings, data.is_scenes))
            if not shown and len(np.unique(clip.masks[0])) > 1:
                shown.append((clip, masks[""]))
            bar.update()
    merged = {name: np.concatenate(parts) for name, parts in sums.items()}
    others = {name: summarize(rows.sum(axis=0)) for name, rows in merged.items() if name}
    result = TaskResult(
        metrics=summarize(merged[""].sum(axis=0)),
        details={
            "settings": asdict(settings),
            "radius": RADIUS if settings.radius is None else settings.radius,
            "clips": len(names),
            "ceiling": others.pop("ceiling"),
            "floors": others,
        },
    )
    if not settings.semantic:
        result.details["objects"] = int(merged[""][:, 2].sum())
    if options.bootstrap:
        result.intervals = interval(summarize, merged[""], repeats=options.bootstrap, seed=options.seed)

    def draw() -> Image.Image:
        from hf_geossl.evaluation.pictures import strip

        clip, predicted = shown[0]
        shape = clip.masks.shape[:0:-1]
        frames = np.stack([np.asarray(Image.fromarray(frame).resize(shape)) for frame in clip.frames])
        return strip(frames, predicted, f"{encoder.name}: {clip.name}", truths=clip.masks)

    if shown:
        result.pictures["strip"] = draw
    return result


def _sums_of(predicted: np.ndarray, clip: Clip, settings: PropagationSettings, is_scenes: bool) -> np.ndarray:
    """What a clip adds to the metric: one row. The first frame, which is given, is left out."""
    if not settings.semantic:
        return j_and_f.sums_of([predicted], [clip.masks], ignore_index=IGNORED)
    classes = len(SEMANTIC_CLASSES) if is_scenes else IGNORED
    return mean_iou.sums_of(predicted[1:], clip.masks[1:], num_classes=classes).sum(axis=0, keepdims=True)


def _check_sides(encoder: Encoder, sides: tuple[int, ...]) -> None:
    if any(side % encoder.patch_size for side in sides):
        raise ValueError(
            f"image sides must be multiples of {encoder.name}'s patch size {encoder.patch_size}, got {sides}"
        )


TASKS = {
    "propagation": Task(
        measure_propagation, PropagationSettings, "label propagation in clips without training: J, F and their mean"
    )
}
