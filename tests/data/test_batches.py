"""Batches: the same for any number of workers, divided without overlap, and resumed at the exact image."""

import itertools
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from hf_geossl import GTSAViews
from hf_geossl.data.batches import StreamBatches
from hf_geossl.data.broken import BrokenStreamError
from hf_geossl.data.streams import load_stream
from tests.helpers.golden import ROOT
from tests.helpers.images import KINDS, first, make_stream

ROWS = 41

pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create")


class Crops:
    """Views that depend on the image and the seed, and refuse images whose first pixel is black."""

    def __call__(self, image: Image.Image, *, seed: int) -> dict[str, torch.Tensor]:
        pixels = torch.from_numpy(np.array(image))
        if not pixels[0, 0].any():
            raise ValueError("its first pixel is black")
        noise = torch.rand(3, generator=torch.Generator().manual_seed(seed))
        return {"pixels": pixels, "noise": noise}

    def collate(self, samples: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
        return {key: torch.stack([sample[key] for sample in samples]) for key in samples[0]}


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> str:
    root = tmp_path_factory.mktemp("photos")
    for number in range(ROWS):
        pixels = np.random.default_rng(number).integers(1, 256, (5, 4, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(root / f"{number:03d}.png")
    return str(root)


def make(photos: str, **options) -> StreamBatches:
    stream = load_stream(photos, shuffle_block=3, seed=5, max_broken_share=options.pop("max_broken_share", 0.1))
    return StreamBatches(stream, Crops(), **{"batch_size": 3, **options})


def take(batches: StreamBatches, count: int, **loader) -> list[tuple]:
    """Trains on `count` batches: (keys, pixels, noise) of each."""
    got = []
    for batch in itertools.islice(batches.loader(**loader), count):
        got.append((batches.advance(batch), batch["pixels"].tolist(), batch["noise"].tolist()))
        assert set(batch) == {"pixels", "noise"}
    return got


def literal(photos: str, streams: list[int], of: int, count: int) -> list[tuple]:
    """The batches of a rank without any loader: batch n comes from its stream n % number of streams."""
    whole, crops = load_stream(photos, shuffle_block=3, seed=5), Crops()
    samples = [iter(whole.shard(of, v)) for v in streams]
    expected = []
    for number in range(count):
        chosen = list(itertools.islice(samples[number % len(samples)], 3))
        made = crops.collate([crops(sample["image"], seed=sample["seed"]) for sample in chosen])
        expected.append(([sample["key"] for sample in chosen], made["pixels"].tolist(), made["noise"].tolist()))
    return expected


@pytest.mark.parametrize(
    ("num_streams", "num_workers", "prefetch"),
    [(1, 0, None), (1, 1, 3), (2, 0, None), (2, 2, 2), (3, 1, 1), (3, 3, 2), (5, 0, None), (6, 3, 1)],
)
def test_batches_are_the_literal_ones_and_five_resumes_continue_them(photos, num_streams, num_workers, prefetch):
    loader = {"num_workers": num_workers, "prefetch_factor": prefetch}
    expected = literal(photos, list(range(num_streams)), num_streams, 33)  # 99 images: past two epochs
    got, state = [], None
    for count in (1, 4, 9, 2, 17):
        batches = make(photos, num_streams=num_streams)
        if state is not None:
            batches.load_state_dict(json.loads(state))
        got += take(batches, count, **loader)
        state = json.dumps(batches.state_dict())
    assert got == expected


def test_the_number_of_workers_does_not_change_the_batches_and_may_change_on_resume(photos):
    expected = literal(photos, list(range(6)), 6, 20)
    for workers in (0, 1, 2, 3):
        assert take(make(photos, num_streams=6), 20, num_workers=workers) == expected
    got, state = [], None
    for workers, count in ((2, 5), (0, 3), (3, 7), (1, 5)):
        batches = make(photos, num_streams=6)
        if state is not None:
            batches.load_state_dict(state)
        got += take(batches, count, num_workers=workers)
        state = batches.state_dict()
    assert got == expected


@pytest.mark.parametrize("kind", KINDS)
def test_every_source_gives_workers_and_the_main_process_the_same(kind, tmp_path):
    first(make_stream(kind, tmp_path), 10)  # what has read here before, with its threads, does not hinder the workers
    alone, shared = (StreamBatches(make_stream(kind, tmp_path), Crops(), 3, num_streams=4) for _ in range(2))
    expected = take(alone, 26)
    assert take(shared, 11, num_workers=2) + take(shared, 15, num_workers=4) == expected
    assert alone.state_dict() == shared.state_dict()


def test_iterating_again_goes_on_after_the_batch_advanced_last(photos):
    expected = literal(photos, [0, 1], 2, 9)
    batches = make(photos, num_streams=2)
    assert take(batches, 4, num_workers=2) + take(batches, 5, num_workers=0) == expected


def test_more_streams_than_units_leave_nobody_without_images(photos, tmp_path):
    for number in range(3):
        (tmp_path / f"{number}.png").write_bytes((Path(photos) / f"{number:03d}.png").read_bytes())
    assert make(str(tmp_path)).stream.source.units == 3
    got = take(make(str(tmp_path), num_streams=5, batch_size=2), 15)
    assert got == take(make(str(tmp_path), num_streams=5, batch_size=2), 15, num_workers=5)
    assert {key for keys, _, _ in got for key in keys} == {"0.png", "1.png", "2.png"}


@pytest.mark.parametrize("num_streams", [2, 6])
def test_two_ranks_are_disjoint_and_complete_in_an_epoch(photos, num_streams):
    ranks = [make(photos, rank=rank, world_size=2, num_streams=num_streams, batch_size=1) for rank in range(2)]
    seen: list[list[str]] = [[], []]
    for rank, batches in enumerate(ranks):
        owned = list(range(rank, num_streams, 2))
        open_streams = set(owned)
        for batch in batches.loader():
            state = dict(batch["stream_state"])
            keys = batches.advance(batch)
            at = state["position"]
            epoch = (at["index"] + at["units_done"] * num_streams) // batches.stream.source.units
            if epoch == 0:
                seen[rank] += keys
            else:
                open_streams.discard(state["stream"])
            if not open_streams:
                break
    assert not set(seen[0]) & set(seen[1])
    assert sorted(seen[0] + seen[1]) == [f"{number:03d}.png" for number in range(ROWS)]
    assert min(map(len, seen)) > ROWS // 4


def test_two_ranks_become_one_and_back_with_the_same_images(photos):
    def ranks(count: int) -> list[StreamBatches]:
        return [make(photos, rank=rank, world_size=count, num_streams=4) for rank in range(count)]

    pair = ranks(2)
    undisturbed = [take(batches, 12) for batches in pair]
    pair = ranks(2)
    for batches in pair:
        take(batches, 5)
    (one,) = ranks(1)
    one.load_state_dict([batches.state_dict() for batches in pair])
    got = take(one, 6)
    assert got[0::2] == undisturbed[0][5:8]
    assert got[1::2] == undisturbed[1][5:8]
    back = ranks(2)
    for rank, batches in enumerate(back):
        batches.load_state_dict(one.state_dict())
        assert take(batches, 4) == undisturbed[rank][8:]


def test_a_checkpoint_that_does_not_fit_is_refused_with_what_differs(photos, tmp_path):
    pair = [make(photos, rank=rank, world_size=2, num_streams=4) for rank in range(2)]
    take(pair[0], 3)
    take(pair[1], 3)
    states = [batches.state_dict() for batches in pair]
    with pytest.raises(ValueError, match="num_streams was 4 and is 2"):
        make(photos, num_streams=2).load_state_dict(states)
    with pytest.raises(ValueError, match="batch_size was 3 and is 2"):
        make(photos, num_streams=4, batch_size=2).load_state_dict(states)
    with pytest.raises(ValueError, match=r"hold no \[1, 3\]: the checkpoint was written by 2 processes"):
        make(photos, num_streams=4).load_state_dict(states[0])
    with pytest.raises(ValueError, match="2 processes delivered 3 batches each, which 4 processes cannot share"):
        make(photos, num_streams=4, rank=1, world_size=4).load_state_dict(states)
    take(pair[1], 1)
    with pytest.raises(ValueError, match="different moments"):
        make(photos, num_streams=4).load_state_dict([states[0], pair[1].state_dict()])
    Image.new("RGB", (4, 5)).save(tmp_path / "another.png")
    with pytest.raises(ValueError, match="digest was"):
        make(str(tmp_path), num_streams=4).load_state_dict(states)
    with pytest.raises(ValueError, match="no state of StreamBatches"):
        make(photos).load_state_dict({"epoch": 3})


def test_streams_ranks_and_workers_that_do_not_divide_are_refused(photos):
    with pytest.raises(ValueError, match="num_streams must be a multiple of the 2 processes, got 3; the next one is 4"):
        make(photos, world_size=2, num_streams=3)
    with pytest.raises(ValueError, match="num_workers must divide the 3 streams"):
        make(photos, num_streams=3).loader(2)
    with pytest.raises(ValueError, match="rank must lie in"):
        make(photos, rank=2, world_size=2)
    assert make(photos, world_size=2, num_workers=3).num_streams == 6


def test_batches_are_advanced_in_order_and_once(photos):
    batches = make(photos)
    loaded = iter(batches.loader())
    one, two = next(loaded), next(loaded)
    with pytest.raises(ValueError, match="batch 1 came where batch 0 was expected"):
        batches.advance(two)
    batches.advance(one)
    with pytest.raises(ValueError, match="advanced already"):
        batches.advance(one)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_images_that_the_views_refuse_count_as_skipped(photos, tmp_path, num_workers):
    for file in Path(photos).iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    Image.new("RGB", (4, 5)).save(tmp_path / "black.png")
    (tmp_path / "text.png").write_bytes(b"text")
    batches = make(str(tmp_path), num_streams=2)
    keys = [key for keys, _, _ in take(batches, 40, num_workers=num_workers) for key in keys]
    assert not {"black.png", "text.png"} & set(keys)
    assert 120 / 41 <= batches.skipped_images / 2 + 1 <= 120 / 41 + 2
    resumed = make(str(tmp_path), num_streams=2)
    resumed.load_state_dict(batches.state_dict())
    assert resumed.skipped_images == batches.skipped_images > 0


@pytest.mark.parametrize("num_workers", [0, 1])
def test_an_error_in_a_worker_arrives_as_itself(tmp_path, num_workers):
    for number in range(5):
        (tmp_path / f"{number}.jpg").write_bytes(b"text")
    with pytest.raises(BrokenStreamError) as error:
        next(iter(make(str(tmp_path)).loader(num_workers)))
    assert str(error.value).startswith("5 of the 5 rows read from")
    assert "Traceback" not in str(error.value)


@pytest.mark.parametrize("options", [{}, {"batch_size": None}, {"num_workers": 1, "batch_size": 4}])
def test_a_plain_loader_of_a_stream_is_refused_with_what_to_use(photos, options):
    stream = load_stream(photos)
    with pytest.raises(
        TypeError, match=r"does not go into a DataLoader; make the loader by StreamBatches\(.*\)\.loader"
    ):
        next(iter(DataLoader(stream, **options)))
    assert len(list(itertools.islice(stream, 3))) == 3


def test_persistent_workers_refuse_a_second_iteration_instead_of_repeating_images(photos):
    loader = make(photos).loader(1, persistent_workers=True)
    next(iter(loader))
    with pytest.raises(ValueError, match="iterated twice"):
        next(iter(loader))


def test_the_global_generator_stays_as_it_is(photos):
    torch.manual_seed(11)
    expected = torch.rand(3)
    torch.manual_seed(11)
    take(make(photos, num_streams=2), 4, num_workers=2)
    assert torch.equal(torch.rand(3), expected)


def test_spawned_workers_deliver_the_same(photos):
    expected = literal(photos, [0], 1, 3)
    assert take(make(photos), 3, num_workers=1, multiprocessing_context="spawn") == expected


def test_interrupt_reaches_the_main_process_alone_and_ends_the_workers_quietly(photos):
    program = f"""
import itertools, signal, sys
sys.path.insert(0, {str(ROOT)!r})
from tests.data.test_batches import make
batches = iter(make({photos!r}, num_streams=2).loader(2))
next(batches)
interrupts = []
signal.signal(signal.SIGINT, lambda *_: interrupts.append(1))  # as a trainer that finishes its step does
print("ready", flush=True)
while not interrupts:
    next(batches)
for _ in range(50):
    next(batches)
signal.signal(signal.SIGINT, signal.default_int_handler)
print("went on", flush=True)
for batch in batches: pass
"""
    process = subprocess.Popen(
        [sys.executable, "-c", program],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stdout is not None
    for expected in ("ready\n", "went on\n"):
        assert process.stdout.readline() == expected
        os.killpg(process.pid, signal.SIGINT)  # what a terminal sends: to the main process and to its workers
    _, errors = process.communicate(timeout=30)
    # one process alone says so; other tracebacks may be of what multiprocessing was handing over at that moment
    assert process.returncode == -signal.SIGINT
    assert errors.count("KeyboardInterrupt\n") == 1
    assert "Process " not in errors
    time.sleep(0.2)
    with pytest.raises(ProcessLookupError):
        os.killpg(process.pid, 0)


def test_views_of_ours_get_pixels_and_others_images(tmp_path):
    for number in range(2):
        pixels = np.random.default_rng(number).integers(1, 256, (40, 50, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{number}.jpg", quality=90)
    seen = []

    class Seeing(GTSAViews):
        def views(self, image, seed=None):
            seen.append(type(image))
            return super().views(image, seed)

    class SeeingCrops(Crops):
        def __call__(self, image, *, seed):
            seen.append(type(image))
            return super().__call__(image, seed=seed)

    views = Seeing(32, 16, num_local=2)
    batch = next(iter(StreamBatches(load_stream(str(tmp_path)), views, 2).loader()))
    samples = [next(iter(load_stream(str(tmp_path)).one_epoch()))]
    expected = GTSAViews(32, 16, num_local=2)(samples[0]["image"], seed=samples[0]["seed"])
    assert seen == [torch.Tensor] * 2
    assert torch.equal(batch["local_crops"][0], expected["local_crops"])
    next(iter(StreamBatches(load_stream(str(tmp_path)), SeeingCrops(), 2).loader()))
    assert seen[2:] == [Image.Image] * 2
