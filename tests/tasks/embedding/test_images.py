"""Any dataset in its own order, with keys that name an image and the columns beside it."""

import io
import json
import os
import subprocess
import sys
import tarfile

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from hf_geossl.tasks.embedding.arguments import EmbeddingArguments
from hf_geossl.tasks.embedding.images import open_images
from tests.helpers.hub_server import HubServer
from tests.helpers.images import encoded, write_parquet, write_tars


def keys_of(images):
    return [images.read(row)[0] for unit in range(images.units) for row in images.from_place(unit, 0)]


def test_parquet_in_order_with_labels_and_names_of_files(tmp_path):
    images = open_images(str(write_parquet(tmp_path / "data", rows=12)), EmbeddingArguments())
    assert images.units == 2
    assert keys_of(images) == [f"train-0000{part}-of-00002.parquet:{row}" for part in (0, 1) for row in range(6)]
    rows = [images.read(row)[1] for unit in (0, 1) for row in images.from_place(unit, 0)]
    assert [images.carried_of(values) for values in rows] == [{"label": number} for number in range(12)]
    few = open_images(str(tmp_path / "data"), EmbeddingArguments(limit=8))
    assert (few.units, keys_of(few)) == (1, keys_of(images)[:8])


def test_tars_whose_truth_cannot_be_read_give_their_images(tmp_path, caplog):
    images = open_images(str(write_tars(tmp_path / "data", rows=6)), EmbeddingArguments())
    assert "images alone are read, no other columns" in caplog.text
    assert keys_of(images) == [
        f"shard-{part}.tar:{number:03d}" for part in range(3) for number in (2 * part, 2 * part + 1)
    ]
    assert images.image_of(next(images.from_place(1, 1)).values).startswith(b"\x89PNG")


def test_saved_datasets_have_row_numbers_and_columns_can_be_chosen(tmp_path):
    data = datasets.Dataset.from_dict(
        {"picture": [np.zeros((4, 4, 3), np.uint8).tolist()] * 3, "text": ["a", "b", "c"], "key": [7, 8, 9]},
        features=datasets.Features(
            {
                "picture": datasets.Array3D((4, 4, 3), "uint8"),
                "text": datasets.Value("string"),
                "key": datasets.Value("int64"),
            }
        ),
    )
    data.save_to_disk(str(tmp_path / "data"))
    images = open_images(str(tmp_path / "data"), EmbeddingArguments(image_column="picture", columns=("text", "key")))
    assert keys_of(images) == ["row 0", "row 1", "row 2"]
    images.without(["key", "pooled"])
    key, values = images.read(next(images.from_place(0, 2)))
    assert (key, images.carried_of(values)) == ("row 2", {"text": "c"})
    assert np.asarray(images.image_of(values)).dtype == np.uint8
    with pytest.raises(ValueError, match="no column 'label' to carry along; its columns are text, key"):
        open_images(str(tmp_path / "data"), EmbeddingArguments(image_column="picture", columns=("label",)))


def test_scenes_have_their_truth_but_maps():
    images = open_images("scenes", EmbeddingArguments(split="test", limit=2, config_name="topdown-32"))
    assert keys_of(images) == ["scenes/test/0", "scenes/test/1"]
    assert list(images.features) == ["label", "multi_label", "objects"]
    assert images.left_out == ["semantic", "instance", "depth"]


ON_HUB = """
import json
from hf_geossl.data.images import decode_image
from hf_geossl.tasks.embedding.arguments import EmbeddingArguments
from hf_geossl.tasks.embedding.images import open_images
results = {}
for name in ("user/parquet", "user/folder", "user/tars"):
    images = open_images(name, EmbeddingArguments())
    rows = [images.read(row) for unit in range(images.units) for row in images.from_place(unit, 0)]
    size = [list(decode_image(images.image_of(values)).size) for _, values in rows]
    results[name] = [(key, images.carried_of(values).get("label"), one) for (key, values), one in zip(rows, size)]
print("RESULTS" + json.dumps(results))
"""


@pytest.mark.slow
def test_datasets_of_the_hub_have_keys_and_labels(tmp_path):
    hub = HubServer(tmp_path / "hub")
    table, packed = io.BytesIO(), io.BytesIO()
    pq.write_table(pa.table({"label": [4, 5], "image": [{"bytes": encoded(n), "path": None} for n in (0, 1)]}), table)
    with tarfile.open(fileobj=packed, mode="w") as archive:
        for ending, content in (("png", encoded(0)), ("cls", b"7")):
            member = tarfile.TarInfo(f"a.{ending}")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    hub.add("user/parquet", {"train-00000-of-00001.parquet": table.getvalue()})
    hub.add("user/folder", {f"train/class_{n % 2}/{n}.png": encoded(n) for n in range(3)})
    hub.add("user/tars", {"train/0.tar": packed.getvalue()})
    environment = {**os.environ, "HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "home")}
    for name in ("HF_TOKEN", "HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "HF_DATASETS_CACHE", "HF_HUB_CACHE"):
        environment.pop(name, None)
    child = subprocess.run([sys.executable, "-c", ON_HUB], env=environment, capture_output=True, text=True)
    hub.close()
    assert "RESULTS" in child.stdout, child.stderr[-2000:]
    results = json.loads(child.stdout.partition("RESULTS")[2])
    assert results["user/parquet"] == [["unit 0 row 0", 4, [7, 6]], ["unit 0 row 1", 5, [7, 6]]]
    assert [row[:2] for row in results["user/folder"]] == [
        ["train/class_0/0.png", 0], ["train/class_0/2.png", 0], ["train/class_1/1.png", 1]
    ]  # fmt: skip
    assert results["user/tars"] == [["unit 0:a", 7, [7, 6]]]
