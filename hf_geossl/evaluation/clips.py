"""Videos with truth: clips of the embedded scenes, and of a folder in the layout of DAVIS."""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image

from hf_geossl.data import sample_scene
from hf_geossl.data.images import BrokenImageError, decode_image
from hf_geossl.data.notes import collect_notes
from hf_geossl.data.scenes import render


@dataclass(frozen=True)
class Clip:
    """A video with truth.

    Args:
        name (`str`): What it is called.
        frames (`numpy.ndarray` of shape `(frames, height, width, 3)`, uint8): RGB, as they are encoded.
        masks (`numpy.ndarray` of shape `(frames, height, width)`, uint8): Ids of objects, or classes; 0 is background, 255
            where there is no truth. At their own size, at which they are compared.
        changes (`dict[str, int]`): What reading did to its frames, and to how many.
    """

    name: str
    frames: np.ndarray
    masks: np.ndarray
    changes: Mapping[str, int] = field(default_factory=dict)


def scene_clips(
    split: str,
    size: int,
    mode: str = "scene",
    *,
    clips: int,
    frames: int,
    seconds: float,
    smallest_object: float | None,
) -> Iterator[Clip]:
    """Renders clips of the scenes, in order.

    Args:
        split (`str`): Of the scenes.
        size (`int`): Side of the frames in pixels.
        mode (`str`): Of the scenes.
        clips, frames (`int`): How many clips, and frames a clip.
        seconds (`float`): From the first frame to the last.
        smallest_object (`float`, *optional*): Share of the image below which an object of the first frame is background. With
            None the masks hold classes, not objects.
    """
    for index in range(clips):
        scene = sample_scene(split, index, mode=mode)
        rendered = [render(scene, size, float(t)) for t in np.linspace(0, seconds, frames)]
        if smallest_object is None:
            masks = np.stack([frame.semantic for frame in rendered])
        else:
            masks = np.stack([frame.instance for frame in rendered])
            areas = np.bincount(masks[0].ravel(), minlength=256)
            large = areas >= smallest_object * size**2
            masks = np.where(large[masks], masks, 0).astype(np.uint8)
        yield Clip(f"{split} {index}", np.stack([frame.image for frame in rendered]), masks)


def folder_clips(
    folder: str | Path, split: str, side: int, multiple: int, *, limit: int | None = None
) -> list[Callable[[], Clip]]:
    """Finds the clips of a folder in the layout of DAVIS.

    That is `JPEGImages/480p/CLIP/*.jpg` and `Annotations/480p/CLIP/*.png`, where a pixel's palette index is its object or class
    (the folder `480p` may be missing).

    Args:
        folder (`str` or `Path`): The dataset.
        split (`str`): Which clips where `ImageSets/2017/*.txt` or `ImageSets/*.txt` list them; otherwise all are taken.
        side (`int`): Shorter side of the frames in pixels, rounded to the multiple.
        multiple (`int`): Of which both sides are multiples.
        limit (`int`, *optional*): At most so many.

    Returns:
        A list of functions without arguments that read a `Clip` each, and raise `ValueError` for a frame that is broken.

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

    def reader(name: str) -> Callable[[], Clip]:
        frames = sorted(path for path in (images / name).glob("*") if path.suffix.lower() in (".jpg", ".jpeg", ".png"))
        if len(frames) < 3:
            raise ValueError(f"the clip {name} of {root.name} must have at least 3 frames, got {len(frames)}")
        for frame in frames:
            if not (masks / name / f"{frame.stem}.png").is_file():
                raise ValueError(f"the clip {name} of {root.name} has no mask {frame.stem}.png")

        def read() -> Clip:
            changes: Counter[str] = Counter()
            pictures = [_read_frame(frame, f"the clip {name} of {root.name}", changes) for frame in frames]
            width, height = pictures[0].size
            changes["frames of another size than the first of their clip, stretched to it"] = sum(
                picture.size != (width, height) for picture in pictures
            )
            scale = side / min(width, height)
            shape = [max(1, round(length * scale / multiple)) * multiple for length in (width, height)]
            return Clip(
                name,
                np.stack([np.asarray(picture.resize(shape, Image.Resampling.BICUBIC)) for picture in pictures]),
                np.stack([_read_mask(masks / name / f"{frame.stem}.png") for frame in frames]),
                +changes,  # without what happened to none
            )

        return read

    return [reader(name) for name in names[:limit]]


def _read_frame(path: Path, clip: str, changes: Counter[str]) -> Image.Image:
    with collect_notes() as notes:
        try:
            picture = decode_image(str(path))
        except BrokenImageError as error:
            raise ValueError(f"{clip} has a frame {path.name} that cannot be read: {error.reason}") from error
    changes.update({f"frames with {entry.summary}" for entry in notes})
    return picture


def _read_mask(path: Path) -> np.ndarray:
    with Image.open(path, formats=("PNG",)) as mask:
        if mask.mode not in ("P", "L", "1"):
            raise ValueError(
                f"the mask {path.parent.name}/{path.name} must hold ids (mode P or L), got mode {mask.mode}"
            )
        return np.asarray(mask).astype(np.uint8)
