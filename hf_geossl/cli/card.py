"""`geossl card`: the model card of a trained folder, made again."""

from collections.abc import Sequence

from hf_geossl.cli.usage import Parser, require_folder


def card(argv: Sequence[str]) -> int:
    """Makes the model card of a trained folder again, from what lies in it.

    Args:
        argv (`Sequence[str]`): What follows `geossl card`.

    Returns:
        `int`: 0.
    """
    parser = Parser(
        "card",
        "Makes README.md of a trained folder again: from its configuration, the record of its run, its pictures "
        "and its measured results.",
    )
    parser.add_argument("folder", help="What geossl pretrain wrote.")
    options = parser.read(argv)
    folder = require_folder(options.folder)
    from hf_geossl.hub.card import write_card

    print(f"The model card is {write_card(folder)}")
    return 0
