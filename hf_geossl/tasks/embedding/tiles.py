"""Large images cut into tiles."""

Box = tuple[int, int, int, int]  # x1, y1, x2, y2 in pixels of the image
Place = tuple[str, Box | None]  # key of an image, and the tile of it


def tile_boxes(width: int, height: int, tile: int | None, overlap: int = 0) -> list[Box]:
    """Covers an image with tiles of one size, row by row.

    Args:
        width, height (`int`): Of the image in pixels.
        tile (`int`, *optional*): Side of a tile; None leaves the image whole, and so does one at least as large.
        overlap (`int`): Pixels that neighbours share at least; the last tiles of a row and column end at the image's edge
            and may share more.

    Returns:
        `list[(int, int, int, int)]`: x1, y1, x2, y2 of each tile.
    """
    across, down = _starts(width, tile or width, overlap), _starts(height, tile or height, overlap)
    wide, high = min(width, tile or width), min(height, tile or height)
    return [(left, top, left + wide, top + high) for top in down for left in across]


def _starts(length: int, tile: int, overlap: int) -> list[int]:
    if length <= tile:
        return [0]
    step = tile - overlap
    return [*range(0, length - tile, step), length - tile]
