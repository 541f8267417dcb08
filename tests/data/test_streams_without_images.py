"""Streams that yield no image end with one sentence, in workers too."""

import time
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from hf_geossl import load_stream
from hf_geossl.data.batches import StreamBatches
from hf_geossl.data.broken import BrokenStreamError
from hf_geossl.data.streams import ImageStream


class _Views:
    def __call__(self, image: Any, *, seed: int) -> dict[str, torch.Tensor]:
        return {"seed": torch.tensor(seed)}

    def collate(self, samples: Any) -> dict[str, torch.Tensor]:
        return {"seed": torch.stack([sample["seed"] for sample in samples])}


def _nothing(kind: str, folder: Path) -> ImageStream:
    if kind == "filtered":
        dataset = datasets.Dataset.from_dict({"image": [b"x"] * 9}).to_iterable_dataset(num_shards=3)
        return ImageStream.from_dataset(dataset.filter(lambda row: False))
    if kind == "no rows":
        schema = pa.schema([("image", pa.struct([("bytes", pa.binary()), ("path", pa.string())]))])
        for number in range(4):
            pq.write_table(schema.empty_table(), folder / f"{number}.parquet")
        return load_stream(str(folder))
    for number in range(5):
        (folder / f"{number}.jpg").write_bytes(b"not an image")
    return load_stream(str(folder))


def _first_batch(kind: str, folder: Path, workers: int) -> None:
    batches = StreamBatches(_nothing(kind, folder), _Views(), 2, num_streams=2, num_workers=workers)
    next(iter(batches.loader()))


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("filtered", "the dataset holds no rows; pass data with images"),
        ("no rows", "holds no rows; pass parquet files with images"),
        ("broken", "a whole pass gave no image.*Mend the data"),
    ],
)
def test_a_stream_that_yields_nothing_ends_with_one_sentence(
    kind: str, message: str, workers: int, tmp_path: Path
) -> None:
    began = time.monotonic()
    with pytest.raises((BrokenStreamError, ValueError), match=message) as error:  # found while reading, or at once
        _first_batch(kind, tmp_path, workers)
    assert time.monotonic() - began < 30
    assert "\n" not in str(error.value)
