"""Streams from a Hub that speaks HTTP: a local server, read by the real client in a process of its own."""

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
from PIL import Image

from tests.helpers.hub_server import HubServer, Token

ROWS = 37

CHILD = """
import itertools, json, logging, sys, time, urllib.request

time.sleep = lambda pause: None  # the client itself waits between its attempts
import torch
from hf_geossl.data import retries
from hf_geossl.data.batches import StreamBatches
from hf_geossl.data.streams import load_stream

pauses = []
retries.sleep = pauses.append
server, results = sys.argv[1], {}


class Views:
    def __call__(self, image, *, seed):
        return {"seed": torch.tensor(seed)}

    def collate(self, samples):
        return {"seed": torch.stack([sample["seed"] for sample in samples])}


def first(stream, count):
    return [(sample["key"], sample["seed"], list(sample["image"].getpixel((0, 0)))) for sample in itertools.islice(stream, count)]


for name, options in (("user/parquet", {}), ("user/folder", {}), ("user/tars", {"image_column": "png"})):
    stream = load_stream(name, shuffle_block=4, **options)
    samples = first(stream, 60)
    head = first(stream, 23)
    resumed = load_stream(name, shuffle_block=4, **options)
    resumed.load_state_dict(json.loads(json.dumps(stream.state_dict())))
    resumed_samples = head + first(resumed, 37)
    failing = iter(stream)
    failed = first(failing, 6)
    fault = {"match": "^GET .*/resolve/", "status": 500, "times": 8}
    urllib.request.urlopen(f"{server}/faults", json.dumps(fault).encode())
    failed += first(failing, 54)
    urllib.request.urlopen(urllib.request.Request(f"{server}/faults", method="DELETE"))
    batches = StreamBatches(stream, Views(), 3, num_streams=2)
    alone = StreamBatches(stream, Views(), 3, num_streams=2)
    keys = [[batches.advance(batch) for batch in itertools.islice(batches.loader(2), 12)]]
    keys.append([alone.advance(batch) for batch in itertools.islice(alone.loader(0), 12)])
    results[name] = {
        "samples": samples, "resumed": resumed_samples, "failed": failed, "keys": keys,
        "units": stream.source.units, "revision": stream.fingerprint["revision"], "pauses": list(pauses),
    }
    pauses.clear()

for name, options in (
    ("user/parquet", {"split": "validation"}), ("user/folder", {"split": "test"}), ("user/parquet", {"image_column": "photo"}),
    ("user/texts", {"split": "valid"}), ("user/list", {}), ("user/parquet", {"revision": "nowhere"}), ("user/several", {}), ("user/parquet", {"config_name": "other"}), ("user/nothing", {}), ("user/gated", {}),
):
    try:
        load_stream(name, **options)
    except Exception as error:
        results[f"{name} {options}"] = f"{type(error).__name__}: {error}"
from hf_geossl.evaluation.options import EvaluationData
from hf_geossl.evaluation.truth import Columns

logged = []
logging.getLogger("hf_geossl").addHandler(type("Lines", (logging.Handler,), {"emit": lambda self, record: logged.append(record.getMessage())})())
for name, test, columns in (
    ("user/texts", "validation", Columns()), ("user/lists", "test", Columns()), ("user/boxes", "test", Columns()),
    ("user/named", "test", Columns()), ("user/tars", "train", Columns()), ("user/metadata", "test", Columns()),
):
    data = EvaluationData(name, size=4, train_split="train", test_split=test, columns=columns)
    targets = {"categories": lambda value: value.tolist(), "label": int, "multi_label": lambda value: value.tolist()}
    rows = [
        [next(read(sample[key]) for key, read in targets.items() if key in sample) for sample in samples]
        for samples in (data.train, data.test)
    ]
    results[f"samples of {name}"] = {"rows": rows, "names": sorted(data.test.names.items()), "logged": list(logged)}
    logged.clear()
results["with token"] = first(load_stream("user/gated", token="hf_secret"), 1)[0][0]
print("RESULTS" + json.dumps(results))
"""


def encoded(number: int) -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.full((4, 5, 3), (number, 1, 2), dtype=np.uint8)).save(file, "PNG")
    return file.getvalue()


def parquet(numbers: range, **columns: list) -> bytes:
    file = io.BytesIO()
    columns = {"label": list(numbers)} | columns
    table = pa.table({**columns, "image": [{"bytes": encoded(n), "path": f"{n}.png"} for n in numbers]})
    pq.write_table(table, file, row_group_size=5)
    return file.getvalue()


def named(names: list[str], labels: list[int]) -> bytes:
    """Rows whose features state the names of their classes."""
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=names)})
    file = io.BytesIO()
    images = [{"bytes": encoded(label), "path": None} for label in labels]
    datasets.Dataset.from_dict({"image": images, "label": labels}, features).to_parquet(file)
    return file.getvalue()


def tar(numbers: range) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        for number in numbers:
            for ending, content in (("png", encoded(number)), ("cls", str(number % 3).encode())):
                member = tarfile.TarInfo(f"{number:03d}.{ending}")
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
    return file.getvalue()


@pytest.fixture(scope="module")
def results(tmp_path_factory) -> dict:
    card = b"---\nlicense: mit\n---\n"
    repositories = {
        "user/parquet": {
            "README.md": card,
            "data/train-00000-of-00002.parquet": parquet(range(20)),
            "data/train-00001-of-00002.parquet": parquet(range(20, ROWS)),
            "data/test-00000-of-00001.parquet": parquet(range(3)),
        },
        "user/folder": {
            **{f"train/class_{n % 3}/{n:03d}.png": encoded(n) for n in range(ROWS)},
            **{f"validation/class_0/{n}.png": encoded(n) for n in range(3)},
        },
        "user/several": {
            "README.md": b"---\nconfigs:\n- config_name: small\n  data_files: a.parquet\n- config_name: large\n  data_files: b.parquet\n---\n",
            "a.parquet": parquet(range(3)),
            "b.parquet": parquet(range(3)),
        },
        "user/tars": {f"train/{part}.tar": tar(range(ROWS)[part::3]) for part in range(3)},
        "user/texts": {
            "README.md": b"---\nconfigs:\n- config_name: default\n  data_files:\n  - split: train\n    path: a.parquet\n  - split: val\n    path: b.parquet\n---\n",
            "a.parquet": parquet(range(4), label=["dog", "cat", "dog", "cow"]),
            "b.parquet": parquet(range(2), label=["cow", "ant"]),
        },
        "user/lists": {
            "train.parquet": parquet(range(2), label=[["a", "b"], ["c"]]),
            "test.parquet": parquet(range(2), label=[["d"], []]),
        },
        "user/boxes": {
            "train.parquet": parquet(range(2), objects=[{"bbox": [[0, 0, 3, 3]], "category": [name]} for name in "xy"]),
            "test.parquet": parquet(range(1), objects=[{"bbox": [[0, 0, 3, 3]], "category": ["z"]}]),
        },
        "user/named": {
            "train.parquet": named(["dog", "cat"], [0, 1]),
            "test.parquet": named(["dog", "cat"], [1]),
        },
        "user/metadata": {
            **{f"{split}/{n}.png": encoded(n) for split in ("train", "test") for n in range(2)},
            "train/metadata.csv": b"file_name,label\n0.png,dog\n1.png,cat\n",
            "test/metadata.csv": b"file_name,label\n0.png,eel\n1.png,cat\n",
        },
        "user/list": {"train.csv": b"image,label\n0.png,dog\n", "0.png": encoded(0)},
        "user/gated": {"data/train-00000-of-00001.parquet": parquet(range(5))},
    }
    hub = HubServer(tmp_path_factory.mktemp("hub"), tokens={"hf_secret": Token("reader", "read")})
    commits = {
        name: hub.add(name, files, gated="auto" if name == "user/gated" else False)
        for name, files in repositories.items()
    }
    environment = {**os.environ, "HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path_factory.mktemp("home"))}
    for name in ("HF_TOKEN", "HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "HF_DATASETS_CACHE", "HF_HUB_CACHE"):
        environment.pop(name, None)
    child = subprocess.run(
        [sys.executable, "-c", CHILD, hub.url],
        env=environment,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    hub.close()
    assert not hub.errors
    assert "RESULTS" in child.stdout, child.stderr[-3000:]
    assert "hf_secret" not in child.stdout + child.stderr
    return json.loads(child.stdout.split("RESULTS")[1]) | {"commits": commits}


@pytest.mark.parametrize("name", ["user/parquet", "user/folder", "user/tars"])
def test_hub_datasets_are_whole_pinned_and_resume(results, name):
    got = results[name]
    assert sorted(pixel[0] for _, _, pixel in got["samples"][:ROWS]) == list(range(ROWS))
    assert got["resumed"] == got["samples"]
    assert got["revision"] == results["commits"][name]
    assert got["keys"][0] == got["keys"][1]
    assert len({key for batch in got["keys"][0] for key in batch}) >= 30


@pytest.mark.parametrize("name", ["user/parquet", "user/folder", "user/tars"])
def test_a_failing_hub_is_retried_and_nothing_is_lost_or_repeated(results, name):
    assert results[name]["pauses"][:1] == [1.0]  # after the client's own six attempts
    assert results[name]["failed"] == results[name]["samples"]


def test_files_and_row_groups_become_units(results):
    assert results["user/parquet"]["units"] == 8  # row groups of 5
    assert results["user/tars"]["units"] == 3
    assert results["user/folder"]["units"] == ROWS  # one each: not the single shard of `datasets`
    assert results["user/folder"]["samples"][0][0].startswith("train/class_")


def test_what_is_not_on_the_hub_is_named(results):
    for key, message in (
        ("user/parquet {'split': 'validation'}", "ValueError: user/parquet has no split 'validation'; its splits are train, test"),
        ("user/folder {'split': 'test'}", "ValueError: user/folder has no split 'test'; its splits are train, validation"),
        ("user/list {}", "ValueError: the column 'image' of user/list holds texts, such as '0.png', not images: call the table metadata.csv"),
        ("user/parquet {'image_column': 'photo'}", "ValueError: user/parquet has no column 'photo'; its columns are label, image"),
        ("user/parquet {'revision': 'nowhere'}", "FileNotFoundError: the Hub dataset user/parquet has no revision 'nowhere'"),
        ("user/parquet {'config_name': 'other'}", "ValueError: user/parquet has no config_name (--dataset_config) 'other'; it has default"),
        ("user/several {}", "ValueError: user/several has several configurations; pass as config_name (--dataset_config) one of small, large"),
        ("user/nothing {}", "FileNotFoundError: 'user/nothing' is neither a file or folder here nor a dataset on the Hub"),
        ("user/gated {}", "PermissionError: the Hub dataset user/gated is gated; accept its terms on its page, then pass token"),
    ):  # fmt: skip
        assert results[key].startswith(message), results[key]
    assert "user/texts {'split': 'valid'}" not in results  # it is another word for its split "val"
    assert results["with token"].startswith("unit ")


@pytest.mark.parametrize(
    ("name", "train", "test", "names", "said"),
    [
        ("texts", [3, 1, 3, 2], [2, 0], {"label": ["ant", "cat", "cow", "dog"]}, "there is no split 'validation'; 'val' is taken"),
        ("lists", [[1, 1, 0, 0], [0, 0, 1, 0]], [[0, 0, 0, 1], [0, 0, 0, 0]], {"multi_label": [*"abcd"]}, "all rows of label in test"),
        ("boxes", [[0], [1]], [[2]], {"categories": [*"xyz"]}, "all rows of objects in train are read, to number the texts"),
        ("named", [0, 1], [1], {"label": ["dog", "cat"]}, ""),
        ("metadata", [1, 0], [2, 0], {"label": ["cat", "dog", "eel"]}, "numbered in the order cat, dog, eel"),
        ("tars", [n % 3 for n in (*range(0, ROWS, 3), *range(1, ROWS, 3), *range(2, ROWS, 3))], None, {}, ""),
    ],
)  # fmt: skip
def test_labelled_rows_of_the_hub(results, name, train, test, names, said):
    """Texts are numbered by the rows of both splits; names that the features state say it without reading."""
    got = results[f"samples of user/{name}"]
    assert got["rows"] == [train, train if test is None else test]
    assert dict(got["names"]) == names
    assert said in "\n".join(got["logged"])
    assert bool(said) == bool(got["logged"])


@pytest.mark.parametrize("setting", ["HF_ENDPOINT", "HF_HUB_OFFLINE"])
def test_a_name_that_cannot_be_looked_for_is_said_soon_and_in_one_sentence(setting):
    program = """
import sys, time
time.sleep = lambda pause: None
from hf_geossl.data import retries
pauses = []
retries.sleep = pauses.append
from hf_geossl import load_stream
try:
    load_stream("photos/holliday")
except ConnectionError as error:
    print(pauses, error)
"""
    value = {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HUB_OFFLINE": "1"}[setting]
    child = subprocess.run(
        [sys.executable, "-c", program],
        env={**{name: kept for name, kept in os.environ.items() if name != "HF_HUB_OFFLINE"}, setting: value},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    if setting == "HF_ENDPOINT":
        start, end = (
            "[1.0, 2.0, 4.0] 'photos/holliday' is no file or folder here, and the Hub could not be reached to look",
            ("; check the path or the network\n"),
        )
    else:
        start, end = (
            "[] 'photos/holliday' is no file or folder here, and offline mode is on (HF_HUB_OFFLINE), so the Hub was not asked",
            "; check the path, or turn offline mode off\n",
        )
    assert child.stdout.startswith(start), child.stdout + child.stderr
    assert child.stdout.endswith(end), child.stdout
