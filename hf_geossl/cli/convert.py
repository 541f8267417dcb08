"""`geossl convert`: foreign checkpoints to folders that `AutoModel` opens."""

from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path

from hf_geossl.cli.usage import Parser, UsageError, hide_loading_bars
from hf_geossl.methods import METHODS, Converter, Method


def converters() -> dict[str, tuple[Method, Converter]]:
    """Gives the converters of all methods, by what the command line calls them."""
    return {converter.source: (method, converter) for method in METHODS.values() for converter in method.converters}


def convert(argv: Sequence[str]) -> int:
    """Turns a foreign checkpoint into a folder that `AutoModel` opens.

    Args:
        argv (`Sequence[str]`): What follows `geossl convert`.

    Returns:
        `int`: 0.
    """
    options = _parser().read(argv)
    method, converter = converters()[options.source]
    weights = _choose_weights(options.weights, converter)
    _check(options, converter)
    from hf_geossl.hub.export import export_model, make_image_processor

    hide_loading_bars()
    keywords: dict[str, object] = {}
    if options.num_attention_heads is not None:
        keywords["config"] = method.load("config")(
            hidden_size=64 * options.num_attention_heads,
            num_attention_heads=options.num_attention_heads,
            **dict(converter.config),
        )
    if converter.chooses:
        keywords["weights"] = weights
    model = converter.load()(options.file, **keywords)
    processor = make_image_processor(model.config.image_height_width)
    if weights in ("student", "teacher") and not converter.chooses:
        export_model(model, options.output, weights=weights, image_processor=processor)
    else:
        model.save_pretrained(options.output)
        processor.save_pretrained(options.output)
    print(f'converted to {options.output}: AutoModel.from_pretrained("{options.output}", trust_remote_code=True)')
    return 0


def _parser() -> Parser:
    choices = [
        f"{source}: {' or '.join(converter.weights)} (the first by default)"
        for source, (_, converter) in converters().items()
        if converter.weights
    ]
    parser = Parser("convert", "Turns foreign checkpoints into folders that `AutoModel` opens.")
    add = parser.add_argument
    add("source", choices=sorted(converters()), help="Whose checkpoint it is.")
    add("file", help="The .pth, .safetensors or Flax file; nothing in it is executed.")
    add("output", help="Folder to write.")
    add(
        "--num_attention_heads",
        type=int,
        help="Heads, where the file does not hold them; by default one for each 64 channels.",
    )
    add("--weights", help=f"Which weights of the file; full is the whole pretraining model. {'; '.join(choices)}.")
    return parser


def _choose_weights(asked: str | None, converter: Converter) -> str | None:
    if asked is None:
        return converter.weights[0] if converter.weights else None
    if not converter.weights:
        raise UsageError(f"--weights does not apply to {converter.source}")
    if asked not in converter.weights:
        raise UsageError(f"--weights must be one of {', '.join(converter.weights)} for {converter.source}, got {asked}")
    return asked


def _check(options: Namespace, converter: Converter) -> None:
    if options.num_attention_heads is not None and not converter.asks_for_heads:
        raise UsageError(
            f"--num_attention_heads does not apply to {converter.source}: the file holds the number of heads"
        )
    if options.num_attention_heads is not None and options.num_attention_heads < 1:
        raise UsageError(f"--num_attention_heads must be at least 1, got {options.num_attention_heads}")
    if not Path(options.file).is_file():
        raise UsageError(f"there is no file {options.file}")
    folder = Path(options.output)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UsageError(f"{options.output} exists and is not empty: choose another folder")
