"""Embeds a folder of images, then finds the nearest of them to some pictures, and what is there twice.

    python examples/search.py run path/to/images query.jpg

`geossl embed` does the same from the command line, and draws contact sheets.
"""

import argparse

from hf_geossl.tasks import EmbeddingArguments, embed, find_duplicates, find_neighbours


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("model", help="a folder, an id on the Hub, or timm:NAME")
    parser.add_argument("dataset")
    parser.add_argument("queries", nargs="+")
    parser.add_argument("--table", default="features.parquet")
    parser.add_argument("--count", type=int, default=5)
    options = parser.parse_args()
    made = embed(options.model, options.dataset, options.table, EmbeddingArguments())  # goes on where it ended
    print(f"{made.rows} images; the features are in {options.table}")
    print(find_neighbours(made, options.queries, options.count).to_string(index=False))
    print(find_duplicates(made).to_string(index=False))


if __name__ == "__main__":
    main()
