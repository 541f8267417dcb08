"""Files beside the data that are not read: named, with what to do about those that could be meant."""

import re
from collections.abc import Sequence

from hf_geossl.data.sources.coco import is_coco_name
from hf_geossl.data.wording import Place, counted, some_of

# endings -> what to do
_ADVICE = (
    ((".csv", ".tsv", ".json", ".jsonl"), "a table of labels or truth is read where it is named itself as the dataset, or is called metadata.csv or metadata.jsonl"),
    ((".xml",), "boxes of Pascal VOC (.xml) are read from files called after their images, in a folder that is not packed"),
    ((".mat", ".h5", ".hdf5", ".nii", ".nii.gz", ".nrrd", ".mha", ".mhd", ".pt", ".pkl"), "images in files of arrays are read once saved as .npy or .tif"),
    ((".heic", ".svg", ".psd", ".cr2", ".nef", ".arw", ".dng"), "pictures of these kinds are read once saved as PNG"),
    ((".mp4", ".avi", ".mov", ".mkv", ".webm"), "of videos the frames are read, as images"),
    ((".rar", ".7z"), "archives of these kinds are read once packed as .zip or .tar"),
)  # fmt: skip
_BOXES = "boxes of YOLO (.txt) are read where each line has a class and four numbers, in a folder that is not packed"


def endings_of(names: Sequence[str]) -> str:
    """The endings of files, such as ".csv, .nii.gz"."""
    found = {re.search(r"(\.\w+)?(\.(gz|bz2|xz|zst))?$", name.lower()) for name in names}
    return some_of(sorted({(match[0] if match else "") or "no ending" for match in found}), 8)


def advice_on(names: Sequence[str], data: Sequence[str] = ()) -> str:
    """What to do about files that are not read, if they could be meant; "" where nothing is known.

    Args:
        names (`Sequence[str]`): of the files.
        data (`Sequence[str]`): of the files that are read.
    """
    lower = [name.lower() for name in names]
    advice = [text for endings, text in _ADVICE if any(name.endswith(endings) for name in lower)]
    stems = {re.sub(r"\.\w+$", "", name.rpartition("/")[2]) for name in data}
    texts = [name for name in names if name.lower().endswith(".txt")]
    if texts and 2 * sum(name.rpartition("/")[2][:-4] in stems for name in texts) >= len(texts):
        advice.append(_BOXES)
    return "; ".join(advice)


def say_strays(names: Sequence[str], data: Sequence[str], taken: str, place: Place, *, packed: bool = False) -> None:
    """Says which files of other kinds are left out beside the data.

    Args:
        names (`Sequence[str]`): of the files.
        data (`Sequence[str]`): of the data.
        taken (`str`): what the data are, such as "12 images".
        place (`Place`): of the data.
        packed (`bool`): whether they lie in an archive, out of which files of boxes are not read.
    """
    if names:
        advice = advice_on(names, data)
        if packed and any(map(is_coco_name, names)):
            advice = "boxes are read once the archive is unpacked"
        place.warn(
            f"{counted(len(names), 'file of another kind', 'files of other kinds')} ({endings_of(names)}) left out; {taken} "
            f"taken{'; ' if advice else ''}{advice}"
        )
