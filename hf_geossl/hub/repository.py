"""A repository of the Hub: who may write to it, what it holds, and one commit that makes it hold something else."""

import hashlib
import re
import tempfile
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi
from huggingface_hub.errors import (
    BadRequestError,
    EntryNotFoundError,
    HfHubHTTPError,
    HFValidationError,
    LocalTokenNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.hf_api import RepoFile
from huggingface_hub.utils import build_hf_headers, get_session, hf_raise_for_status, validate_repo_id

from hf_geossl.data.retries import OPENING_PAUSES, is_transient, retry
from hf_geossl.hub.redaction import redact

Source = Path | bytes
_Answer = TypeVar("_Answer")
_ABSENT = (RepositoryNotFoundError, RevisionNotFoundError, EntryNotFoundError)
_HOW_TO_LOG_IN = "make a token with write access on the Hub, then run `hf auth login` or set HF_TOKEN"
_ADVICE = "The repository is as it was; publish again when the network is back"


class PublishError(RuntimeError):
    """The Hub could not be reached or has refused; the message says what to do, and the repository is as it was."""


@dataclass(frozen=True)
class PublishedFile:
    """A file of a publication.

    Args:
        path (`str`): In the repository.
        size (`int`): In bytes; for a removed file its size in the repository.
        state (`str`): "new", "changed", "unchanged" (not sent) or "removed"; of a dry run that could not read the
            repository "unknown".
    """

    path: str
    size: int
    state: str


@contextmanager
def _translate_errors(repo_id: str) -> Iterator[None]:
    """Raises a `PublishError` of one line for what the client raises."""
    try:
        yield
    except LocalTokenNotFoundError as error:
        raise PublishError(f"publishing {repo_id} needs a token, and there is none: {_HOW_TO_LOG_IN}") from error
    except HfHubHTTPError as error:
        status = getattr(getattr(error, "response", None), "status_code", None)
        message = redact(getattr(error, "server_message", None) or str(error).partition("\n")[0])
        if status == 401:
            raise PublishError(
                f"the Hub does not accept the token for {repo_id} ({message}): {_HOW_TO_LOG_IN}"
            ) from error
        if status == 403:
            raise PublishError(
                f"the token may not write to {repo_id} ({message}): {_HOW_TO_LOG_IN}, or choose a repository of your own"
            ) from error
        raise PublishError(f"the Hub refused {repo_id} ({status}: {message}); the repository is as it was") from error
    except ConnectionError as error:
        raise PublishError(redact(error)) from error
    except Exception as error:
        if is_transient(error):  # of the HTTP client, whose classes have no stable home
            raise PublishError(f"the Hub cannot be reached ({redact(error)}). {_ADVICE}") from error
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
    with _translate_errors(repo_id):
        who = retry("asking the Hub whose token it is", HfApi(token=token).whoami, OPENING_PAUSES, _ADVICE)
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


class Repository:
    """A repository as this library reads and changes it; every request is tried again after failures of the network.

    Args:
        repo_id (`str`): `user/name`.
        kind (`str`): "model" or "space".
        revision (`str`, *optional*): A branch; `main` by default.
        token (`str`, *optional*): The one that `hf auth login` saved, or HF_TOKEN, by default.
        pauses (`tuple[float, ...]`): Seconds between attempts; none means one attempt.

    Every method raises a `PublishError` where the Hub cannot be reached or refuses; the repository is as it was then.
    """

    def __init__(
        self,
        repo_id: str,
        *,
        kind: str = "model",
        revision: str | None = None,
        token: str | None = None,
        pauses: tuple[float, ...] = OPENING_PAUSES,
    ) -> None:
        self.repo_id, self.kind, self.revision, self.pauses = repo_id, kind, revision, pauses
        self._api = HfApi(token=token)

    def _ask(self, what: str, action: Callable[[], _Answer]) -> _Answer:
        with _translate_errors(self.repo_id):
            return retry(f"{what} {self.repo_id}", action, self.pauses, _ADVICE)

    @property
    def url(self) -> str:
        """Where people see it."""
        prefix = "spaces/" if self.kind == "space" else ""
        return f"{self._api.endpoint}/{prefix}{self.repo_id}" + (f"/tree/{self.revision}" if self.revision else "")

    def is_private(self) -> bool:
        """Whether only its owners see it."""
        return self._ask("reading", lambda: bool(self._api.repo_info(self.repo_id, repo_type=self.kind).private))

    def open(self, private: bool = False) -> None:
        """Makes the repository and the branch where they are missing.

        Args:
            private (`bool`): Whether a repository that is made here is private.

        Raises:
            PublishError: If a private one is asked for and the repository is there and public.
        """
        self._ask("opening", lambda: self._open(private))

    def _open(self, private: bool) -> None:
        sdk = "gradio" if self.kind == "space" else None
        self._api.create_repo(self.repo_id, repo_type=self.kind, private=private, exist_ok=True, space_sdk=sdk)
        if private and not self._api.repo_info(self.repo_id, repo_type=self.kind).private:
            raise PublishError(
                f"the {self.kind} {self.repo_id} is there already and public, and a private one is asked for: make it "
                "private in its settings on the Hub, or choose another name"
            )
        if self.revision is not None and self.revision != "main":
            self._api.create_branch(self.repo_id, branch=self.revision, repo_type=self.kind, exist_ok=True)

    def files(self) -> dict[str, tuple[int, str]]:
        """Size and hash (git's of the content, or SHA-256 of a large file) by path; empty where there is no repository."""
        return self._ask("reading", self._files)

    def _files(self) -> dict[str, tuple[int, str]]:
        try:
            self._api.repo_info(
                self.repo_id, repo_type=self.kind, revision=self.revision
            )  # fails at once where there is no Hub
            tree = list(
                self._api.list_repo_tree(self.repo_id, recursive=True, repo_type=self.kind, revision=self.revision)
            )
        except _ABSENT:
            return {}
        files = [entry for entry in tree if isinstance(entry, RepoFile)]
        return {file.path: (file.size, file.lfs.sha256 if file.lfs else file.blob_id) for file in files}

    def read_text(self, path: str) -> str | None:
        """A text file; None where it, the branch or the repository is missing."""

        def read() -> str | None:
            try:
                self._api.repo_info(self.repo_id, repo_type=self.kind, revision=self.revision)
                with tempfile.TemporaryDirectory() as temporary:
                    place = self._api.hf_hub_download(
                        self.repo_id, path, local_dir=temporary, repo_type=self.kind, revision=self.revision
                    )
                    return Path(place).read_text(encoding="utf-8")
            except _ABSENT:
                return None

        return self._ask("reading", read)

    def check_card(self, card: str) -> None:
        """Asks the Hub whether it takes a card.

        Raises:
            PublishError: If its metadata is not what the Hub takes.
        """

        def ask() -> None:
            response = get_session().post(
                f"{self._api.endpoint}/api/validate-yaml",
                json={"content": card, "repoType": self.kind},
                headers=build_hf_headers(token=self._api.token),
            )
            try:
                hf_raise_for_status(response)
            except BadRequestError as error:
                said = " ".join(str(entry.get("message")) for entry in response.json().get("errors", []))
                short = re.sub(r"\[([^]]{60})[^]]*\]", r"[\1 ...]", " ".join(said.split()))
                raise PublishError(f"the Hub refuses the card of {self.repo_id}: {short}") from error

        self._ask("checking the card of", ask)

    def compare(
        self, files: Mapping[str, Source], is_removed: Callable[[str], bool] = lambda path: False
    ) -> tuple[PublishedFile, ...]:
        """Compares files with what the repository holds.

        Args:
            files (`Mapping[str, Path | bytes]`): By path in the repository.
            is_removed (`Callable[[str], bool]`): Whether a path that is not among them is to be removed.

        Returns:
            `tuple[PublishedFile, ...]`: Sorted by path.
        """
        return self._ask("reading", lambda: self._compare(files, is_removed))

    def _compare(self, files: Mapping[str, Source], is_removed: Callable[[str], bool]) -> tuple[PublishedFile, ...]:
        remote, compared = self._files(), []
        for path, source in files.items():
            state = "new" if path not in remote else "unchanged" if is_same(source, *remote[path]) else "changed"
            compared.append(PublishedFile(path, size_of(source), state))
        removed = [path for path in remote if path not in files and is_removed(path)]
        compared += [PublishedFile(path, remote[path][0], "removed") for path in removed]
        return tuple(sorted(compared, key=lambda file: file.path))

    def send(
        self, files: Mapping[str, Source], message: str, is_removed: Callable[[str], bool] = lambda path: False
    ) -> str:
        """Makes the repository hold the files, by one commit or none; arguments are as in `compare`.

        Args:
            files (`Mapping[str, Path | bytes]`): By path in the repository. What is there already is not sent again.
            message (`str`): Of the commit.
            is_removed (`Callable[[str], bool]`): Whether a path that is not among them is removed.

        Returns:
            `str`: The commit, the present one where nothing had to be sent.
        """

        def attempt() -> str:  # compares again: an attempt whose answer was lost may have succeeded
            operations: list[CommitOperationAdd | CommitOperationDelete] = []
            for file in self._compare(files, is_removed):
                if file.state == "removed":
                    operations.append(CommitOperationDelete(file.path))
                elif file.state != "unchanged":
                    operations.append(CommitOperationAdd(file.path, files[file.path]))
            if not operations:
                return str(self._api.repo_info(self.repo_id, repo_type=self.kind, revision=self.revision).sha)
            commit = self._api.create_commit(
                self.repo_id, operations, commit_message=message, repo_type=self.kind, revision=self.revision
            )
            return commit.oid

        return self._ask("sending", attempt)

    def holds(self, paths: Collection[Path]) -> bool:
        """Whether the repository holds these very files of this machine, each under its name."""
        remote = self.files() if paths else {}
        return bool(paths) and all(path.name in remote and is_same(path, *remote[path.name]) for path in paths)


def is_same(source: Source, size: int, digest: str) -> bool:
    """Whether a file has a size and a hash as `Repository.files` gives them."""
    if size_of(source) != size:
        return False
    large = len(digest) == 64
    hashed = hashlib.sha256() if large else hashlib.sha1(b"blob %d\0" % size)
    if isinstance(source, bytes):
        hashed.update(source)
    else:
        with source.open("rb") as file:
            while block := file.read(1 << 20):
                hashed.update(block)
    return hashed.hexdigest() == digest


def size_of(source: Source) -> int:
    """Bytes of a file, or of what will be one."""
    return len(source) if isinstance(source, bytes) else source.stat().st_size
