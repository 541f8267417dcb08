"""Long runs over bad data, a bad network and many steps: nothing is lost, counted wrong, or kept in memory."""

import io
import json
import os
import struct
import subprocess
import sys
import zlib
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from hf_geossl import load_stream
from hf_geossl.data.broken import BrokenImages
from tests.helpers import forked
from tests.helpers.golden import ROOT
from tests.helpers.gtsa_run import make_trainer
from tests.helpers.hub_server import HubServer
from tests.helpers.photographs import pieces

pytestmark = pytest.mark.slow

# ------------------------------------------------------------------------------------------------------ broken images


def _picture(number: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(number).integers(0, 256, (40, 48, 3), dtype=np.uint8))


def _file(image: Image.Image, kind: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def _damaged_pixels(number: int) -> bytes:
    """A PNG with one byte of its pixels changed, which its checksum tells."""
    content = bytearray(_file(_picture(number), "PNG"))
    content[content.index(b"IDAT") + 40] ^= 0xFF
    return bytes(content)


def _huge_header(number: int) -> bytes:
    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    header = struct.pack(">IIBBBBB", 200_000, 200_000, 8, 2, 0, 0, 0)
    body = chunk(b"IDAT", zlib.compress(bytes(100)))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + body + chunk(b"IEND", b"")


BROKEN: dict[str, Callable[[int], dict[str, Any]]] = {
    "truncated JPEG": lambda n: {"bytes": (whole := _file(_picture(n), "JPEG"))[: len(whole) // 2], "path": f"{n}.jpg"},
    "no bytes": lambda n: {"bytes": b"", "path": f"{n}.jpg"},
    "text": lambda n: {"bytes": b"<html>404 Not Found</html>" * 40, "path": f"{n}.jpg"},
    "another file under a picture's name": lambda n: {"bytes": b"%PDF-1.7\n" + bytes(900), "path": f"{n}.png"},
    "huge header": lambda n: {"bytes": _huge_header(n), "path": f"{n}.png"},
    "damaged PNG": lambda n: {"bytes": _damaged_pixels(n), "path": f"{n}.png"},
    "floating point TIFF of no known range": lambda n: {
        "bytes": _file(Image.fromarray(9 * np.random.default_rng(n).random((9, 9), dtype=np.float32)), "TIFF"),
        "path": f"{n}.tif",
    },
    "nothing": lambda n: {"bytes": None, "path": None},
    "a path that does not exist": lambda n: {"bytes": None, "path": f"/nowhere/{n}.jpg"},
    "a header without an image": lambda n: {"bytes": _file(_picture(n), "JPEG")[:20] + bytes(500), "path": f"{n}.jpg"},
}

ODD: dict[str, Callable[[int], bytes]] = {
    "animated GIF": lambda n: _file(_picture(n), "GIF", save_all=True, append_images=[_picture(n + 1)]),
    "CMYK JPEG": lambda n: _file(_picture(n).convert("CMYK"), "JPEG"),
    "16 bit grey PNG": lambda n: _file(
        Image.fromarray(np.random.default_rng(n).integers(0, 65536, (40, 48), dtype=np.uint16)), "PNG"
    ),
    "palette with transparency": lambda n: _file(_picture(n).convert("P"), "PNG", transparency=3),
    "one bit": lambda n: _file(_picture(n).convert("1"), "PNG"),
    "progressive grey JPEG": lambda n: _file(_picture(n).convert("L"), "JPEG", progressive=True),
    "WebP under another name": lambda n: _file(_picture(n), "WEBP"),
}


@pytest.fixture(scope="module")
def soiled(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, dict[str, str]]:
    """400 rows in two parquet files, 5 % of them broken, two of each of ten kinds; the keys of these, and their kind."""
    folder = tmp_path_factory.mktemp("soiled")
    rows: list[dict[str, Any]] = [{"bytes": content, "path": "x.jpg"} for content in pieces(380)]
    for place, (_, make) in enumerate(ODD.items()):
        rows[50 * place] = {"bytes": make(place), "path": "x.txt"}
    draw = np.random.default_rng(5)
    planted: list[tuple[str, dict[str, Any]]] = [
        (kind, make(number)) for kind, make in BROKEN.items() for number in range(2)
    ]
    everything = [("", row) for row in rows] + planted
    order = draw.permutation(len(everything))
    kinds = {}
    for file in range(2):
        part = [everything[index] for index in order[file::2]]
        pq.write_table(pa.table({"image": [row for _, row in part]}), folder / f"{file}.parquet", row_group_size=25)
        kinds |= {f"{file}.parquet:{number}": kind for number, (kind, _) in enumerate(part) if kind}
    return str(folder), kinds


@pytest.mark.parametrize("workers", [0, 2])
def test_five_percent_of_ten_kinds_of_broken_images_are_skipped_and_counted(
    workers: int, soiled: tuple[str, dict[str, str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, kinds = soiled
    assert len(kinds) == 20
    assert len(set(kinds.values())) == 10
    skipped: list[str] = []
    count = BrokenImages.count

    def count_and_note(self: BrokenImages, position: Any, key: str, reason: str) -> None:
        skipped.append(key)
        count(self, position, key, reason)

    used: list[str] = []
    trainer = make_trainer(
        tmp_path, load_stream(folder, shuffle_block=25), max_steps=48, per_device_train_batch_size=8, num_streams=2,
        dataloader_num_workers=workers, logging_steps=1, probe_every_steps=0,
    )  # fmt: skip
    guard = trainer.parts.guard
    begin = guard.begin_step

    def note() -> None:
        used.extend(guard.keys)
        begin()

    guard.begin_step = note
    monkeypatch.setattr(BrokenImages, "count", count_and_note)
    trainer.train()
    used.extend(guard.keys)
    assert len(used) == 384  # a pass has 380
    assert not set(used) & set(kinds)
    positions = trainer.feed.batches.state_dict()["streams"]
    rows = sum(position["rows"] for position in positions)
    assert trainer.feed.batches.skipped_images == rows - 384
    assert trainer.state.log_history[-2]["skipped_images"] == rows - 384
    if not workers:  # where it can be seen: every planted one, once in each pass
        times = Counter(skipped)
        assert set(times) <= set(kinds)
        assert set(times.values()) <= {1, 2}
        passes = {position["units_done"] * 2 // trainer.train_dataset.source.units for position in positions}
        assert passes <= {0, 1}
    whole = load_stream(folder, shuffle_block=25)
    skipped.clear()
    keys = [sample["key"] for sample in whole.one_epoch()]
    assert sorted(skipped) == sorted(kinds)
    assert len(keys) == len(set(keys)) == 380


# ------------------------------------------------------------------------------------------------------ a bad network

CHILD = """
import hashlib, json, sys, time, urllib.request

time.sleep = lambda pause: None  # the client itself waits between its attempts
import torch
from tests.helpers.gtsa_run import make_trainer
from hf_geossl import load_stream
from hf_geossl.data import retries

torch.set_num_threads(1)
retries.sleep = lambda pause: None
server, folder, results = sys.argv[1], sys.argv[2], {}


def ask(path, body=None, method=None):
    request = urllib.request.Request(server + path, None if body is None else json.dumps(body).encode(), method=method)
    return json.loads(urllib.request.urlopen(request).read())


for name in ("user/parquet", "user/tars"):
    for faulty in (False, True):
        options = {"image_column": "jpg"} if name == "user/tars" else {}
        stream = load_stream(name, shuffle_block=8, **options)
        if faulty:
            for effects in json.loads(sys.argv[3]):
                ask("/faults", {"match": "^GET .*/resolve/", **effects})
        place = f"{folder}/{name.split('/')[1]}_{faulty}"
        trainer = make_trainer(place, stream, max_steps=16, num_streams=2, probe_every_steps=0)
        guard = trainer.parts.guard
        keys, begin = [], guard.begin_step

        def note():
            keys.extend(guard.keys)
            begin()

        guard.begin_step = note
        trainer.train()
        keys.extend(guard.keys)
        digest = hashlib.sha256()
        for value in trainer.model.state_dict().values():
            digest.update(value.numpy().tobytes())
        left = [fault for fault in ask("/faults") if fault["times"]] if faulty else []
        results[f"{name} {faulty}"] = {"keys": keys, "weights": digest.hexdigest(), "left": left}
        ask("/faults", method="DELETE")
print("RESULTS" + json.dumps(results))
"""

FAULTS: list[dict[str, Any]] = [
    {"status": 500, "times": 3},
    {"status": 429, "retry_after": 1, "times": 2},
    {"cut_answer": 300, "skip": 1},
    {"cut_answer": -1, "skip": 1},
    {"stall": 4.0, "skip": 1},  # longer than the client waits
    {"status": 503, "times": 8},  # more than the client's own attempts
    {"cut_answer": 1000, "skip": 2, "times": 2},
    {"drip": 0.05, "skip": 1},
]


def _tar(contents: list[bytes]) -> bytes:
    import tarfile

    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        for number, content in enumerate(contents):
            member = tarfile.TarInfo(f"{number:03d}.jpg")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return file.getvalue()


def test_a_run_on_a_failing_hub_sees_the_same_samples(tmp_path: Path) -> None:
    contents = pieces(40)

    def parquet(part: list[bytes]) -> bytes:
        file = io.BytesIO()
        values = [{"bytes": content, "path": None} for content in part]
        pq.write_table(pa.table({"image": values}), file, row_group_size=8)
        return file.getvalue()

    with HubServer(tmp_path / "hub") as hub:
        hub.add("user/parquet", {f"data/train-0000{n}-of-00002.parquet": parquet(contents[n::2]) for n in range(2)})
        hub.add("user/tars", {f"train/{n}.tar": _tar(contents[n::4]) for n in range(4)})
        environment = {
            **os.environ, "HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "home"), "OMP_NUM_THREADS": "1",
            "HF_HUB_DOWNLOAD_TIMEOUT": "2", "PYTHONPATH": f"{ROOT}:{os.environ.get('PYTHONPATH', '')}",
        }  # fmt: skip
        for name in ("HF_TOKEN", "HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "HF_DATASETS_CACHE", "HF_HUB_CACHE"):
            environment.pop(name, None)
        child = subprocess.run(
            [sys.executable, "-c", CHILD, hub.url, str(tmp_path), json.dumps(FAULTS)],
            env=environment, capture_output=True, text=True, timeout=240, check=False,
        )  # fmt: skip
        assert not hub.errors
    assert "RESULTS" in child.stdout, child.stderr[-3000:]
    results = json.loads(child.stdout.split("RESULTS")[1])
    for name in ("user/parquet", "user/tars"):
        quiet, faulty = results[f"{name} False"], results[f"{name} True"]
        assert faulty["left"] == []  # all of them happened
        assert len(quiet["keys"]) == 64
        assert faulty["keys"] == quiet["keys"]
        assert faulty["weights"] == quiet["weights"]
        assert len(set(quiet["keys"])) == 40


# -------------------------------------------------------------------------------------------------------- many steps

GROWTH = """
import ctypes, gc, json, sys
from tests.helpers.gtsa_run import make_trainer
from transformers import TrainerCallback

sizes = {}


def size():
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmRSS"))


class Measure(TrainerCallback):
    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step in (200, 450, 700):
            sizes[state.global_step] = size()


trainer = make_trainer(
    sys.argv[1], sys.argv[2], [Measure()], max_steps=700, per_device_train_batch_size=2, logging_steps=20,
    probe_every_steps=100, save_strategy="steps", save_steps=300, num_streams=2,
)
trainer.train()
print("SIZES" + json.dumps(sizes))
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is read from Linux' /proc")
def test_memory_does_not_grow_over_500_steps(tmp_path: Path) -> None:
    for index, content in enumerate(pieces(60, side=48)):
        (tmp_path / f"{index:02d}.jpg").write_bytes(content)
    output = forked.run(GROWTH, str(tmp_path / "run"), str(tmp_path), output=tmp_path / "output.txt")
    sizes = json.loads(output.split("SIZES")[1].splitlines()[0])
    print(sizes)
    assert sizes["700"] < 1.005 * sizes["200"]  # 10 kB a step; 1.0007 over twice as many
    assert sizes["450"] < 1.005 * sizes["200"]
