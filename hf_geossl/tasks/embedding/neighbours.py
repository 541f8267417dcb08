"""The images of a table that are nearest to others, by the cosine of their features."""

from collections.abc import Sequence
from pathlib import Path

import pandas as pd
import torch
from PIL import Image

from hf_geossl.data.contact_sheet import draw_rows
from hf_geossl.data.images import BrokenImageError, decode_image
from hf_geossl.tasks.embedding.embed import Embedding
from hf_geossl.tasks.embedding.features import encode
from hf_geossl.tasks.embedding.pictures import as_columns, places_in, shrink, small_pictures
from hf_geossl.tasks.embedding.search import nearest, read_blocks

_MOST_SHOWN = 12  # queries of a sheet


def compared_column(embedding: Embedding) -> str:
    """The column of features that stands for an image.

    Raises:
        ValueError: If the table has patches alone.
    """
    for name in ("pooled", "class_token"):
        if name in embedding.arguments.features:
            return name
    raise ValueError(
        "images are compared by pooled or class_token, and the table has patches alone: add one to --features"
    )


def find_neighbours(embedding: Embedding, queries: Sequence[str | Path], count: int = 7) -> pd.DataFrame:
    """Finds the images of a table that are nearest to some others.

    Args:
        embedding ([`Embedding`]): The table, as `embed` has returned it.
        queries (`Sequence[str | Path]`): Files of images.
        count (`int`): How many neighbours of each.

    Returns:
        `pandas.DataFrame`: `query`, `rank` from 1, `key`, `x1`, `y1`, `x2`, `y2` where images were cut into tiles, and
        `similarity`, the cosine of the features.

    Raises:
        ValueError: If a query cannot be read, or the table has no feature of whole images.
    """
    column, encoder = compared_column(embedding), embedding.encoder
    made: list[torch.Tensor] = []
    for query in queries:
        try:
            picture = embedding.inputs.open(Path(query))
        except BrokenImageError as error:
            raise ValueError(f"the query {query} cannot be used: {error.reason}") from error
        values = embedding.inputs.pixel_values(picture)
        with torch.inference_mode():
            made.append(torch.from_numpy(encode(encoder, values[None], embedding.arguments).arrays()[column]))
    blocks = (block[column] for block in read_blocks(embedding.files, [column]))
    similarities, numbers = nearest(blocks, torch.cat(made), count, encoder.device)
    places = embedding.places({number for row in numbers.tolist() for number in row})
    rows = []
    for query, scores, found in zip(queries, similarities.tolist(), numbers.tolist(), strict=True):
        for rank, (score, number) in enumerate(zip(scores, found, strict=True), start=1):
            rows.append({"query": str(query), "rank": rank, **as_columns(places[number]), "similarity": score})
    return pd.DataFrame(rows)


def draw_neighbours(embedding: Embedding, table: pd.DataFrame) -> Image.Image:
    """Draws a sheet: a row a query, itself first, then its neighbours."""
    queries = list(dict.fromkeys(table["query"]))[:_MOST_SHOWN]
    shown = table[table["query"].isin(queries)]
    places = places_in(shown)
    pictures = small_pictures(embedding.images, embedding.inputs, places)
    rows = []
    for query in queries:
        inputs = embedding.inputs
        first = shrink(decode_image(Path(query), inputs.max_pixels, inputs.image_format))
        row = [(query, first)]
        for place, own, score in zip(places, shown["query"], shown["similarity"], strict=True):
            if own == query and place in pictures:
                row.append((f"{score:.3f} {place[0]}", pictures[place]))
        rows.append(row)
    return draw_rows(
        rows, f"each row: an image, then those most like it by {compared_column(embedding)} features (1: the same)"
    )
