"""`publish`: a trained folder becomes a repository of the Hub, in one commit."""

import hashlib
import json
import logging
import re
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi
from huggingface_hub.errors import (
    EntryNotFoundError,
    HfHubHTTPError,
    HFValidationError,
    LocalTokenNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.hf_api import RepoFile
from huggingface_hub.utils import validate_repo_id

from hf_geossl.data.retries import OPENING_PAUSES, is_transient, retry
from hf_geossl.hub.export import MAX_SHARD_SIZE
from hf_geossl.hub.model_folder import CARD, Source, folder_of, is_managed, model_files
from hf_geossl.hub.redaction import redact
from hf_geossl.hub.results import RESULTS
from hf_geossl.hub.space import write_space

logger = logging.getLogger(__name__)

_HOW_TO_LOG_IN = "make a token with write access on the Hub, then run `hf auth login` or set HF_TOKEN"
_GO_ON = "The repository is as it was; publish again when the network is back"


class PublishError(RuntimeError):
    """The Hub could not be reached or has refused; the message says what to do, and the repository is as it was."""


@dataclass(frozen=True)
class PublishedFile:
    """A file of a publication.

    Args:
        path (`str`): In the repository.
        size (`int`): In bytes; of what is there where it is removed.
        state (`str`): "new", "changed", "unchanged" (not sent) or "removed".
    """

    path: str
    size: int
    state: str


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


@contextmanager
def _in_words(repo_id: str) -> Iterator[None]:
    """Turns what the client raises into a `PublishError` of one line."""
    try:
        yield
    except LocalTokenNotFoundError as error:
        raise PublishError(f"publishing {repo_id} needs a token, and there is none: {_HOW_TO_LOG_IN}") from error
    except HfHubHTTPError as error:
        status = getattr(getattr(error, "response", None), "status_code", None)
        said = redact(getattr(error, "server_message", None) or str(error).partition("\n")[0])
        if status == 401:
            raise PublishError(f"the Hub does not accept the token for {repo_id} ({said}): {_HOW_TO_LOG_IN}") from error
        if status == 403:
            raise PublishError(
                f"the token may not write to {repo_id} ({said}): {_HOW_TO_LOG_IN}, or choose a repository of your own"
            ) from error
        raise PublishError(f"the Hub refused {repo_id} ({status}: {said}); the repository is as it was") from error
    except ConnectionError as error:
        raise PublishError(redact(error)) from error
    except ValueError as error:
        if not str(error).startswith("Invalid metadata in README.md"):
            raise
        said = re.sub(r"\[([^]]{60})[^]]*\]", r"[\1 ...]", " ".join(str(error).split()))
        raise PublishError(f"the Hub refuses the card of {repo_id}: {said}") from error
    except Exception as error:
        if is_transient(error):  # of the HTTP client, whose classes have no stable home
            raise PublishError(f"the Hub cannot be reached ({redact(error)}). {_GO_ON}") from error
        raise


def check_write_access(repo_id: str, token: str | None = None) -> str:
    """Makes sure, before anything is computed, that a token is there and may write to a repository.

    Args:
        repo_id (`str`): `user/name`, or `name` in the namespace of the token's user.
        token (`str`, *optional*): The one that `hf auth login` saved, or HF_TOKEN, by default.

    Returns:
        `str`: `user/name`.

    Raises:
        PublishError: If the token is missing, unknown or read-only, or belongs to nobody of that namespace.
        ValueError: If `repo_id` is not the name of a repository.
    """
    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise ValueError(f"{redact(repo_id)!r} is no name of a repository: give user/name") from error
    api = HfApi(token=token)
    with _in_words(repo_id):
        who = retry("asking the Hub whose token it is", api.whoami, OPENING_PAUSES, _GO_ON)
    access = who.get("auth", {}).get("accessToken", {})
    scopes = [*access.get("fineGrained", {}).get("global", [])]
    for scoped in access.get("fineGrained", {}).get("scoped", []):
        scopes += scoped.get("permissions", [])
    if access.get("role") == "read" or (
        access.get("role") == "fineGrained" and not any(scope.endswith("write") for scope in scopes)
    ):
        raise PublishError(f"the token of {who['name']} may only read: {_HOW_TO_LOG_IN}")
    namespace, _, name = repo_id.rpartition("/")
    organisations = [entry for entry in who.get("orgs", []) if entry.get("roleInOrg") != "read"]
    mine = [who["name"], *(entry["name"] for entry in organisations)]
    if namespace and namespace not in mine:
        raise PublishError(
            f"the token belongs to {who['name']}, who is not {namespace} and no member of it: publish to "
            f"{who['name']}/{name}, or log in as {namespace}"
        )
    return f"{namespace or who['name']}/{name}"


def _open_repository(api: HfApi, repo_id: str, kind: str, revision: str | None, private: bool) -> None:
    """Makes the repository and the branch where they are missing; refuses a public one where a private one is asked."""
    sdk = "gradio" if kind == "space" else None
    api.create_repo(repo_id, repo_type=kind, private=private, exist_ok=True, space_sdk=sdk)
    if private and not api.repo_info(repo_id, repo_type=kind).private:
        raise PublishError(
            f"the {kind} {repo_id} is there already and public, and a private one is asked for: make it private in its "
            "settings on the Hub, or choose another name"
        )
    if revision is not None and revision != "main":
        api.create_branch(repo_id, branch=revision, repo_type=kind, exist_ok=True)


def _remote_files(api: HfApi, repo_id: str, kind: str, revision: str | None) -> dict[str, tuple[int, str]]:
    """Size and hash (git's of the content, or SHA-256 of a large file) of every file there; none where nothing is."""
    try:
        api.repo_info(repo_id, revision=revision, repo_type=kind)  # fails at once where the Hub is not there
        tree = list(api.list_repo_tree(repo_id, recursive=True, revision=revision, repo_type=kind))
    except (RepositoryNotFoundError, RevisionNotFoundError, EntryNotFoundError):
        return {}
    found = {}
    for entry in tree:
        if isinstance(entry, RepoFile):
            found[entry.path] = (entry.size, entry.lfs.sha256 if entry.lfs else entry.blob_id)
    return found


def _is_same(source: Source, size: int, digest: str) -> bool:
    if _size_of(source) != size:
        return False
    large = len(digest) == 64
    found = hashlib.sha256() if large else hashlib.sha1(b"blob %d\0" % size)
    if isinstance(source, bytes):
        found.update(source)
    else:
        with source.open("rb") as file:
            while block := file.read(1 << 20):
                found.update(block)
    return found.hexdigest() == digest


def _size_of(source: Source) -> int:
    return len(source) if isinstance(source, bytes) else source.stat().st_size


def _text_of(api: HfApi, repo_id: str, kind: str, revision: str | None, path: str) -> str | None:
    """A text file of a repository; None where it, the revision or the repository is not there."""
    try:
        api.repo_info(repo_id, revision=revision, repo_type=kind)
        with tempfile.TemporaryDirectory() as temporary:
            place = api.hf_hub_download(repo_id, path, revision=revision, repo_type=kind, local_dir=temporary)
            return Path(place).read_text(encoding="utf-8")
    except (RepositoryNotFoundError, RevisionNotFoundError, EntryNotFoundError):
        return None


def _keep_measured(api: HfApi, repo_id: str, revision: str | None, folder: Path) -> dict[str, Any] | None:
    """The results that are published already, if they were measured with the very weights in the folder."""
    remote = _remote_files(api, repo_id, "model", revision)
    weights = sorted(folder.glob("model*.safetensors"))
    if RESULTS not in remote or not weights or (folder / RESULTS).is_file():
        return None
    if not all(path.name in remote and _is_same(path, *remote[path.name]) for path in weights):
        return None
    text = _text_of(api, repo_id, "model", revision, RESULTS)
    return None if text is None else json.loads(text)


def _compare(
    files: Mapping[str, Source], remote: dict[str, tuple[int, str]], replaced: tuple[str, ...]
) -> tuple[PublishedFile, ...]:
    compared = []
    for path, source in files.items():
        state = "new" if path not in remote else "unchanged" if _is_same(source, *remote[path]) else "changed"
        compared.append(PublishedFile(path, _size_of(source), state))
    for path, (size, _) in remote.items():
        if path not in files and (is_managed(path) or path.startswith(replaced)):
            compared.append(PublishedFile(path, size, "removed"))
    return tuple(sorted(compared, key=lambda file: file.path))


def _operations(files: Mapping[str, Source], compared: tuple[PublishedFile, ...]) -> list[Any]:
    return [
        CommitOperationDelete(file.path) if file.state == "removed" else CommitOperationAdd(file.path, files[file.path])
        for file in compared
        if file.state != "unchanged"
    ]


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
    api = HfApi(token=token)
    with _in_words(repo_id):
        card = files.get("README.md")
        if not dry_run and isinstance(card, bytes):
            api._validate_yaml(card.decode(), repo_type=kind)  # before a repository is made for it
        if not dry_run:
            retry(
                f"opening {repo_id}",
                lambda: _open_repository(api, repo_id, kind, revision, private),
                OPENING_PAUSES,
                _GO_ON,
            )
        compared = retry(
            f"reading {repo_id}",
            lambda: _compare(files, _remote_files(api, repo_id, kind, revision), replaced),
            () if dry_run else OPENING_PAUSES,
            _GO_ON,
        )
        prefix = "spaces/" if kind == "space" else ""
        url = f"{api.endpoint}/{prefix}{repo_id}" + (f"/tree/{revision}" if revision else "")
        if dry_run:
            return Publication(repo_id, kind, url, None, compared)

        def send() -> str:  # compares again: an attempt whose answer was lost may have succeeded
            operations = _operations(files, _compare(files, _remote_files(api, repo_id, kind, revision), replaced))
            if not operations:
                return str(api.repo_info(repo_id, repo_type=kind, revision=revision).sha)
            return api.create_commit(repo_id, operations, commit_message=message, repo_type=kind, revision=revision).oid

        commit = retry(f"sending {repo_id}", send, OPENING_PAUSES, _GO_ON)
    return Publication(repo_id, kind, url, commit, compared)


def publish(
    model_or_folder: Any,
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
    extra_files: Mapping[str, Path] | None = None,
) -> Publication:
    """Turns a trained folder or model into a repository of the Hub that others load, trust and click.

    Weights, configuration with the whole `auto_map`, the code that it needs, image processor, card, pictures, measured
    results and what is known of the run are sent in one commit; what is there already is not sent again, and a push that
    is cut off leaves the repository as it was.

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
        dry_run (`bool`): Whether to list only what would be sent; needs no token.
        max_shard_size (`str` or `int`): Weights in a larger file are sent in several.
        extra_files (`dict[str, Path]`, *optional*): More files, by path in the repository; others in the same folders
            there are removed.

    Returns:
        `Publication`: The files and what happened to each, the commit, and the Space.

    Raises:
        PublishError: If the token is missing or may not write (before anything is computed), or the Hub cannot be
            reached or refuses.
        ValueError: If the folder holds no model of this library, or results are not numbers.
    """
    if not dry_run:
        repo_id = check_write_access(repo_id, token)
    elif "/" not in repo_id:
        raise ValueError(f"a dry run needs the whole name of the repository, user/{repo_id}")
    api = HfApi(token=token)
    with folder_of(model_or_folder) as folder:
        with _in_words(repo_id):
            patience = () if dry_run else OPENING_PAUSES
            if results is None:
                results = retry(
                    f"reading {repo_id}", lambda: _keep_measured(api, repo_id, revision, folder), patience, _GO_ON
                )
            remote_card = retry(
                f"reading {repo_id}", lambda: _text_of(api, repo_id, "model", revision, CARD), patience, _GO_ON
            )
        extra = dict(extra_files or {})
        with model_files(
            folder,
            repo_id,
            results=results,
            license=license,
            space=repo_id if space else None,
            max_shard_size=max_shard_size,
            remote_card=remote_card,
        ) as files:
            if space:
                _check_space(api, repo_id)
            publication = push_files(
                {**files, **extra},
                repo_id,
                revision=revision,
                private=private,
                token=token,
                message=message,
                dry_run=dry_run,
                replaced=tuple({f"{path.partition('/')[0]}/" for path in extra if "/" in path}),
            )
        if not space:
            return publication
        if not private and not dry_run:  # what is kept back is not shown either
            with _in_words(repo_id):
                private = bool(api.repo_info(repo_id).private)
        with tempfile.TemporaryDirectory() as temporary:
            root = write_space(folder, Path(temporary) / "space", repo_id=repo_id, license=license)
            pushed = push_files(
                {str(path.relative_to(root)): path for path in sorted(root.rglob("*")) if path.is_file()},
                repo_id,
                kind="space",
                private=private,
                token=token,
                message="Upload demo by hf_geossl",
                dry_run=dry_run,
                replaced=("hf_geossl/", "model/", "samples/"),
            )
    return replace(publication, space=pushed)


def _check_space(api: HfApi, repo_id: str) -> None:
    """Refuses to write over a Space that shows something else."""
    with _in_words(repo_id):
        app = _text_of(api, repo_id, "space", None, "app.py")
    if app is not None and "hf_geossl.demo" not in app:
        raise PublishError(
            f"there is a Space {repo_id} with another app, which would be lost: publish without a Space, or under another "
            "name"
        )
