"""Exact search by blocks on a device, in bounded memory."""

from collections import deque
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from hf_geossl.evaluation.features import THUMBNAIL_SIDE

_ROWS = 4096  # of a block
_PARTNERS = 32  # of a row in each block that are looked at: among thousands of dark images a copy is not the nearest
NOISE = 9.0  # squared levels of 255: what compression and rounding change in images without structure


def read_blocks(files: Sequence[Path], columns: Sequence[str]) -> Iterator[dict[str, np.ndarray]]:
    """Reads columns of a table of features block by block, in order.

    Args:
        files (`Sequence[Path]`): Of the table.
        columns (`Sequence[str]`): Texts, or lists of fixed length, which become `(rows, length)`.
    """
    for path in files:
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(_ROWS, columns=list(columns)):
                yield {name: _as_array(batch.column(name)) for name in columns}


def read_rows(
    files: Sequence[Path], columns: Sequence[str], numbers: Collection[int]
) -> Iterator[tuple[int, dict[str, Any]]]:
    """Reads single rows of a table of features, by their numbers, in order."""
    wanted, start = deque(sorted(numbers)), 0
    for block in read_blocks(files, columns):
        stop = start + len(block[columns[0]])
        while wanted and wanted[0] < stop:
            number = wanted.popleft()
            yield number, {name: values[number - start] for name, values in block.items()}
        if not wanted:
            return
        start = stop


def _as_array(column: pa.Array) -> np.ndarray:
    kind = column.type
    if not pa.types.is_fixed_size_list(kind):
        return np.asarray(column.to_pylist(), dtype=object)
    values: np.ndarray = column.flatten().to_numpy(zero_copy_only=False).copy()  # torch wants to write to it
    return values.reshape(-1, kind.list_size)


def nearest(
    blocks: Iterator[np.ndarray], queries: torch.Tensor, count: int, device: torch.device
) -> tuple[np.ndarray, np.ndarray]:
    """Finds the rows of the largest cosine similarity to each query.

    Args:
        blocks (`Iterator` of arrays `(rows, width)`): All rows, in order.
        queries (`torch.Tensor` of shape `(queries, width)`): What they are compared with.
        count (`int`): How many rows a query; all where there are fewer.
        device (`torch.device`): Where products are computed.

    Returns:
        `(numpy.ndarray, numpy.ndarray)` of shape `(queries, count)`: Similarities, largest first, and numbers of rows.
    """
    unit = torch.nn.functional.normalize(queries.to(device).float(), dim=1)
    scores, rows = unit.new_empty(len(unit), 0), torch.empty(len(unit), 0, dtype=torch.long, device=device)
    start = 0
    for block in blocks:
        values = torch.nn.functional.normalize(torch.from_numpy(block).to(device).float(), dim=1)
        numbers = torch.arange(start, start + len(block), device=device).expand(len(unit), -1)
        scores, rows = torch.cat([scores, unit @ values.T], dim=1), torch.cat([rows, numbers], dim=1)
        scores, order = scores.topk(min(count, scores.shape[1]), dim=1)
        rows = rows.gather(1, order)
        start += len(block)
    return scores.cpu().numpy(), rows.cpu().numpy()


def similar_pairs(thumbnails: np.ndarray, limit: float, device: torch.device) -> np.ndarray:
    """Finds pairs of thumbnails that differ little for the structure that they have.

    The difference of two images is the mean squared difference of their pixels less `NOISE`, divided by the mean of their
    variances: at most 0 of equal ones, 2 of unrelated ones.

    Args:
        thumbnails (`numpy.ndarray` of shape `(images, channels * 12 * 12)`, uint8): As the table has them.
        limit (`float`): Largest difference.
        device (`torch.device`): Where products are computed.

    Returns:
        `numpy.ndarray` of shape `(pairs, 2)`: Numbers of rows, the smaller first, in order; of more than 32 partners of a row
        in a block of 4096 the nearest.
    """
    found = [np.empty((0, 2), np.int64)]
    starts = range(0, len(thumbnails), _ROWS)
    for left in starts:
        first = _Block(thumbnails[left : left + _ROWS], device)
        for right in starts[left // _ROWS :]:
            second = first if right == left else _Block(thumbnails[right : right + _ROWS], device)
            differences = first.differences(second)  # (left rows, right rows)
            if right == left:
                differences = differences.triu(1) + torch.full_like(differences, torch.inf).tril(0)
            smallest, partners = differences.topk(min(_PARTNERS, len(differences)), dim=0, largest=False)
            rank, column = (smallest <= limit).nonzero(as_tuple=True)
            pairs = torch.stack([partners[rank, column] + left, column + right], dim=1)
            found.append(pairs.cpu().numpy())
    every = np.concatenate(found)
    return every[np.lexsort((every[:, 0], every[:, 1]))]


class _Block:
    def __init__(self, thumbnails: np.ndarray, device: torch.device) -> None:
        values = torch.from_numpy(thumbnails).to(device).float() - 128  # smaller numbers, smaller errors
        self.values, self.squares = values, values.square().sum(dim=1)
        self.variances = values.unflatten(1, (-1, THUMBNAIL_SIDE**2)).var(dim=2, correction=0).mean(dim=1)

    def differences(self, other: "_Block") -> torch.Tensor:
        """See `similar_pairs`, `(own rows, the other's rows)`."""
        squared = self.squares[:, None] + other.squares - 2 * self.values @ other.values.T
        return (squared / self.values.shape[1] - NOISE) / ((self.variances[:, None] + other.variances) / 2 + 1)
