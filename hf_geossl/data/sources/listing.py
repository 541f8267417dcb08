"""The one rule for files: which split, class and truth the names of a folder, an archive or a list mean.

- The split is the first folder called after one, in the field's spellings (train, val2017, test_images), the same number of
  folders below the root for all files; without such folders every file belongs to "train". Of parquet and tar files it may
  be a word of the file's name.
- The class is the first folder below the split in which files differ, whatever lies deeper.
- Folders of maps (masks, annotations, labels, ...) beside folders of images hold their truth, by the files' names; so do files
  called after the image beside (a.jpg, a_mask.png), where at least half of a folder's images have one.
- `metadata.jsonl` or `metadata.csv` gives further columns to the files that it names under `file_name`; files that it
  names under another `..._file_name` are truth.
"""

import re
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

from hf_geossl.data.images import EXTENSIONS
from hf_geossl.data.sources.pairing import pair_maps
from hf_geossl.data.sources.split_names import SPLIT_OF_WORD, SPLIT_WORDS, canonical, split_of
from hf_geossl.data.sources.tables import Item
from hf_geossl.data.wording import Place, counted, some_of

TAR_ENDINGS = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz", ".tar.zst", ".tzst")
_LITTER = ("__MACOSX", "__pycache__", "@eaDir", "$RECYCLE.BIN", "lost+found")
PART = ".archive"  # ends the folder of an archive that is one of several numbered ones, and so neither split nor class
_DEEPEST_SPLIT = 3  # below several folders


def kind_of(name: str) -> str:
    """The kind of a file by its name: "parquet", "webdataset", "zip", "folder" (an image), or "" for any other."""
    name = name.lower()
    if name.endswith(".parquet"):
        return "parquet"
    if name.endswith(TAR_ENDINGS):
        return "webdataset"
    if name.endswith(".zip"):
        return "zip"
    return "folder" if name.endswith(EXTENSIONS) else ""


def sample_of(name: str) -> str:
    """The sample of WebDataset that a member of a tar belongs to: its name up to the first dot of the last part."""
    folder, _, file = name.rpartition("/")
    return f"{folder}/{file.partition('.')[0]}"


def is_hidden(name: str) -> bool:
    """Whether a file or folder is hidden, or of the kind that systems leave behind."""
    return name.startswith(".") or name in _LITTER


def say_hidden(names: Sequence[str], place: Place) -> None:
    """Says which hidden folders, and files that could be data, are left out."""
    if names:
        place.warn(
            f"{counted(len(names), 'hidden file or folder', 'hidden files and folders')} left out ({some_of(names)})"
        )


@dataclass(frozen=True)
class Division:
    """The names of files by split, and which folder of a name is the split; `depth` is None where there is none."""

    splits: dict[str, list[str]]
    depth: int | None = None

    def choose(self, split: str, place: Place) -> list[str]:
        """The names of a split, or of the one folder of that name ("train2017").

        Raises:
            ValueError: if there is none; it names those that there are.
        """
        depth = self.depth
        if depth is not None and split not in SPLIT_WORDS:
            own = [name for names in self.splits.values() for name in names if name.split("/")[depth] == split]
            if own:
                return own
        wanted = canonical(split)
        if wanted not in self.splits:
            raise ValueError(
                f"{place.name!r} has no split {split!r}; its splits are {', '.join(sorted(self.splits)) or 'none'}: name "
                "one by --split (--train_split and --test_split of an evaluation). A split is a folder called "
                f"{', '.join(SPLIT_WORDS)}; without one, every file belongs to train"
            )
        return self.splits[wanted]


def divide(
    names: Sequence[str], place: Place, *, by_file_name: bool = False, links: Mapping[str, str] | None = None
) -> Division:
    """Divides names among splits, and says which are left out, or together in one.

    Args:
        names (`Sequence[str]`): with `/` between folders.
        place (`Place`): of the data.
        by_file_name (`bool`): whether a word of the file's name may be the split too, as for parquet and tar files.
        links (`Mapping[str, str]`, *optional*): what names that are reached by links lead to: images come once.
    """
    folders = {name: name.split("/")[:-1] for name in names}
    depth = _split_depth(list(folders.values()), place)
    marks: dict[str, str | None] = {}
    if depth is not None:
        marks = {name: split_of(inside[depth]) if len(inside) > depth else None for name, inside in folders.items()}
    elif by_file_name:
        marks = _marks(names)
    if not any(marks.values()):
        marks = dict.fromkeys(names, "train")
    if links:
        marks = _without_copies(marks, links, place)
    divided: dict[str, list[str]] = {}
    outside: list[str] = []
    for name, split in marks.items():
        (outside if split is None else divided.setdefault(split, [])).append(name)
    if outside:
        place.warn(
            f"{counted(len(outside), 'file')} outside of the splits ({', '.join(sorted(divided))}) left out, such as "
            f"{outside[0]}; if such a folder is no split, rename it"
        )
    for split, inside in divided.items():
        called = [] if depth is None else sorted({folders[name][depth] for name in inside})
        if len(called) > 1:
            place.warn(
                f"the folders {', '.join(called)} are the split {split} together; the name of one as the split takes it alone"
            )
    return Division(divided, depth)


def _marks(names: Sequence[str]) -> dict[str, str | None]:
    """The split that each file is called after: its first word, or any one where all files have such a word."""
    words = {name: re.split(r"[^a-z]+", name.split("/")[-1].lower()) for name in names}
    anywhere = {name: next(filter(None, map(SPLIT_OF_WORD.get, parts)), None) for name, parts in words.items()}
    return anywhere if all(anywhere.values()) else {name: SPLIT_OF_WORD.get(parts[0]) for name, parts in words.items()}


def _without_copies(marks: Mapping[str, str | None], links: Mapping[str, str], place: Place) -> dict[str, str | None]:
    """Leaves out links to files that are there themselves, or by another link."""
    chosen = {name: split for name, split in marks.items() if split is not None}
    first: dict[str, str] = {}  # what is read -> the name that it counts by
    for name in sorted(chosen, key=lambda name: (name in links, name)):
        first.setdefault(links.get(name, name), name)
    copies = {name: first[links[name]] for name in chosen if name in links and first[links[name]] != name}
    if copies:
        pairs = [f"{copy} is {original}" for copy, original in copies.items()]
        place.warn(f"{counted(len(copies), 'link')} to images that are there too left out ({some_of(pairs)})")
    return {name: split for name, split in marks.items() if name not in copies}


def _split_depth(places: list[list[str]], place: Place) -> int | None:
    """Which folder of the files is the split: the first level with one, below folders that hold everything.

    Below several folders all files must lie in folders of splits (cat/train, cat/test, dog/train, ...).
    """
    alone = True  # so far there was one folder
    mistakable: list[str] = []
    for depth in range(max(map(len, places), default=0)):
        at = Counter(inside[depth] if len(inside) > depth else "" for inside in places)
        named = [folder for folder in at if split_of(folder)]
        others = sorted(folder for folder in at if folder and not split_of(folder))
        if not alone and depth >= _DEEPEST_SPLIT:
            break
        if alone and named:
            if len(set(map(split_of, named))) > 1 or len(others) <= 1:
                return depth
            place.warn(
                f"the folder {named[0]} is taken as a class, as it lies beside {some_of(others)}, which are no splits"
            )
            return None
        if named and len(named) == len(at):
            return depth
        mistakable = mistakable or sorted([*named, *filter(_holds_split_word, others if alone else ())])
        alone = alone and len(others) == 1
    if mistakable:
        place.warn(
            f"{counted(len(mistakable), 'folder')} taken as no split ({some_of(mistakable)}): a split is called after one "
            "alone (train, val, test) and lies above all classes"
        )
    return None


def _holds_split_word(folder: str) -> bool:
    return any(word.lower() in SPLIT_OF_WORD for word in re.findall(r"[A-Z]?[a-z]+|[A-Z]+", folder))


def arrange(
    names: Sequence[str], split: str, place: Place, given: Mapping[str, Item], links: Mapping[str, str] | None = None
) -> tuple[list[Item], list[str]]:
    """Finds the images of a split, with their classes and truth.

    Args:
        names (`Sequence[str]`): all image files, sorted.
        split (`str`): which.
        place (`Place`): of the data.
        given (`Mapping[str, Item]`): columns and truth of images, by name.
        links (`Mapping[str, str]`, *optional*): as in `divide`.

    Returns:
        `(list[Item], list[str])`: the images in order, and the class names of all splits, sorted.

    Raises:
        ValueError: if the split is not there.
    """
    used = {file for item in given.values() for file in item.truth.values()}
    paired = pair_maps([name for name in names if name not in used], place)
    images = [name for name in names if name not in used and name not in paired.maps]
    division = divide(images, place, links=links)
    order = {name: number for number, name in enumerate(given)}  # that of metadata, where there is some
    chosen = sorted(division.choose(split, place), key=lambda name: order.get(name, len(order)))
    labels = _classes(division, paired.image_folders)
    items = []
    for name in chosen:
        item = replace(given.get(name, Item(name)), label=labels[name])
        items.append(item if item.truth or name not in paired.truth else replace(item, truth=paired.truth[name]))
    if given and (without := len(items) - len(given.keys() & set(chosen))):
        place.warn(f"{without:,} of {counted(len(items), 'image')} of the split {split} without a row of metadata")
    classes = sorted({label for label in labels.values() if label is not None})
    alike = Counter(label.casefold().strip() for label in classes)
    if same := [label for label in classes if alike[label.casefold().strip()] > 1]:
        place.warn(f"the folders {some_of(same)} are classes of their own, though their names differ in case alone")
    return items, classes


def _classes(division: Division, image_folders: Collection[str]) -> dict[str, str | None]:
    """The class of each name: the first folder below the split in which the files of all splits differ.

    Folders that hold images beside folders of truth are no classes.
    """
    depth = division.depth
    # below several folders that each hold the splits, those are the classes where there is no other
    above = {name.split("/")[depth - 1] for names in division.splits.values() for name in names} if depth else set()
    below: dict[str, list[str]] = {}
    for names in division.splits.values():
        for name in names:
            folders = name.split("/")[:-1]
            inside = folders if depth is None else folders[depth + 1 :]
            inside = [folder for folder in inside if not (folder.endswith(PART) or folder in image_folders)]
            below[name] = inside or (
                folders[depth - 1 : depth] if depth and len(above) > 1 and not image_folders else []
            )
    while (
        below and len({tuple(place[:1]) for place in below.values()}) == 1 and all(len(p) > 1 for p in below.values())
    ):
        below = {name: place[1:] for name, place in below.items()}  # all lie in one folder, and in others inside of it
    return {name: place[0] if place else None for name, place in below.items()}
