"""Small datasets of every form on the disk, and streams of them."""

import io
import itertools
import tarfile
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from hf_geossl.data.images import decode_image
from hf_geossl.data.streams import ImageStream, load_stream

ROWS = 37


def encoded(number: int, side: int = 6) -> bytes:
    pixels = np.random.default_rng(number).integers(0, 256, (side, side + 1, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def write_folder(root: Path, rows: int = ROWS) -> Path:
    for number in range(rows):
        place = root / f"class_{number % 3}"
        place.mkdir(parents=True, exist_ok=True)
        (place / f"{number:03d}.png").write_bytes(encoded(number))
    return root


def write_parquet(root: Path, rows: int = ROWS, group: int = 5, raw: bool = False) -> Path:
    root.mkdir(parents=True, exist_ok=True)
    for part, numbers in enumerate(np.array_split(np.arange(rows), 2)):
        values = [encoded(n) if raw else {"bytes": encoded(n), "path": f"{n:03d}.png"} for n in numbers]
        table = pa.table({"label": [int(n) for n in numbers], "image": values})
        pq.write_table(table, root / f"train-{part:05d}-of-00002.parquet", row_group_size=group)
    return root


def write_tars(root: Path, rows: int = ROWS) -> Path:
    root.mkdir(parents=True, exist_ok=True)
    for part, numbers in enumerate(np.array_split(np.arange(rows), 3)):
        with tarfile.open(root / f"shard-{part}.tar", "w") as archive:
            for number in numbers:
                for ending, content in (("json", b"{ not json"), ("png", encoded(number)), ("seg.png", encoded(999))):
                    member = tarfile.TarInfo(f"{number:03d}.{ending}")
                    member.size = len(content)
                    archive.addfile(member, io.BytesIO(content))
    return root


class Items:
    """A map-style dataset of arrays."""

    def __len__(self) -> int:
        return ROWS

    def __getitem__(self, index: int) -> dict:
        return {"image": np.asarray(decode_image(encoded(index))), "label": index}


def iterable_rows(numbers: list[int]):
    for number in numbers:
        yield {"image": {"bytes": encoded(number), "path": None}, "label": number}


KINDS = ["folder", "parquet", "raw_parquet", "webdataset", "indexed", "dataset", "iterable"]


def make_stream(kind: str, root: Path, **options) -> ImageStream:
    root = root / kind
    options = {"shuffle_block": 4, "seed": 3, **options}
    if kind == "folder":
        return load_stream(str(root if root.exists() else write_folder(root)), **options)
    if kind in ("parquet", "raw_parquet"):
        raw = kind == "raw_parquet"
        return load_stream(str(root if root.exists() else write_parquet(root, raw=raw)), **options)
    if kind == "webdataset":
        return load_stream(str(root if root.exists() else write_tars(root)), **options)
    if kind == "indexed":
        return ImageStream.from_dataset(Items(), **options)
    if kind == "dataset":
        table = {"image": [encoded(n) for n in range(ROWS)], "label": list(range(ROWS))}
        features = datasets.Features({"image": datasets.Image(), "label": datasets.Value("int64")})
        return ImageStream.from_dataset(datasets.Dataset.from_dict(table, features=features), **options)
    dataset = datasets.IterableDataset.from_generator(iterable_rows, gen_kwargs={"numbers": list(range(ROWS))})
    return ImageStream.from_dataset(dataset, **options)


def seen(sample: dict) -> tuple:
    return sample["key"], sample["seed"], np.asarray(sample["image"]).tobytes()


def first(stream: ImageStream, count: int) -> list[tuple]:
    return [seen(sample) for sample in itertools.islice(stream, count)]


def all_pixels() -> list[bytes]:
    return sorted(np.asarray(decode_image(encoded(n))).tobytes() for n in range(ROWS))


def write_tar(path: Path, rows: int) -> Path:
    with tarfile.open(path, "w") as archive:
        for number in range(rows):
            member = tarfile.TarInfo(f"{number:03d}.png")
            member.size = len(encoded(number))
            archive.addfile(member, io.BytesIO(encoded(number)))
    return path


def write_one_parquet(path: Path, rows: int, group: int | None = None) -> Path:
    values = [{"bytes": encoded(number), "path": None} for number in range(rows)]
    pq.write_table(pa.table({"image": values}), path, row_group_size=group or rows)
    return path
