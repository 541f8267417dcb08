"""`geossl publish`: a trained folder to a repository of the Hub."""

from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from hf_geossl.cli.usage import Parser, hide_loading_bars, require_folder

if TYPE_CHECKING:
    from hf_geossl.hub.push import Publication


def publish(argv: Sequence[str]) -> int:
    """Sends a trained folder to a repository of the Hub, in one commit.

    Args:
        argv (`Sequence[str]`): What follows `geossl publish`.

    Returns:
        `int`: 0.
    """
    parser = Parser("publish", "Sends a trained folder to a repository of the Hub, in one commit.")
    add = parser.add_argument
    add("folder", help="What geossl pretrain, geossl convert or save_pretrained wrote.")
    add("repo", help="user/name on the Hub; made where it is missing.")
    add("--space", action="store_true", help="Publish a Gradio Space of the same name too.")
    add(
        "--include_pretraining", action="store_true", help="Send heads and teacher too, so that others go on from them."
    )
    add("--private", action="store_true", help="Make new repositories private.")
    add("--revision", help="Branch to publish to, made where it is missing; main by default.")
    add("--results", help="JSON file of measured numbers; results.json in the folder by default.")
    add("--license", help="Licence of the weights, as the Hub calls it, such as apache-2.0.")
    add("--dry_run", action="store_true", help="List what would be sent, and send nothing.")
    options = parser.read(argv)
    require_folder(options.folder)
    from hf_geossl.hub.model_folder import pretraining_files
    from hf_geossl.hub.push import publish as send

    hide_loading_bars()
    folder = Path(options.folder)
    with ExitStack() as stack:
        heads = pretraining_files(folder, options.repo) if options.include_pretraining else None
        publication = send(
            folder,
            options.repo,
            results=options.results,
            space=options.space,
            private=options.private,
            revision=options.revision,
            license=options.license,
            dry_run=options.dry_run,
            extra_files=stack.enter_context(heads) if heads else None,
        )
    print(describe_publication(publication))
    if publication.space is not None:
        print(describe_publication(publication.space))
    return 0


def describe_publication(publication: "Publication") -> str:
    """Lists the files of a publication, what happened to each, and where they are.

    Args:
        publication (`Publication`): What `hf_geossl.publish` returned.

    Returns:
        `str`: a line a file, and two lines of sums.
    """
    lines = [f"  {file.state:9}  {_size(file.size):>9}  {file.path}" for file in publication.files]
    sent = publication.sent
    number = f"{len(sent)} of {len(publication.files)} file{'' if len(publication.files) == 1 else 's'}"
    done = "would be sent" if publication.commit is None else "sent"
    total = f"{number} {done}, {_size(sum(file.size for file in sent))}"
    revision = f", revision {publication.commit[:10]}" if publication.commit else ""
    return "\n".join([*lines, f"{publication.kind} {publication.repo_id}: {total}{revision}", f"  {publication.url}"])


def _size(number: int) -> str:
    return f"{number / 1e6:.1f} MB" if number >= 100_000 else f"{number / 1e3:.1f} kB"
