"""`publish`: a trained folder becomes a repository of the Hub, in one commit."""

import json
import logging
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from hf_geossl.data.retries import OPENING_PAUSES
from hf_geossl.hub.card import CARD
from hf_geossl.hub.export import MAX_SHARD_SIZE
from hf_geossl.hub.model_folder import PRETRAINING, folder_of, is_managed, model_files
from hf_geossl.hub.repository import (
    PublishedFile,
    PublishError,
    Repository,
    Source,
    check_write_access,
    size_of,
)
from hf_geossl.hub.results import RESULTS
from hf_geossl.hub.run_folder import read_config
from hf_geossl.hub.space import write_space

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Publication:
    """What was published, or would be.

    Args:
        repo_id, kind (`str`): The repository, and "model" or "space".
        url (`str`): Where people see it.
        commit (`str` or `None`): The revision; None of a dry run.
        files (`tuple[PublishedFile, ...]`): Sorted by path.
        space (`Publication` or `None`): The Space published with it.
    """

    repo_id: str
    kind: str
    url: str
    commit: str | None
    files: tuple[PublishedFile, ...]
    space: "Publication | None" = None

    @property
    def sent(self) -> list[PublishedFile]:
        """The files that were sent, or would be."""
        return [file for file in self.files if file.state in ("new", "changed", "unknown")]


def push_files(
    files: Mapping[str, Source],
    repo_id: str,
    *,
    kind: str = "model",
    revision: str | None = None,
    private: bool = False,
    token: str | None = None,
    message: str = "Upload by hf_geossl",
    dry_run: bool = False,
    replaced: tuple[str, ...] = (),
) -> Publication:
    """Makes a repository hold some files, by one commit or none.

    Args:
        files (`dict[str, Path | bytes]`): By path in the repository. What is there already is not sent again.
        repo_id (`str`): `user/name`.
        kind (`str`): "model" or "space".
        revision (`str`, *optional*): A branch, made where it is missing; `main` by default.
        private (`bool`): Whether a repository that is made here is private; one that exists stays as it is.
        token (`str`, *optional*): The one that `hf auth login` saved, or HF_TOKEN, by default.
        message (`str`): Of the commit.
        dry_run (`bool`): Whether to compare only.
        replaced (`tuple[str, ...]`): Beginnings of paths under which files that are not given are removed, beside those
            that publishing has written itself.

    Returns:
        `Publication`: What was sent, or would be.

    Raises:
        PublishError: If the Hub cannot be reached or refuses; the repository is as it was.
    """
    repository = Repository(
        repo_id, kind=kind, revision=revision, token=token, pauses=() if dry_run else OPENING_PAUSES
    )

    def is_removed(path: str) -> bool:
        return is_managed(path) or path.startswith(replaced)

    if dry_run:
        return Publication(repo_id, kind, repository.url, None, repository.compare(files, is_removed))
    card = files.get(CARD)
    if isinstance(card, bytes):
        repository.check_card(card.decode())  # before a repository is made for it
    repository.open(private)
    compared = repository.compare(files, is_removed)
    return Publication(repo_id, kind, repository.url, repository.send(files, message, is_removed), compared)


def _list_files(
    files: Mapping[str, Source], repo_id: str, *, kind: str = "model", revision: str | None = None, **unused: object
) -> Publication:
    """What a dry run says where the repository cannot be read; takes what `push_files` does."""
    listed = tuple(PublishedFile(path, size_of(source), "unknown") for path, source in sorted(files.items()))
    return Publication(repo_id, kind, Repository(repo_id, kind=kind, revision=revision).url, None, listed)


def _is_readable(repository: Repository) -> bool:
    try:
        repository.files()
    except PublishError as error:
        reason = str(error).partition(". The repository is as it was")[0]
        logger.warning(f"every file is listed, for they could not be compared with the repository: {reason}")
        return False
    return True


def publish(
    model_or_folder: str | Path | PreTrainedModel,
    repo_id: str,
    *,
    results: Mapping[str, Any] | str | Path | None = None,
    space: bool = False,
    private: bool = False,
    token: str | None = None,
    revision: str | None = None,
    license: str | None = None,
    message: str = "Upload model by hf_geossl",
    dry_run: bool = False,
    max_shard_size: str | int = MAX_SHARD_SIZE,
    extra_files: Mapping[str, Source] | None = None,
) -> Publication:
    """Turns a trained folder or model into a repository of the Hub that others load, trust and click.

    Weights, configuration with the whole `auto_map`, the code that it needs, image processor, card, pictures, measured
    results and the record of the run are sent in one commit; what is there already is not sent again, and a push that is
    cut off leaves the repository as it was.

    Args:
        model_or_folder (`str`, `Path` or `PreTrainedModel`): A run's folder, one that `save_pretrained` wrote, or a model
            (of a `...ForPreTraining` one the trunk).
        repo_id (`str`): `user/name`, or `name` of your own.
        results (`dict`, `str` or `Path`, *optional*): Measured numbers, `{task: {metric: number}}` or a JSON file of it;
            `results.json` in the folder by default. See `read_results`.
        space (`bool`): Whether to publish a Gradio Space of the same name that shows the model.
        private (`bool`): Whether repositories that are made here are private; those that exist stay as they are.
        token (`str`, *optional*): With write access; the one that `hf auth login` saved, or HF_TOKEN, by default.
        revision (`str`, *optional*): A branch, made where it is missing; `main` by default. Not of the Space.
        license (`str`, *optional*): Of the weights, as the Hub calls it ("apache-2.0", "cc-by-4.0"); the card says that
            none is named otherwise.
        message (`str`): Of the commit.
        dry_run (`bool`): Whether to list only what would be sent; needs no token, and no network either: without one
            every file is listed.
        max_shard_size (`str` or `int`): Weights in a larger file are sent in several.
        extra_files (`dict[str, Path | bytes]`, *optional*): More files, by path in the repository; others in the same
            folders there are removed. `hub.model_folder.pretraining_files` gives those of the whole pretraining model.

    Returns:
        `Publication`: The files and what happened to each, the commit, and the Space.

    Raises:
        PublishError: If the token is missing or may not write (before anything is computed), or the Hub cannot be
            reached or refuses.
        ValueError: If the folder holds no model of this library, or results are not numbers.
    """
    if isinstance(model_or_folder, (str, Path)):
        read_config(Path(model_or_folder))  # a mistyped folder is said before the network is asked
    if not dry_run:
        repo_id = check_write_access(repo_id, token)
    elif "/" not in repo_id:
        raise ValueError(f"a dry run needs the whole name of the repository, user/{repo_id}")
    repository = Repository(repo_id, revision=revision, token=token, pauses=() if dry_run else OPENING_PAUSES)
    readable = not dry_run or _is_readable(repository)
    send = partial(push_files if readable else _list_files, token=token, dry_run=dry_run)
    extra = dict(extra_files or {})
    with folder_of(model_or_folder) as folder:
        measured = _published_results(repository, folder) if results is None and readable else results
        with model_files(
            folder,
            repo_id,
            results=measured,
            license=license,
            space=repo_id if space else None,
            max_shard_size=max_shard_size,
            remote_card=repository.read_text(CARD) if readable else None,
            with_heads=any(path.startswith(f"{PRETRAINING}/") for path in extra),
        ) as files:
            if space and readable:
                _check_space(Repository(repo_id, kind="space", token=token, pauses=repository.pauses))
            publication = send(
                {**files, **extra},
                repo_id,
                revision=revision,
                private=private,
                message=message,
                replaced=tuple({f"{path.partition('/')[0]}/" for path in extra if "/" in path}),
            )
        if not space:
            return publication
        private = private or (not dry_run and Repository(repo_id, token=token).is_private())  # what is private stays so
        return replace(publication, space=_publish_space(send, folder, repo_id, license, private))


def _publish_space(
    send: Callable[..., Publication], folder: Path, repo_id: str, license: str | None, private: bool
) -> Publication:
    with tempfile.TemporaryDirectory() as temporary:
        root = write_space(folder, Path(temporary) / "space", repo_id=repo_id, license=license)
        return send(
            {str(path.relative_to(root)): path for path in sorted(root.rglob("*")) if path.is_file()},
            repo_id,
            kind="space",
            private=private,
            message="Upload demo by hf_geossl",
            replaced=("hf_geossl/", "model/", "samples/"),
        )


def _published_results(repository: Repository, folder: Path) -> dict[str, Any] | None:
    """The results that are published already, if they were measured with the very weights in the folder."""
    if (folder / RESULTS).is_file() or not repository.holds(sorted(folder.glob("model*.safetensors"))):
        return None
    text = repository.read_text(RESULTS)
    return None if text is None else json.loads(text)


def _check_space(space: Repository) -> None:
    """Refuses to write over a Space that shows something else."""
    app = space.read_text("app.py")
    if app is not None and "hf_geossl.demo" not in app:
        raise PublishError(
            f"there is a Space {space.repo_id} with another app, which would be lost: publish without a Space, or under "
            "another name"
        )
