"""What a trunk sees in pictures, as numbers: components, correspondence, attention, neighbours."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch.nn import functional as F

from hf_geossl.demo.channel_picture import Picture
from hf_geossl.demo.loading import DemoModel
from hf_geossl.training.pictures.colors import principal_components

Cell = tuple[int, int]  # row and column of a patch


def cell_at(place: tuple[float, float], grid: Cell) -> Cell:
    """The patch under a place `(x, y)` in shares of the picture's sides; inside of the grid, wherever the place is."""
    rows, columns = grid
    return min(max(int(place[1] * rows), 0), rows - 1), min(max(int(place[0] * columns), 0), columns - 1)


def feature_colors(model: DemoModel, pictures: Sequence[Picture], finer: bool = False) -> torch.Tensor:
    """The first three principal components of patch features, over all pictures together.

    Returns:
        `torch.Tensor` of shape `(pictures, rows, columns, 3)`: Colours in [0, 1].
    """
    return principal_components(torch.stack([model.encode(picture, finer)[0] for picture in pictures]))


@dataclass
class Match:
    """Where a patch of one picture is found in another."""

    cosines: torch.Tensor  # of the patch with each patch of the other picture, (rows, columns)
    best: Cell  # where that is largest
    back: Cell  # what the best patch finds when it looks back

    @property
    def cosine(self) -> float:
        """Of the patch and its match."""
        return self.cosines[self.best].item()


def find_match(model: DemoModel, first: Picture, second: Picture, cell: Cell, finer: bool = False) -> Match:
    """Finds a patch of the first picture in the second, by the cosine of trunk features, and looks back."""
    here, there = (F.normalize(model.encode(picture, finer)[0], dim=-1) for picture in (first, second))
    cosines = there @ here[cell]
    best = _largest(cosines)
    return Match(cosines, best, _largest(here @ there[best]))


def _largest(values: torch.Tensor) -> Cell:
    row, column = divmod(int(values.argmax()), values.shape[1])
    return row, column


def attention_map(
    model: DemoModel, picture: Picture, cell: Cell | None, head: int | None, finer: bool = False
) -> torch.Tensor:
    """How much a token of the last layer looks at each patch.

    Args:
        model, picture, finer: Of which model and picture, and whether at twice the trained size.
        cell (`(row, column)`, *optional*): The patch that looks; the class token where there is none.
        head (`int`, *optional*): One head; the mean of all by default.

    Returns:
        `torch.Tensor` of shape `(rows, columns)`: Shares; what is missing to 1 goes to class token and registers.
    """
    prefix, grid = model.trunk.embeddings.num_prefix_tokens, model.grid(finer)
    if cell is None and not model.config.use_class_token:
        raise ValueError("This model has no class token; please click a patch.")
    row = 0 if cell is None else prefix + cell[0] * grid[1] + cell[1]
    attention = model.last_attention(picture, finer)[:, row, prefix:]  # (heads, patches)
    return (attention.mean(dim=0) if head is None else attention[head]).unflatten(0, grid)


def nearest_pictures(
    model: DemoModel, picture: Picture, others: Sequence[Picture], finer: bool = False
) -> list[tuple[int, float]]:
    """Index and cosine of pooled features of the other pictures, nearest first; the same picture is left out."""
    feature = model.encode(picture, finer)[1]
    found = [
        (index, F.cosine_similarity(feature, model.encode(other, finer)[1], dim=0).item())
        for index, other in _other_than(picture, others)
    ]
    return sorted(found, key=lambda one: -one[1])


def nearest_patches(
    model: DemoModel, picture: Picture, cell: Cell, others: Sequence[Picture], finer: bool = False
) -> list[tuple[int, Cell, float]]:
    """For each other picture its index, its patch nearest to a patch of one picture, and their cosine, nearest first."""
    found = []
    for index, other in _other_than(picture, others):
        match = find_match(model, picture, other, cell, finer)
        found.append((index, match.best, match.cosine))
    return sorted(found, key=lambda one: -one[2])


def _other_than(picture: Picture, others: Sequence[Picture]) -> list[tuple[int, Picture]]:
    return [(index, other) for index, other in enumerate(others) if other.tobytes() != picture.tobytes()]
