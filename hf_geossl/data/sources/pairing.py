"""Maps beside images: which files are the truth of others, by the names of folders (images, masks) and files (a, a_mask)."""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache

from hf_geossl.data.sources.split_names import SPLIT_OF_SHORT_WORD, SPLIT_OF_WORD
from hf_geossl.data.wording import Place, counted, some_of

MAP_COLUMNS = ("annotation", "depth_map")  # what images have maps as
_TRUTH = (
    r"masks?|labels?|lbls?|labelids|labeltrainids|seg|segm|segmentations?|segmentation(?:class|object)|annotations?|"
    r"annots?|anns?|gt|gtfine|gtcoarse|ground[\s_-]?truths?|truths?|targets?|trimaps?|mattes?|manual|semantics?|"
    r"depths?|depth[\s_-]?maps?"
)
_IMAGE = r"images?|imgs?|jpegimages|inputs?|rgb|leftimg8bit|photos?|pictures?|originals?|colors?|sat"
_TRUTH_WORD, _IMAGE_WORD = re.compile(_TRUTH), re.compile(_IMAGE)
_FILLERS = frozenset(
    [
        "png",
        "jpg",
        "jpeg",
        "tif",
        "folder",
        "dir",
        "data",
        "set",
        "files",
        "all",
        "raw",
        "only",
        "class",
        "object",
        "bit",
    ]
)
_SPLITS = "|".join(sorted(SPLIT_OF_WORD, key=len, reverse=True))
_GLUED = re.compile(rf"({_SPLITS}|{_TRUTH}|{_IMAGE})({_SPLITS}|{_TRUTH}|{_IMAGE}|png)")
_TRUTH_ENDING = re.compile(rf"(?:[\s._-]+(?:{_TRUTH})\d?)+$", re.IGNORECASE)
_TRUTH_START = re.compile(rf"^(?:{_TRUTH})[\s._-]+(?=.)", re.IGNORECASE)
_TRUTH_ANYWHERE = re.compile(rf"(?:{_TRUTH}|maps?)\d?", re.IGNORECASE)
_IMAGE_ENDING = re.compile(rf"[\s._-]+(?:{_IMAGE}|000\d)$", re.IGNORECASE)  # nnU-Net's h_7_0000 is a channel of h_7
_BAND = re.compile(  # S2A_7_B08A, cell_red, h_7_0000
    r"b\d{1,2}a?|band\d+|red|green|blue|yellow|nir|swir\d?|rededge\d?|pan|vv|vh|hh|hv|w\d|ch?\d{1,2}|000\d",
    re.IGNORECASE,
)
_ALIKE = 3  # files, from which on a rule in their names is no accident


@dataclass
class Pairing:
    """Which files are maps, and the maps of each image, by the column that they are truth for.

    Attributes:
        maps (`set[str]`): files that are no images to learn from.
        truth (`dict[str, dict[str, str]]`): image -> column ("annotation" or "depth_map") -> map.
        image_folders (`set[str]`): names of folders that hold the images, and so are no classes.
    """

    maps: set[str] = field(default_factory=set)
    truth: dict[str, dict[str, str]] = field(default_factory=dict)
    image_folders: set[str] = field(default_factory=set)


def pair_maps(names: Sequence[str], place: Place) -> Pairing:
    """Finds the maps among files and the images that they belong to, and says which.

    Maps lie in folders of truth beside folders of images (images and masks, train and train_masks, imagesTr and labelsTr),
    or are called after the image beside (a.jpg, a_mask.png) in a folder where at least half of the images have one.

    Args:
        names (`Sequence[str]`): all image files, sorted.
        place (`Place`): of the data.
    """
    found = _in_folders(names, place)
    rest = [name for name in names if name not in found.maps]
    _beside(rest, found, place)
    spare = sorted(found.maps - {name for own in found.truth.values() for name in own.values()})
    if found.truth and spare:
        taken = sorted(next(iter(found.truth.values())).values())
        place.warn(
            f"{counted(len(spare), 'map')} not read ({some_of(spare)}): an image has one map of classes and one of depths, "
            f"such as {some_of(taken)}; to read others, leave those out or name them in metadata.jsonl"
        )
    images = [name for name in rest if name not in found.maps]
    _say_alike(images, place)
    _say_bands(images, place)
    return found


def map_column(word: str) -> str | None:
    """The column that a map of some name is truth for: "seg" for "annotation", "depth" for "depth_map"; None of no map's."""
    return _column(word) if _TRUTH_WORD.fullmatch(word.lower()) else None


def image_of(stem: str) -> str | None:
    """The stem of the image that a map is called after ("a" of "a_mask"); None of a file that is not called a map."""
    if not _TRUTH_ANYWHERE.fullmatch(stem[_last_mark(stem) + 1 :]) and not _TRUTH_START.match(stem):
        return None  # at once, since most files are no maps
    for pattern in (_TRUTH_ENDING, _TRUTH_START):
        shorter = pattern.sub("", stem)
        if shorter and shorter != stem:
            return shorter
    return None


def _last_mark(stem: str) -> int:
    """Where the last mark between words is; -1 where there is none."""
    return max(map(stem.rfind, " ._-"))


def _stem(name: str) -> str:
    file = name[name.rfind("/") + 1 :]
    return file[: file.rfind(".")] if "." in file else file


def _column(*words: str) -> str:
    return "depth_map" if any("depth" in word.lower() for word in words) else "annotation"


@lru_cache(maxsize=4096)
def _role(folder: str) -> tuple[str, tuple[str, ...]]:
    """What a folder is called after ("truth", "image", "split" or ""), and what else is in its name."""
    words: list[str] = []
    for word in re.findall(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])|\d+", folder):
        glued = _GLUED.fullmatch(word.lower())
        known = _TRUTH_WORD.fullmatch(word.lower()) or _IMAGE_WORD.fullmatch(word.lower())
        words += glued.groups() if glued and not known and word.lower() not in SPLIT_OF_WORD else [word.lower()]
    whole = folder.lower()
    truth = _TRUTH_WORD.fullmatch(whole) is not None or any(map(_TRUTH_WORD.fullmatch, words))
    image = _IMAGE_WORD.fullmatch(whole) is not None or any(map(_IMAGE_WORD.fullmatch, words))
    short = SPLIT_OF_SHORT_WORD if truth or image else {}
    splits = [split for word in words if (split := SPLIT_OF_WORD.get(word) or short.get(word))]
    other = [
        word
        for word in words
        if not (word.isdigit() or word in _FILLERS or word in SPLIT_OF_WORD or word in short)
        and not (_TRUTH_WORD.fullmatch(word) or _IMAGE_WORD.fullmatch(word) or whole in ("leftimg8bit", "ground_truth"))
    ]
    rest = tuple(sorted({*splits, *other} - {"ground"}))
    kind = "truth" if truth else "image" if image else "split" if splits and not other else ""
    return kind, rest


def _roles(folders: set[str]) -> dict[str, str]:
    """Which of the folders beside each other hold truth, and which their images."""
    roles: dict[str, str] = {}
    kinds = {folder: _role(folder) for folder in folders}
    for truth, (kind, rest) in kinds.items():
        if kind != "truth":
            continue
        for folder, (other, about) in kinds.items():
            same_split = not rest and all(word in SPLIT_OF_WORD for word in about)
            with_images = other == "image" and (about == rest or not about or same_split)
            if with_images or (
                other == "split" and (about == rest or not rest)
            ):  # MVTec's ground_truth beside train, test
                roles |= {truth: "truth", folder: "image"}
    return roles


def _in_folders(names: Sequence[str], place: Place) -> Pairing:
    inside: dict[tuple[str, ...], set[str]] = {}
    for name in names:
        folders = name.split("/")[:-1]
        for depth, folder in enumerate(folders):
            inside.setdefault(tuple(folders[:depth]), set()).add(folder)
    beside = {above: roles for above, folders in inside.items() if len(folders) > 1 and (roles := _roles(folders))}
    found = Pairing()
    maps: dict[tuple[str, ...], dict[str, str]] = {}  # where, and the image's stem -> column -> map
    images: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {}
    called: set[str] = set()
    for name in names if beside else ():
        folders = name.split("/")[:-1]
        for depth, folder in enumerate(folders):
            role = beside.get(tuple(folders[:depth]), {}).get(folder)
            if role is None:
                continue
            splits = tuple(word for word in _role(folder)[1] if word in SPLIT_OF_WORD)
            above = tuple(folders[:depth])
            below = tuple(inner for inner in folders[depth + 1 :] if _role(inner)[0] != "truth")  # annotations/trimaps
            if role == "image":
                images[name] = ((*above, *splits, *below), (*above, *below))
                found.image_folders.add(folder)
                break
            called.add(folder)
            found.maps.add(name)
            stem = _stem(name)
            for key in dict.fromkeys((image_of(stem) or stem, stem)):
                maps.setdefault((*above, *splits, *below, key), {}).setdefault(_column(folder, stem), name)
            break
    _name_by_common_ending(maps, images)
    called_alike = Counter((*anywhere, _stem(name)) for name, (_, anywhere) in images.items())
    for name, (there, anywhere) in images.items():
        stems = (_stem(name), _IMAGE_ENDING.sub("", _stem(name)))
        keys = [(*there, stem) for stem in stems]
        if called_alike[(*anywhere, stems[0])] == 1:  # else the map may be that of an image in another split
            keys += [(*anywhere, stem) for stem in stems]
        if truth := next((maps[key] for key in keys if key in maps), None):
            found.truth[name] = truth
    if found.maps:
        place.warn(
            f"{counted(len(found.maps), 'file')} in folders of truth beside the images ({', '.join(sorted(called))}) taken "
            f"as no images to learn from; {counted(len(found.truth), 'image has one', 'images have one')} by name"
        )
    return found


def _name_by_common_ending(
    maps: dict[tuple[str, ...], dict[str, str]], images: Mapping[str, tuple[tuple[str, ...], tuple[str, ...]]]
) -> None:
    """Names maps after their images where none is, and all are called after an image with one ending (CamVid's a_L of a)."""
    wanted = {(*there, _stem(name)) for name, (there, _) in images.items()}
    if not maps or not wanted.isdisjoint(maps):
        return
    endings: Counter[str] = Counter()
    for *above, stem in maps:
        endings.update({stem[end:] for end in range(1, len(stem)) if (*above, stem[:end]) in wanted})
    ending, count = endings.most_common(1)[0] if endings else ("", 0)
    if count == len(maps) and not ending[0].isalnum():
        for *above, stem in list(maps):
            maps[(*above, stem.removesuffix(ending))] = maps.pop((*above, stem))


def _by_folder(names: Sequence[str]) -> dict[str, list[str]]:
    folders: dict[str, list[str]] = {}
    for name in names:
        folders.setdefault(name.rpartition("/")[0], []).append(name)
    return folders


def _beside(names: Sequence[str], found: Pairing, place: Place) -> None:
    """Adds maps that lie beside their images (a.jpg, a_mask.png) in folders where most images have one."""
    taken: list[str] = []
    for inside in _by_folder(names).values():
        called = {name: image for name in inside if (image := image_of(_stem(name))) is not None}
        if not called:
            continue
        stems = {_stem(name) for name in inside}
        maps: dict[str, dict[str, str]] = {}
        for name, image in called.items():
            maps.setdefault(image, {}).setdefault(_column(_stem(name).removeprefix(image)), name)
        own = [name for name in inside if name not in called or not _is_map(called[name], _stem(name), stems)]
        truth = {
            name: maps[key]
            for name in own
            if (key := next((k for k in (_stem(name), _IMAGE_ENDING.sub("", _stem(name))) if k in maps), None))
            is not None
        }
        if truth and 2 * len(truth) >= len(own):
            chosen = set(own)
            taken += [name for name in inside if name not in chosen]
            found.truth.update(truth)
        elif truth:
            few = sorted(name for maps_of in truth.values() for name in maps_of.values())
            place.warn(
                f"{counted(len(few), 'file')} called after the image beside ({some_of(few)}) taken as images of their own, as "
                "fewer than half of the images have such a file; maps go into a folder masks beside a folder images"
            )
    found.maps.update(taken)
    if taken:
        place.warn(
            f"{counted(len(taken), 'file')} called after the image beside ({some_of(sorted(taken))}) taken as "
            f"{'its map' if len(taken) == 1 else 'maps'}, and as no images to learn from"
        )


def _is_map(image: str, stem: str, stems: set[str]) -> bool:
    """Whether the image that a map is called after is there, as it stands or with a word for images behind it."""
    return image in stems or any(_IMAGE_ENDING.sub("", other) == image for other in stems if other != stem)


def _say_alike(names: Sequence[str], place: Place) -> None:
    """Says of files that are called after each other in a way that could make one the map of the other."""
    for inside in _by_folder(names).values():
        stems = Counter(map(_stem, inside))
        twice = sorted(name for name in inside if stems[_stem(name)] > 1)
        marks = ((stem, _last_mark(stem)) for stem in stems)
        endings = Counter(
            stem[mark:] for stem, mark in marks if mark > 0 and stem[:mark] in stems and not stem[-1].isdigit()
        )
        ending, count = endings.most_common(1)[0] if endings else ("", 0)
        if count >= _ALIKE and 3 * count >= len(stems):
            twice = sorted(name for name in inside if _stem(name).endswith(ending))
        if len(twice) >= _ALIKE and 3 * len(twice) >= len(inside):
            place.warn(
                f"{counted(len(twice), 'file')} called after other images beside them ({some_of(twice)}) taken as images of "
                "their own; if they are maps, put these into a folder masks beside a folder images"
            )


def _say_bands(names: Sequence[str], place: Place) -> None:
    """Says of files that are called after the bands or channels of one image that each is taken as an image."""
    bands: dict[str, list[str]] = {}  # image -> files
    for name in names:
        stem = name[: name.rfind(".")]
        mark = _last_mark(stem)
        if _BAND.fullmatch(stem[mark + 1 :]):
            bands.setdefault(stem[:mark], []).append(name)
    several = [files for files in bands.values() if len(files) > 1]
    if several and 2 * sum(map(len, several)) >= len(names):
        place.warn(
            f"{counted(sum(map(len, several)), 'file')} called after the bands of {counted(len(several), 'image')} "
            f"({some_of(several[0])}) taken as images of their own; to read them as channels of one image, save these as one "
            "TIFF or .npy file"
        )
