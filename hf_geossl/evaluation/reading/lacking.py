"""What to do about truth that a dataset lacks, as far as its columns and its name tell."""

from collections.abc import Mapping
from itertools import islice
from typing import Any

import datasets

from hf_geossl.data.sources.listing import TAR_ENDINGS
from hf_geossl.data.sources.opened import MapDataset
from hf_geossl.data.wording import some_of

_ROWS_TRIED = 200
_ZERO_OR_ONE = ("0", "1", "0.0", "1.0", "False", "True")


def mend_of(column: str | None, rows: MapDataset | datasets.IterableDataset, name: str) -> str:
    """Ends the sentence about truth that is not there: what gives it.

    Args:
        column (`str`, *optional*): of `Columns`, that the truth would come from, such as "label".
        rows: the dataset.
        name (`str`): of the dataset, as people call it.
    """
    if column == "label" and (columns := _of_zeros_and_ones(rows)):
        return (
            f"the columns {some_of(columns)} hold 0 and 1, one for each class, and one column with the name of the class is "
            "read: in pandas, table['label'] = table[classes].idxmax(axis=1)"
        )
    how = f"name the right one by --{column}_column (Columns({column}=...)), or " if column else ""
    if column in ("objects", "semantic", "depth") and name.lower().endswith((".zip", *TAR_ENDINGS)):
        return f"{how}unpack the archive to a folder, in which files of boxes are read too"
    return f"{how}choose other data"


def _of_zeros_and_ones(rows: MapDataset | datasets.IterableDataset) -> list[str]:
    """Columns of which each of the first rows is 0 or 1; none where there are not at least two, or no 1."""
    seen: dict[str, set[str]] = {}
    first = rows if isinstance(rows, datasets.IterableDataset) else (rows[index] for index in range(len(rows)))
    row: Mapping[str, Any]
    for row in islice(first, _ROWS_TRIED):
        for column, value in row.items():
            seen.setdefault(column, set()).add(str(value) if isinstance(value, int | float | str) else "")
    columns = [column for column, values in seen.items() if values <= set(_ZERO_OR_ONE) and len(values) > 1]
    return columns if len(columns) > 1 else []
