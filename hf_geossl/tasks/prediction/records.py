"""What was predicted so far: a line for each image, so that a second run goes on where the first one ended."""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hf_geossl.data.sources.files import as_path, list_files
from hf_geossl.data.sources.listing import kind_of
from hf_geossl.data.sources.pairing import pair_maps
from hf_geossl.data.sources.tables import read_list
from hf_geossl.data.wording import Place, as_file, as_text, counted, some_of
from hf_geossl.tasks.prediction.map_files import whole_file

STATE = "predict.jsonl"
_PACKED = {"zip": "a zip archive", "webdataset": "a tar archive", "parquet": "a table"}
_LISTS = (".txt", ".csv", ".tsv", ".jsonl")
Record = dict[
    str, Any
]  # "image", "state" of its file, "size" (height, width), "files" that were written, and what was predicted


def find_images(paths: Sequence[str], output: Path) -> dict[str, Path]:
    """Finds the images to predict.

    Args:
        paths (`Sequence[str]`): files, lists of files, folders and globs; folders are searched to their depths.
        output (`Path`): the folder of predictions, which are no images to predict.

    Returns:
        `dict[str, Path]`: by their names below the folder, sorted; where several are given and two names are the same, the later
        ones have a number before them, again where that is a name too.

    Raises:
        FileNotFoundError: if there is no image.
        ValueError: if all of them lie in `output`.
    """
    found: dict[str, Path] = {}
    written = os.path.realpath(output)
    for number, given in enumerate(paths):
        path = as_path(given)
        if path is None:
            raise FileNotFoundError(f"{given!r} does not exist; pass image files, a folder of them, or a glob")
        if os.path.isfile(path) and kind_of(path) not in ("folder", ""):
            raise ValueError(
                f"{given} is {_PACKED[kind_of(path)]}, and images are predicted out of files: unpack it to a folder first"
            )
        place = Place(path)
        listed = os.path.isfile(path) and path.lower().endswith(_LISTS)
        root, names = _of_list(place) if listed else list_files(place)[:2]
        # not `Path.resolve`, which fails for a link that leads to itself
        own = [name for name in names if not Path(os.path.realpath(os.path.join(root, name))).is_relative_to(written)]
        if names and not own:
            raise ValueError(
                f"the predictions would lie among the images of {given}: choose another output_dir than {output}"
            )
        images = own if os.path.isfile(path) else [name for name in own if kind_of(name) == "folder"]
        maps = set() if os.path.isfile(path) else pair_maps(images, place).maps
        if maps:
            place.warn(f"{counted(len(maps), 'file')} left out as truth of others ({some_of(sorted(maps))})")
        if others := len(own) - len(images):
            place.warn(
                f"{counted(others, 'file')} left out that {'is' if others == 1 else 'are'} no image by the ending"
            )
        for name in images:
            if name not in maps:
                key = as_text(name)
                while key in found:
                    key = f"{number}/{key}"
                found[key] = Path(root, name)
    if not found:
        raise FileNotFoundError(
            f"there is no image file in {some_of(list(paths))}: images are taken from files, folders, globs and lists of files, not "
            "out of zips, tars, parquet or saved datasets: unpack those first"
        )
    return dict(sorted(found.items()))


def _of_list(place: Place) -> tuple[str, list[str]]:
    """The images of a list: the folder that they all lie in, and their names below it."""
    root, file = os.path.split(os.path.abspath(place.path))
    items = read_list(file, Path(place.path).read_bytes(), "image", place)
    paths = [os.path.normpath(os.path.join(root, item.name)) for item in items]
    if not paths:
        return root, []
    folder = os.path.commonpath([os.path.dirname(path) for path in paths])
    return folder, [os.path.relpath(path, folder).replace(os.sep, "/") for path in paths]


def state_of(path: Path) -> list[int]:
    """Size and time of a file, by which another file of its name is known."""
    try:
        stat = path.stat()
    except OSError:  # reading it will say so
        return []
    return [stat.st_size, stat.st_mtime_ns]


class Records:
    """The lines of a folder of predictions; what was being written when a run was killed is not in them.

    Args:
        folder (`Path`): of predictions.
        settings (`dict`): on which predictions depend, plain values.
        overwrite (`bool`): whether what an earlier run wrote for images is removed.

    Raises:
        ValueError: if the folder holds predictions of other settings; it names them.
    """

    def __init__(self, folder: Path, settings: dict[str, Any], overwrite: bool) -> None:
        self.folder, self.file = folder, folder / STATE
        self.by_image: dict[str, Record] = {}
        self._taken: dict[str, str] = {}  # file, in small letters -> image
        lines = self._lines() if self.file.exists() else []
        if overwrite:
            self._remove([name for record in lines[1:] for name in record["files"]])
        elif lines:
            self._compare(lines[0], settings)
            for record in lines[1:]:
                self.by_image[record["image"]] = record
                self._taken |= {name.casefold(): record["image"] for name in record["files"]}
        folder.mkdir(parents=True, exist_ok=True)
        with whole_file(self.file) as file:  # without a line that was cut
            text = "".join(json.dumps(line) + "\n" for line in [settings, *self.by_image.values()])
            file.write_text(text, encoding="utf-8")

    def _remove(self, names: Sequence[str]) -> None:
        for name in names:
            if self.path_of(name).resolve().is_relative_to(self.folder.resolve()):
                self.path_of(name).unlink(missing_ok=True)

    def _lines(self) -> list[Record]:
        lines = []
        for line in self.file.read_text(encoding="utf-8").splitlines():
            try:
                lines.append(json.loads(line))
            except ValueError:  # what a killed run did not finish is predicted again
                break
        return lines

    def _compare(self, theirs: Record, settings: Record) -> None:
        different = [key for key in settings if theirs.get(key) != settings[key]]
        if different:
            said = "; ".join(f"{key} was {theirs.get(key)}, is now {settings[key]}" for key in different)
            raise ValueError(
                f"{self.folder} holds predictions made otherwise ({said}): choose another --output_dir, or replace them with "
                "--overwrite"
            )

    def is_done(self, image: str, path: Path) -> bool:
        """Whether an image has been predicted, is the same file as then, and all that was written of it is there."""
        record = self.by_image.get(image)
        if record is None or record["state"] != state_of(path):
            return False
        return all(self.path_of(name).is_file() for name in record["files"])

    def path_of(self, name: str) -> Path:
        """Where a file of `name_for` lies."""
        return self.folder / as_file(name)

    def name_for(self, image: str, folder: str, ending: str) -> str:
        """A name for a file of an image's predictions: that of the image, with its ending too where another has that name.

        Names that differ in capitals alone are the same on some disks, and are taken for the same.
        """
        name = stem = os.path.splitext(image)[0]
        while self._taken.setdefault((path := f"{folder}/{name}{ending}").casefold(), image) != image:
            name = image if name == stem else f"{name}_"
        return path

    def add(self, record: Record) -> None:
        """Adds the record of an image whose files are written."""
        self.by_image[record["image"]] = record
        with open(self.file, "a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")
