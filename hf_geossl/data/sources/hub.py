"""A dataset of the Hugging Face Hub as a source, pinned to the commit it was opened at."""

import re
from functools import partial
from typing import Any

import datasets
from datasets.exceptions import DatasetNotFoundError
from datasets.packaged_modules.imagefolder.imagefolder import ImageFolder
from huggingface_hub import HfApi, hf_file_system
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from hf_geossl.data.images import EXTENSIONS
from hf_geossl.data.retries import OPENING_PAUSES, is_transient, retry
from hf_geossl.data.sources.base import (
    MIN_UNITS,
    Source,
    encoded_image,
    iterable_source,
    named_rows,
    rows_from,
    units_for,
)


def _read_again_where_it_failed(stream_file: Any) -> None:
    """Lets a file that is streamed from the Hub open a new connection after a read that failed.

    huggingface_hub (1.x) tries once more by itself and raises. `datasets` then reads on from the same object, whose
    connection has ended: it gets nothing, takes that for the end of the file, and the rest of a tar would be lost without
    a word.
    """
    read = stream_file.read

    def read_or_reopen(self: Any, length: int = -1) -> bytes:
        try:
            return read(self, length)
        except Exception:
            self.response = None  # the next read opens one, from the byte after the last that was given
            raise

    stream_file.read = read_or_reopen


if hasattr(hf_file_system, "HfFileSystemStreamFile"):
    _read_again_where_it_failed(hf_file_system.HfFileSystemStreamFile)

_ARCHIVES = (".zip", ".tar", ".gz", ".tgz", ".xz", ".zst", ".bz2", ".7z", ".rar")


def hub_source(
    repository: str,
    split: str,
    *,
    config_name: str | None,
    image_column: str,
    shuffle_block: int,
    revision: str | None,
    token: str | bool | None,
) -> Source:
    """Opens a Hub dataset for streaming; nothing is downloaded beforehand but what describes it.

    The revision is resolved to a commit first, so that a run and all that resume it see the same data.

    Args:
        repository (`str`): the dataset's id, "user/name".
        split (`str`), config_name (`str`, *optional*), image_column (`str`): as in [`load_stream`].
        shuffle_block (`int`): rows that are shuffled together.
        revision (`str`, *optional*): branch, tag or commit.
        token (`str` or `bool`, *optional*): for private and gated datasets.

    Returns:
        `Source`: a folder of images becomes rows of file names; anything else is read by its shards.

    Raises:
        FileNotFoundError: if there is no such dataset or revision, or it is private.
        PermissionError: if it is gated and the token does not open it.
        ValueError: if the configuration, split or column is not there.
        ConnectionError: if the Hub cannot be reached.
    """

    def describe() -> str | None:
        return HfApi(token=token).dataset_info(repository, revision=revision).sha

    def build() -> datasets.DatasetBuilder:
        try:
            return datasets.load_dataset_builder(repository, config_name, revision=commit, token=token)
        except ValueError as error:
            raise _about_configuration(repository, config_name, error) from error

    try:
        commit = retry(f"asking the Hub for {repository}", describe, OPENING_PAUSES)
        builder = retry(f"opening {repository}", build, OPENING_PAUSES)
        identity = {"repository": repository, "revision": commit}
        if image_column == "image" and (names := _image_files(builder, split, f"@{commit}/")) is not None:
            root, paths = names
            units = units_for(len(paths), shuffle_block)
            return Source(
                kind="hub",
                name=repository,
                rows=rows_from(named_rows, units=[paths[unit::units] for unit in range(units)]),
                units=units,
                read=partial(_read_below, root, token),
                identity=identity,
            )

        def stream() -> datasets.IterableDataset:
            streams = builder.as_streaming_dataset()
            _check_split(repository, split, list(streams))
            rows = streams[split]
            return rows if rows.num_shards >= MIN_UNITS else rows.reshard()

        rows = retry(f"opening {repository}", stream, OPENING_PAUSES)
        return iterable_source(rows, image_column, kind="hub", name=repository, identity=identity, token=token)
    except OfflineModeIsEnabled as error:
        raise ConnectionError(
            f"{repository!r} is no file or folder here, and offline mode is on (HF_HUB_OFFLINE), so the Hub was not "
            "asked; check the path, or turn offline mode off"
        ) from error
    except GatedRepoError as error:
        raise _gated(repository) from error
    except RevisionNotFoundError as error:
        raise FileNotFoundError(f"the Hub dataset {repository} has no revision {revision!r}") from error
    except RepositoryNotFoundError as error:
        raise _unknown(repository) from error
    except (DatasetNotFoundError, EntryNotFoundError) as error:
        raise _gated(repository) if "gated" in str(error) else _unknown(repository) from error
    except ConnectionError as error:
        if not is_transient(error):
            raise
        cause = error.__cause__ or error
        raise ConnectionError(
            f"{repository!r} is no file or folder here, and the Hub could not be reached to look for it: "
            f"{type(cause).__name__}: {str(cause).splitlines()[0] if str(cause) else 'no reason given'}; "
            "check the path or the network"
        ) from error


def _about_configuration(repository: str, config_name: str | None, error: ValueError) -> ValueError:
    """Says in one sentence, with our name of the argument, what `datasets` has to say about configurations."""
    configurations = re.search(r"(?:available configs|Available): \[(.*?)\]", str(error), re.DOTALL)
    if configurations is None:
        return error
    names = configurations[1].replace("'", "").replace("\n", " ")
    if config_name is None:
        return ValueError(
            f"{repository} has several configurations; pass as config_name (--dataset_config) one of {names}"
        )
    return ValueError(f"{repository} has no config_name (--dataset_config) {config_name!r}; it has {names}")


def _unknown(repository: str) -> FileNotFoundError:
    return FileNotFoundError(
        f"{repository!r} is neither a file or folder here nor a dataset on the Hub that can be seen; check the name, "
        "and if the dataset is private pass token=... or log in with `hf auth login`"
    )


def _gated(repository: str) -> PermissionError:
    return PermissionError(
        f"the Hub dataset {repository} is gated; accept its terms on its page, then pass token=... or log in with "
        "`hf auth login`"
    )


def _check_split(repository: str, split: str, splits: list[str]) -> None:
    if split not in splits:
        raise ValueError(f"{repository} has no split {split!r}; its splits are {', '.join(map(str, splits))}")


def _image_files(builder: datasets.DatasetBuilder, split: str, mark: str) -> tuple[str, list[str]] | None:
    """Where the plain image files of a repository lie, which `datasets` would stream as a single shard, and their names.

    None for any other layout, for archives and for an unknown split, which are left to `datasets`.
    """
    addresses = [str(address) for address in (builder.config.data_files or {}).get(split, [])]
    if not isinstance(builder, ImageFolder) or any(address.lower().endswith(_ARCHIVES) for address in addresses):
        return None
    images = sorted(address for address in addresses if address.lower().endswith(EXTENSIONS) and mark in address)
    if not images:
        return None
    root = images[0][: images[0].index(mark) + len(mark)]
    return root, [address.removeprefix(root) for address in images]


def _read_below(root: str, token: str | bool | None, row: dict) -> Any:
    return encoded_image({"path": root + row["value"]}, token)
