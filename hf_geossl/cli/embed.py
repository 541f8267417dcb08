"""`geossl embed`: features of all images of a dataset as a table."""

import shlex
import sys
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from hf_geossl.cli.usage import Parser, UsageError, hide_loading_bars, next_steps, require_if_local, require_reachable

if TYPE_CHECKING:
    from hf_geossl.tasks.embedding.arguments import EmbeddingArguments
    from hf_geossl.tasks.embedding.embed import Embedding

_SAME = (
    *("split", "dtype", "batch_size", "image_size", "tile", "tile_overlap", "shard_rows", "limit", "image_column"),
    *("dataset_revision", "max_pixels", "bf16", "num_workers", "device", "revision", "trust_remote_code", "overwrite"),
)


def embed(argv: Sequence[str]) -> int:
    """Writes features of all images of a dataset.

    Args:
        argv (`Sequence[str]`): What follows `geossl embed`.

    Returns:
        `int`: 0; 130 after Ctrl-C.
    """
    options = _parser().read(argv)
    require_if_local(options.model)
    require_if_local(options.dataset)
    for query in options.neighbours:
        if not Path(query).is_file():
            raise UsageError(f"--neighbours takes files of images, and there is no file {query}")
    if options.count < 1:
        raise UsageError(f"--count must be at least 1, got {options.count}")
    require_reachable(options.model, options.dataset)
    if options.neighbours and options.features == ["patches"]:
        raise UsageError("--neighbours compares pooled or class_token: name one by --features, beside patches")
    from hf_geossl.tasks.embedding.arguments import EmbeddingArguments

    arguments = EmbeddingArguments(
        features=tuple(options.features),
        columns=None if options.columns is None else tuple(name for name in options.columns if name != "none"),
        config_name=options.dataset_config,
        **{name: getattr(options, name) for name in _SAME},
    )
    hide_loading_bars()
    return _embed(options, arguments, argv)


def _embed(options: Namespace, arguments: "EmbeddingArguments", argv: Sequence[str]) -> int:
    import datasets

    from hf_geossl.data.images import BrokenImageError, read_raster
    from hf_geossl.tasks.embedding.embed import embed as run

    for query in options.neighbours:  # before hours are spent on the others
        try:
            read_raster(Path(query))
        except BrokenImageError as error:
            raise UsageError(f"the query {query} cannot be used: {error.reason}") from error
    datasets.disable_progress_bars()  # of reading rows, which are no images
    try:
        made = run(options.model, options.dataset, options.output, arguments, on_progress=_tell)
    except KeyboardInterrupt:
        print("geossl: interrupted; the same command goes on", file=sys.stderr)
        return 130
    for line in made.lines():
        print(line)
    if not made.rank and (options.neighbours or options.duplicates):
        _search(options, made)
    elif not made.rank and not options.overwrite:
        command = f"geossl embed {shlex.join(argv)} --duplicates"
        print(next_steps((command, "then find near-duplicates; nothing is encoded again")))
    return 0


def _search(options: Namespace, made: "Embedding") -> None:
    """Writes tables and sheets of neighbours and duplicates beside the features."""
    from hf_geossl.tasks.embedding.duplicates import describe_duplicates, draw_duplicates, find_duplicates
    from hf_geossl.tasks.embedding.neighbours import draw_neighbours, find_neighbours

    stem = str(made.path).removesuffix(".parquet")
    if options.neighbours:
        table = find_neighbours(made, options.neighbours, options.count)
        table.to_csv(f"{stem}.neighbours.csv", index=False)
        draw_neighbours(made, table).save(f"{stem}.neighbours.png")
        print(f"Neighbours: {stem}.neighbours.csv; pictures: {stem}.neighbours.png")
    if options.duplicates:
        table = find_duplicates(made)
        table.to_csv(f"{stem}.duplicates.csv", index=False)
        draw_duplicates(made, table).save(f"{stem}.duplicates.png")
        *notes, found = describe_duplicates(table, made.rows)
        for line in notes:
            print(line)
        print(f"{found}: {stem}.duplicates.csv; pictures: {stem}.duplicates.png")


def _tell(line: str) -> None:
    print(line, file=sys.stderr)


def _parser() -> Parser:
    parser = Parser(
        "embed",
        "Writes features of all images of a dataset as parquet, which datasets, pandas and FAISS read. After an end of any\n"
        "kind the same command goes on.",
    )
    add = parser.add_argument
    add("model", metavar="MODEL", help="A folder, an id on the Hub, or timm:NAME.")
    add(
        "dataset",
        metavar="DATASET",
        help="Hub dataset, folder, glob or list of images, zip, parquet, WebDataset tars, 'scenes', or one image.",
    )
    add("output", metavar="OUTPUT", help="A file that ends in .parquet, or a folder of such files.")
    add(
        "--features",
        nargs="+",
        choices=("class_token", "pooled", "patches"),
        default=["pooled"],
        help="class_token, pooled (what stands for an image) and patches (all patch tokens). Default: pooled.",
    )
    add("--dtype", choices=("float32", "float16"), default="float32", help="As they are stored. Default: %(default)s.")
    add("--split", default="train", help="Which part of the dataset. Default: %(default)s.")
    add("--columns", nargs="+", help="Columns to carry along, or none; all but images and maps by default.")
    add("--limit", type=int, help="The first images only.")
    add("--tile", type=int, help="Cut larger images into tiles of so many pixels a side.")
    add("--tile_overlap", type=int, default=0, help="Pixels that neighbouring tiles share. Default: 0.")
    add("--image_size", type=int, help="Side in pixels to scale to; what the model's image processor does by default.")
    add("--batch_size", type=int, default=64, help="Images that are encoded at a time. Default: 64.")
    add("--shard_rows", type=int, help="Images of a shard, which is made whole or again. Default: 4096, or 256 MB.")
    add("--num_workers", type=int, help="Processes that decode images. Default: half of the cores, all with a GPU.")
    add("--device", help="cpu, cuda, ...; a GPU if there is one.")
    add("--bf16", action="store_true", help="Compute in bfloat16 autocast: faster on a GPU, other last digits.")
    add(
        "--neighbours",
        nargs="+",
        default=[],
        metavar="IMAGE",
        help="Then find the images nearest to these files, as a table and a sheet beside the output.",
    )
    add("--count", type=int, default=7, help="Neighbours of each. Default: %(default)s.")
    add(
        "--duplicates",
        action="store_true",
        help="Then find near-duplicates (resized, recompressed), as a table and a sheet.",
    )
    add("--overwrite", action="store_true", help="Make an output anew that is there.")
    _add_origins(parser)
    return parser


def _add_origins(parser: Parser) -> None:
    add = parser.add_argument
    add("--image_column", default="image", help="The column with the images. Default: %(default)s.")
    add("--dataset_config", help="Configuration of a Hub dataset; mode and size of the scenes, such as topdown-96.")
    add("--dataset_revision", help="Branch, tag or commit of a Hub dataset.")
    add("--revision", help="Branch, tag or commit of a model on the Hub.")
    add("--trust_remote_code", action="store_true", help="Let code of the model's repository run.")
    add("--max_pixels", type=int, default=2**26, help="Images of more pixels count as broken. Default: 2^26.")
