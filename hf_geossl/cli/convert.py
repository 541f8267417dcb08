"""`geossl convert`: ViTs from elsewhere to folders that `AutoModel` opens, and back to their own families."""

import shlex
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from hf_geossl.cli.usage import (
    Parser,
    UsageError,
    hide_loading_bars,
    nearest,
    next_steps,
    require_if_local,
    require_reachable,
)
from hf_geossl.methods import METHODS, PLAIN_VIT, TARGET_FAMILIES, Converter, Method

if TYPE_CHECKING:
    from hf_geossl.modeling.configuration_vit import GeometricViTConfig


_MEASURES = "numbers beside random weights, on scenes"


def converters() -> dict[str, tuple[Method, Converter]]:
    """Gives the converters of all methods, by what the command line calls them."""
    return {converter.source: (method, converter) for method in METHODS.values() for converter in method.converters}


def convert(argv: Sequence[str]) -> int:
    """Turns a ViT from elsewhere into a folder that `AutoModel` opens, or one of this library into another family's.

    Args:
        argv (`Sequence[str]`): What follows `geossl convert`.

    Returns:
        `int`: 0.
    """
    options = _parser().read(argv)
    if len(options.words) not in (2, 3):
        raise UsageError(f"give SOURCE OUT, or KIND FILE OUT, got {len(options.words)} words")
    _check_output(options.words[-1])
    if len(options.words) == 3:
        _convert_kind(options)
    else:
        _convert_source(options)
    return 0


def _parser() -> Parser:
    choices = [
        f"{source}: {' or '.join(converter.weights)} (the first by default)"
        for source, (_, converter) in converters().items()
        if converter.weights
    ]
    parser = Parser(
        "convert",
        "Turns ViTs of any family into folders that `AutoModel` opens, and models of this library into other families'.",
        usage="geossl convert SOURCE OUT [--to FAMILY] [options]\n       geossl convert KIND FILE OUT [options]",
    )
    add = parser.add_argument
    add(
        "words",
        nargs="+",
        metavar="[KIND] SOURCE OUT",
        help="SOURCE is a Hub id or folder of transformers or of this library, timm:NAME, or a file, in which nothing is "
        f"executed; KIND says whose checkpoint a file is where that is asked: {', '.join(sorted(converters()))}.",
    )
    add(
        "--to",
        choices=TARGET_FAMILIES,
        help="Family to write: a plain folder, which opens with no code of this library.",
    )
    add(
        "--num_attention_heads",
        type=int,
        help="Heads, where the file does not hold them; by default one for each 64 channels, or as published models of its width.",
    )
    add(
        "--weights",
        help=f"Which weights; of a SOURCE teacher (the default) or student; full is the whole pretraining model. "
        f"{'; '.join(choices)}.",
    )
    add("--revision", help="Branch, tag or commit of a Hub id.")
    add("--trust_remote_code", action="store_true", help="Run the code of a SOURCE that is no family of transformers.")
    return parser


def _config(method: Method, heads: int | None) -> "GeometricViTConfig | None":
    if heads is None:
        return None
    made: GeometricViTConfig = method.load("config")(hidden_size=64 * heads, num_attention_heads=heads)
    return made


def _convert_source(options: Namespace) -> None:
    source, output = options.words
    if options.weights not in (None, "teacher", "student"):
        raise UsageError(f"--weights must be teacher or student, got {options.weights}")
    require_if_local(source)
    require_reachable(source)
    from hf_geossl.conversion.family_export import save_family
    from hf_geossl.conversion.source import read_source
    from hf_geossl.conversion.trunk_weights import build_trunk
    from hf_geossl.hub.export import MAX_SHARD_SIZE, make_image_processor
    from hf_geossl.modeling.image_format import IMAGENET_MEAN, IMAGENET_STD

    hide_loading_bars()
    trunk = read_source(
        source,
        revision=options.revision,
        weights=options.weights,
        config=_config(METHODS[PLAIN_VIT], options.num_attention_heads),
        trust_remote_code=options.trust_remote_code,
        whole=False,
    )
    model = build_trunk(trunk)
    mean, std = trunk.image_mean or IMAGENET_MEAN, trunk.image_std or IMAGENET_STD
    if options.to is not None:
        save_family(model, options.to, output, mean, std)
        opens = (
            f'timm.create_model("local-dir:{output}", pretrained=True)'
            if options.to == "timm"
            else (f'AutoModel.from_pretrained("{output}")')
        )
    else:
        model.save_pretrained(output, max_shard_size=MAX_SHARD_SIZE)
        processor = make_image_processor(model.config.image_height_width, mean, std, model.config.get_image_format())
        processor.save_pretrained(output)
        _describe(output, trunk.name, trunk.family)
        opens = f'AutoModel.from_pretrained("{output}", trust_remote_code=True)'
    print(f"converted {trunk.name} ({trunk.family}) to {output}: {opens}")
    steps = [] if options.to == "timm" else [(f"geossl evaluate {shlex.quote(output)} --limit 2000", _MEASURES)]
    if options.to is None:
        steps.append((f"geossl publish {shlex.quote(output)} user/name --dry_run", "what would be sent"))
    if steps:
        print(next_steps(*steps))


def _convert_kind(options: Namespace) -> None:
    kind, file, output = options.words
    if kind not in converters():
        raise UsageError(f"there is no {kind!r}{nearest(kind, list(converters()))}")
    method, converter = converters()[kind]
    weights = _choose_weights(options.weights, converter)
    _check(options, converter, file)
    from hf_geossl.hub.export import export_model, make_image_processor

    hide_loading_bars()
    keywords: dict[str, object] = {}
    if options.num_attention_heads is not None:
        keywords["config"] = _config(method, options.num_attention_heads)
    if converter.chooses:
        keywords["weights"] = weights
    model = converter.load()(file, **keywords)
    processor = make_image_processor(model.config.image_height_width)
    if weights in ("student", "teacher") and not converter.chooses:
        export_model(model, output, weights=weights, image_processor=processor)
    else:
        model.save_pretrained(output)
        processor.save_pretrained(output)
    if method.name != kind:
        _describe(output, Path(file).name, kind)
    print(f'converted to {output}: AutoModel.from_pretrained("{output}", trust_remote_code=True)')
    print(next_steps((f"geossl evaluate {shlex.quote(output)} --limit 2000", _MEASURES)))


def _describe(output: str, name: str, family: str) -> None:
    """Writes where the weights come from, for the card: nothing of this library trained them."""
    from hf_geossl.hub.run_record import installed_versions, write_record

    if family in METHODS:
        return
    write_record({"converted_from": f"{name} ({family})", "versions": installed_versions()}, Path(output))


def _choose_weights(asked: str | None, converter: Converter) -> str | None:
    if asked is None:
        return converter.weights[0] if converter.weights else None
    if not converter.weights:
        raise UsageError(f"--weights does not apply to {converter.source}")
    if asked not in converter.weights:
        raise UsageError(f"--weights must be one of {', '.join(converter.weights)} for {converter.source}, got {asked}")
    return asked


def _check(options: Namespace, converter: Converter, file: str) -> None:
    if options.to or options.revision or options.trust_remote_code:
        raise UsageError("--to, --revision and --trust_remote_code go with SOURCE OUT: convert the file first")
    if options.num_attention_heads is not None and not converter.asks_for_heads:
        raise UsageError(
            f"--num_attention_heads does not apply to {converter.source}: the file holds the number of heads"
        )
    if options.num_attention_heads is not None and options.num_attention_heads < 1:
        raise UsageError(f"--num_attention_heads must be at least 1, got {options.num_attention_heads}")
    if not Path(file).is_file():
        raise UsageError(f"there is no file {file}")


def _check_output(output: str) -> None:
    folder = Path(output)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UsageError(f"{output} exists and is not empty: choose another folder")
