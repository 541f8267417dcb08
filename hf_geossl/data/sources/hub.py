"""A dataset of the Hugging Face Hub, pinned to the commit it was opened at."""

import re
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from functools import partial
from itertools import islice
from typing import Any

import datasets
from datasets.exceptions import DatasetNotFoundError
from datasets.packaged_modules.csv.csv import Csv
from datasets.packaged_modules.imagefolder.imagefolder import ImageFolder
from datasets.packaged_modules.json.json import Json
from datasets.packaged_modules.parquet.parquet import Parquet
from datasets.packaged_modules.webdataset.webdataset import WebDataset
from huggingface_hub import HfApi
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from hf_geossl.data.retries import OPENING_PAUSES, is_transient, retry
from hf_geossl.data.sources.base import MIN_UNITS, Source, encoded_image, undecoded
from hf_geossl.data.sources.files import Files, folder_source
from hf_geossl.data.sources.listing import kind_of
from hf_geossl.data.sources.opened import iterable_source
from hf_geossl.data.sources.split_names import canonical
from hf_geossl.data.sources.webdataset import open_on_hub, webdataset_rows, webdataset_source
from hf_geossl.data.wording import Place

_ARCHIVES = (".zip", ".tar", ".gz", ".tgz", ".xz", ".zst", ".bz2", ".7z", ".rar")


def hub_source(
    repository: str,
    split: str,
    config_name: str | None,
    image_column: str,
    shuffle_block: int,
    revision: str | None,
    token: str | bool | None,
) -> Source:
    """Opens a Hub dataset for streaming; nothing is downloaded beforehand but what describes it.

    The revision is resolved to a commit first, so that a run and all that resume it see the same data. A folder of
    images becomes rows of file names, tars are read as they are on this machine; anything else is read by the shards of
    `datasets`. Arguments are those of [`load_stream`].

    Raises:
        FileNotFoundError: if there is no such dataset or revision, or it is private.
        PermissionError: if it is gated and the token does not open it.
        ValueError: if the configuration, split or column is not there.
        ConnectionError: if the Hub cannot be reached.
    """
    with _errors_in_words(repository, revision):
        commit = _commit(repository, revision, token)
        builder = _builder(repository, config_name, commit, token)
        identity = {"repository": repository, "revision": commit}
        split = _own_split(builder, split, repository)
        files = _plain_files(builder, split, f"@{commit}/")
        if files is not None and files.kind == "webdataset":
            open_tar = partial(open_on_hub, token=token)
            return webdataset_source(files, repository, image_column, kind="hub", identity=identity, open_tar=open_tar)
        if files is not None and image_column == "image":
            read = partial(_read_address, token=token)
            return folder_source(files, repository, shuffle_block, kind="hub", identity=identity, read=read)
        rows = retry(f"opening {repository}", partial(builder.as_streaming_dataset, split), OPENING_PAUSES)
        rows = rows if rows.num_shards >= MIN_UNITS else rows.reshard()
        if rows.features is None:
            _refuse_texts(next(iter(rows), {}), image_column, repository)
        described = (builder.info.splits or {}).get(split)
        count = described.num_examples if described is not None else None
        return iterable_source(
            rows, image_column, kind="hub", name=repository, identity=identity, token=token, num_images=count or None
        )


def hub_rows(
    repository: str, split: str, *, config_name: str | None, revision: str | None, token: str | bool | None
) -> datasets.IterableDataset:
    """Opens a Hub dataset with all its columns as a stream; arguments and errors are those of [`hub_source`]."""
    with _errors_in_words(repository, revision):
        builder = _builder(repository, config_name, revision, token)
        split = _own_split(builder, split, repository)
        files = _plain_files(builder, split, f"@{revision}/")
        if files is not None and files.kind == "webdataset":
            return webdataset_rows(files, repository, open_tar=partial(open_on_hub, token=token))
        return retry(f"opening {repository}", partial(builder.as_streaming_dataset, split), OPENING_PAUSES)


def hub_texts(
    repository: str,
    split: str,
    columns: Collection[str],
    *,
    features: datasets.Features | None,
    config_name: str | None,
    revision: str | None,
    token: str | bool | None,
) -> datasets.Dataset | None:
    """Reads those of some columns that hold texts, of all rows, where this does not read the images too.

    Args:
        repository, split, config_name, revision, token: as in [`hub_rows`].
        columns (`Collection[str]`): their names.
        features (`datasets.Features`, *optional*): of the rows, where they state them.

    Returns:
        `datasets.Dataset`: None where no column holds texts, and of tars and archives, which are read whole.
    """
    texts = _texts(features, columns)
    if features is not None and not texts:
        return None
    with _errors_in_words(repository, revision):
        builder = _builder(repository, config_name, revision, token)
        split = _own_split(builder, split, repository)
        addresses = [str(address) for address in (builder.config.data_files or {}).get(split, [])]
        if not isinstance(builder, Parquet | Csv | Json | ImageFolder) or any(map(_is_archive, addresses)):
            return None
        if isinstance(builder, Parquet) and texts:
            builder = _builder(repository, config_name, revision, token, columns=texts)
        rows = undecoded(builder.as_streaming_dataset(split))
        if features is None:
            texts = _texts(datasets.Dataset.from_list(list(islice(rows, 1))).features, columns)
        if not texts:
            return None
        Place(repository, repository).warn(f"all rows of {', '.join(texts)} in {split} are read, to number the texts")
        return datasets.Dataset.from_list(list(rows.select_columns(texts)))


def _texts(features: datasets.Features | None, columns: Collection[str]) -> list[str]:
    return [name for name in columns if features is not None and name in features and _holds_text(features[name])]


def _refuse_texts(row: dict[str, Any], image_column: str, repository: str) -> None:
    if isinstance(row.get(image_column), str):
        raise ValueError(
            f"the column {image_column!r} of {repository} holds texts, such as {row[image_column][:40]!r}, not images: call "
            "the table metadata.csv and its column file_name, beside the images, or store the images in parquet files"
        )


def _holds_text(feature: Any) -> bool:
    """Whether a column holds texts, also in lists or under names; `ClassLabel` has numbers."""
    if isinstance(feature, dict):
        return any(map(_holds_text, feature.values()))
    inner = getattr(feature, "feature", None)
    return (
        _holds_text(inner)
        if inner is not None
        else getattr(feature, "dtype", "") in ("string", "large_string") and type(feature) is datasets.Value
    )


def _own_split(builder: datasets.DatasetBuilder, split: str, repository: str) -> str:
    """The dataset's name for a split, which may be another word for the same ("val" for "validation").

    Raises:
        ValueError: if it has none; it names those that there are.
    """
    names = list(map(str, builder.config.data_files or {}))
    if split in names or not names or "+" in split:
        return split
    same = [name for name in names if canonical(name) == canonical(split)]
    if len(same) == 1:
        Place(repository, repository).warn(f"there is no split {split!r}; {same[0]!r} is taken")
        return same[0]
    raise ValueError(
        f"{repository} has no split {split!r}; its splits are {', '.join(names)}: name one by --split (--train_split and "
        "--test_split of an evaluation)"
    )


def pinned_revision(repository: str, revision: str | None, token: str | bool | None) -> str | None:
    """Resolves a revision to its present commit; returns it as it is where the Hub does not answer."""
    try:
        return _commit(repository, revision, token)
    except (OSError, ValueError):  # no network, or no such dataset, which opening it will say
        return revision


def _commit(repository: str, revision: str | None, token: str | bool | None) -> str | None:
    ask = partial(HfApi(token=token).dataset_info, repository, revision=revision)
    return retry(f"asking the Hub for {repository}", ask, OPENING_PAUSES).sha


def _builder(
    repository: str, config_name: str | None, revision: str | None, token: str | bool | None, **options: Any
) -> datasets.DatasetBuilder:
    def build() -> datasets.DatasetBuilder:
        try:
            return datasets.load_dataset_builder(repository, config_name, revision=revision, token=token, **options)
        except ValueError as error:
            raise _about_configuration(repository, config_name, error) from error

    builder = retry(f"opening {repository}", build, OPENING_PAUSES)
    if hasattr(builder.config, "decode_num_threads") and "decode_num_threads" not in options:
        # `datasets` would decode in threads of its own, whatever the size, and end at the first broken image
        return _builder(repository, config_name, revision, token, decode_num_threads=0, **options)
    return builder


@contextmanager
def _errors_in_words(repository: str, revision: str | None) -> Iterator[None]:
    """Replaces the errors of the Hub and of `datasets` by one sentence each that says what to do."""
    try:
        yield
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


def _plain_files(builder: datasets.DatasetBuilder, split: str, mark: str) -> Files | None:
    """Lists the plain image files of a repository, which `datasets` would stream as a single shard, or the tars of a WebDataset.

    None for any other layout, for archives of images and for an unknown split, which are left to `datasets`. The `mark` of
    the commit is in the addresses of the repository's files.
    """
    addresses = [str(address) for address in (builder.config.data_files or {}).get(split, [])]
    kinds = set(map(kind_of, addresses))
    if isinstance(builder, WebDataset) and kinds == {"webdataset"}:
        kind = "webdataset"
    elif isinstance(builder, ImageFolder) and not any(map(_is_archive, addresses)):
        kind = "folder"
    else:
        return None
    marked = sorted(address for address in addresses if kind_of(address) == kind and mark in address)
    if not marked:
        return None
    root = marked[0][: marked[0].index(mark) + len(mark)]
    return Files(kind, root, [address.removeprefix(root) for address in marked])


def _is_archive(address: str) -> bool:
    return address.lower().endswith(_ARCHIVES)


def _read_address(address: str, token: str | bool | None) -> Any:
    return encoded_image({"path": address}, token)
