"""Where LOCA's position head puts the patches of a box of a picture."""

import math
from dataclasses import dataclass

import torch

from hf_geossl.demo.channel_picture import Picture
from hf_geossl.demo.loading import DemoModel
from hf_geossl.modeling.geometry import query_positions

_FOCAL, _REFERENCE, _FOCAL_LIMIT = 96, 224, 0.32  # LOCA's sizes, and up to which share of the image queries are focal


def why_not_shown(model: DemoModel) -> str | None:
    """Why a model with heads cannot place a box; None where it can."""
    height, width = model.size()
    if model.config.location_target == "self":
        return "This model was trained to place patches in their own view, not in another: no box can be placed."
    if height != width:
        return (
            f"Boxes are placed in square pictures, and this model sees {width} x {height} pixels: no box can be placed."
        )
    return None


@dataclass
class Placement:
    """Where LOCA puts the patches of a box."""

    box: tuple[int, int, int, int]  # x1, y1, x2, y2 in pixels of the picture, as it was cut out
    side: int  # patches along a side of the query
    true: list[int]  # for each patch of the query the raster index of a patch of the picture
    predicted: list[int]
    grid: int  # patches along a side of the picture

    @property
    def exact(self) -> float:
        """Share of patches that are put exactly where they are."""
        return sum(map(int.__eq__, self.true, self.predicted)) / len(self.true)

    @property
    def distance(self) -> float:
        """Mean distance between true and predicted places, in patches."""
        return self._distance(list(zip(self.true, self.predicted, strict=True)))

    @property
    def guessed_distance(self) -> float:
        """That of places chosen evenly at random."""
        return self._distance([(a, b) for a in self.true for b in range(self.grid**2)])

    def _distance(self, pairs: list[tuple[int, int]]) -> float:
        return sum(math.dist(divmod(a, self.grid), divmod(b, self.grid)) for a, b in pairs) / len(pairs)

    @property
    def predicted_box(self) -> tuple[float, float, float, float]:
        """Median place of the left, top, right and bottom patches of the query, x1, y1, x2, y2 in patches."""
        places = torch.tensor([divmod(index, self.grid) for index in self.predicted]).view(self.side, self.side, 2)
        rows, columns = places.float().unbind(-1)
        edges = columns[:, 0], rows[0], columns[:, -1] + 1, rows[-1] + 1
        left, top, right, bottom = (edge.quantile(0.5).item() for edge in edges)
        return min(left, right - 1), min(top, bottom - 1), max(left + 1, right), max(top + 1, bottom)


def whole_box(box: tuple[float, float, float, float], side: int, smallest: int) -> tuple[int, int, int, int]:
    """A drawn box, its corners in any order in shares of the sides, in pixels: x1, y1, x2, y2, inside and not too small."""

    def along(a: float, b: float) -> tuple[int, int]:
        low, high = (min(max(round(value * side), 0), side) for value in sorted((a, b)))
        if high - low < smallest:
            low = min(max((low + high - smallest) // 2, 0), side - smallest)
            high = low + smallest
        return low, high

    (x1, x2), (y1, y2) = along(box[0], box[2]), along(box[1], box[3])
    return x1, y1, x2, y2


@torch.no_grad()
def place_box(model: DemoModel, picture: Picture, box: tuple[float, float, float, float]) -> Placement:
    """Gives LOCA a box of a picture as query and the picture as reference, and asks where the query's patches lie.

    The query is scaled as in training: to a focal query's size up to 32% of the picture's area, to the picture's above.
    The picture is square.
    """
    grid, patch = model.grid()[0], model.config.patch_size
    pixels = whole_box(box, picture.width, math.ceil(picture.width / grid))
    area = (pixels[2] - pixels[0]) * (pixels[3] - pixels[1]) / picture.width**2
    side = math.ceil(grid * _FOCAL / _REFERENCE) if area <= _FOCAL_LIMIT else grid
    query = model.pixels([picture.crop(pixels)], (side * patch, side * patch))
    scores = model.whole.predict_positions(model.pixels([picture]), query)
    whole = (0, 0, picture.width, picture.height)
    true = query_positions(whole, pixels, query_size=side * patch, query_grid=side, reference_grid=grid)
    return Placement(pixels, side, true.tolist(), scores[0].argmax(dim=-1).tolist(), grid)
