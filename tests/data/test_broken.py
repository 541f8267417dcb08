"""Broken images are skipped, counted, logged once each and bounded."""

import io
import itertools
import logging
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from PIL import Image

from hf_geossl.data.batches import StreamBatches
from hf_geossl.data.blocks import Position
from hf_geossl.data.broken import BrokenImages, BrokenStreamError, PassTally, ReportedNames
from hf_geossl.data.images import BrokenImageError
from hf_geossl.data.streams import ImageStream, load_stream
from tests.helpers.images import ROWS, encoded, first, iterable_rows, write_folder, write_tar


def broken_files() -> dict[str, bytes]:
    photo = encoded(1, side=64)
    jpeg = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(jpeg, "JPEG")
    huge = bytearray(photo)
    huge[16:24] = (25_000).to_bytes(4, "big") + (20_000).to_bytes(4, "big")  # 500 megapixels, says the header
    floats = io.BytesIO()
    Image.fromarray(np.full((4, 4), 2, dtype=np.float32)).save(floats, "TIFF")  # no fixed range
    postscript = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\nshowpage\n"
    return {
        "truncated.jpg": jpeg.getvalue()[: len(jpeg.getvalue()) // 2],
        "header_only.jpg": jpeg.getvalue()[:20],
        "text.jpg": b"this is no image",
        "empty.jpg": b"",
        "html.png": b"<html><body>404 not found</body></html>",
        "truncated.png": photo[:-200],
        "flipped.png": photo[:100] + bytes([photo[100] ^ 255]) + photo[101:],
        "huge.png": bytes(huge),
        "float.tif": floats.getvalue(),
        "script.png": postscript,
    }


def test_ten_kinds_of_broken_files_are_skipped_counted_and_logged(tmp_path, caplog):
    good = [sample["key"] for sample in load_stream(str(write_folder(tmp_path / "photos"))).one_epoch()]
    for name, content in broken_files().items():
        (tmp_path / "photos" / name).write_bytes(content)
    stream = load_stream(str(tmp_path / "photos"), max_broken_share=0.5)
    with caplog.at_level(logging.WARNING):
        keys = [sample["key"] for sample in itertools.islice(stream, ROWS)]
    assert sorted(keys) == sorted(good)
    assert stream.skipped_images == 10
    for name in broken_files():
        assert name in caplog.text
    assert str(tmp_path) not in "".join(record.getMessage() for record in caplog.records)


def test_broken_images_leave_the_seeds_and_the_resume_of_the_others_alone(tmp_path):
    write_folder(tmp_path / "photos")
    clean = {key: seed for key, seed, _ in first(load_stream(str(tmp_path / "photos")), ROWS)}
    (tmp_path / "photos/class_0/003.png").write_bytes(b"")
    (tmp_path / "photos/class_1/010.png").write_bytes(b"broken")
    whole = load_stream(str(tmp_path / "photos"))
    undisturbed = first(whole, 80)
    assert all(clean[key] == seed for key, seed, _ in undisturbed[: ROWS - 2])
    for count in (5, 20, 34, 35, 36):
        stream = load_stream(str(tmp_path / "photos"))
        begun = first(stream, count)
        resumed = load_stream(str(tmp_path / "photos"))
        resumed.load_state_dict(stream.state_dict())
        assert begun + first(resumed, 80 - count) == undisturbed
        assert resumed.skipped_images == whole.skipped_images >= 4


@pytest.mark.parametrize("rows", [3, 30])
def test_all_broken_data_stop_with_the_share_and_the_reasons(rows, tmp_path):
    for number in range(rows):
        (tmp_path / f"{number}.jpg").write_bytes(b"no image")
    with pytest.raises(BrokenStreamError, match=r"100%.*max_broken_share=100%.*jpg: not an image of a known format"):
        next(iter(load_stream(str(tmp_path), max_broken_share=1.0)))


def test_data_that_turn_empty_or_broken_after_a_resume_stop(tmp_path):
    write_folder(tmp_path / "photos", 6)
    stream = load_stream(str(tmp_path / "photos"), max_broken_share=1.0)
    first(stream, 20)
    resumed = load_stream(str(tmp_path / "photos"), max_broken_share=1.0)
    resumed.load_state_dict(stream.state_dict())
    for file in (tmp_path / "photos").rglob("*.png"):
        file.unlink()
    with pytest.raises(BrokenStreamError, match=r"a whole pass gave no image.*the file cannot be read"):
        next(iter(resumed))
    rows = datasets.IterableDataset.from_generator(iterable_rows, gen_kwargs={"numbers": []})
    with pytest.raises(BrokenStreamError, match="the dataset holds no rows"):
        next(iter(ImageStream.from_dataset(rows)))


def test_a_share_above_the_limit_stops_and_one_below_does_not(tmp_path):
    write_folder(tmp_path / "photos", 90)
    for number in range(10):
        (tmp_path / f"photos/{number}.jpg").write_bytes(b"")
    assert len(list(load_stream(str(tmp_path / "photos"), max_broken_share=0.1).one_epoch())) == 90
    with pytest.raises(BrokenStreamError, match=r"10 of the 100 rows .* are broken .10%, allowed max_broken_share=9%"):
        list(load_stream(str(tmp_path / "photos"), max_broken_share=0.09).one_epoch())


def test_without_skipping_the_first_broken_image_is_named(tmp_path):
    write_folder(tmp_path / "photos", 3)
    (tmp_path / "photos/bad.jpg").write_bytes(b"")
    with pytest.raises(BrokenImageError, match=r"bad\.jpg: the file is empty"):
        list(load_stream(str(tmp_path / "photos"), skip_broken=False).one_epoch())


@pytest.mark.parametrize("num_streams", [1, 2])
@pytest.mark.parametrize("seed", range(4))
def test_an_unreadable_unit_among_good_ones_never_counts_as_a_whole_pass(seed, num_streams, tmp_path):
    write_tar(tmp_path / "0.tar", 40)
    (tmp_path / "1.tar").write_bytes(b"this is no archive" * 100)
    stream = load_stream(str(tmp_path), seed=seed).shard(num_streams, num_streams - 1)
    assert len(first(stream, 400)) == 400
    assert 0 < stream.skipped_images < 40


def reopened(root: Path, num_streams: int, state: dict | None = None) -> ImageStream:
    stream = load_stream(str(root), max_broken_share=1.0, shuffle_block=2).shard(num_streams, num_streams - 1)
    if state is not None:
        stream.load_state_dict(state)
    return stream


@pytest.mark.parametrize("num_streams", [1, 2, 5])
@pytest.mark.parametrize("taken", [0, 3, 7])
def test_data_that_give_no_image_at_all_stop_from_any_position(taken, num_streams, tmp_path):
    write_folder(tmp_path / "photos", 7)
    running = reopened(tmp_path / "photos", num_streams)
    first(running, taken)
    for file in (tmp_path / "photos").rglob("*.png"):
        file.write_bytes(b"x" * file.stat().st_size)
    with pytest.raises(BrokenStreamError, match="a whole pass gave no image"):
        next(iter(reopened(tmp_path / "photos", num_streams, running.state_dict())))


def test_a_few_broken_samples_met_first_are_not_yet_a_share(tmp_path):
    write_folder(tmp_path / "photos", 30)
    (tmp_path / "photos/bad.png").write_bytes(b"x")
    for v in range(31):  # one of the streams meets the broken image first
        assert len(list(itertools.islice(load_stream(str(tmp_path / "photos")).shard(31, v), 3))) == 3


def skipped(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [message.split(":")[0] for message in caplog.messages if message.startswith("skipped ")]


def test_a_broken_file_is_logged_once_and_counted_in_every_pass(tmp_path, caplog):
    write_folder(tmp_path / "photos", 30)
    for name in ("one", "two"):
        (tmp_path / f"photos/{name}.jpg").write_bytes(b"no image")
    stream = load_stream(str(tmp_path / "photos"), seed=1)
    with caplog.at_level(logging.WARNING):
        first(stream, 5 * 30)
    assert sorted(skipped(caplog)) == ["skipped one.jpg", "skipped two.jpg"]
    assert 8 <= stream.skipped_images <= 10
    # parts of the stream, and iterating it again, know what was logged
    with caplog.at_level(logging.WARNING):
        for part in range(3):
            first(stream.shard(3, part), 30)
        list(stream.one_epoch(4))
    assert len(skipped(caplog)) == 2
    with caplog.at_level(logging.WARNING):  # another run says it again
        list(load_stream(str(tmp_path / "photos"), seed=1).one_epoch())
    assert len(skipped(caplog)) == 4


class Numbers:
    """Views that record nothing of an image but its seed."""

    def __call__(self, image, *, seed):
        return {"seed": torch.tensor(seed)}

    def collate(self, samples):
        return {"seed": torch.stack([sample["seed"] for sample in samples])}


@pytest.mark.parametrize("context", ["fork", "spawn"])
def test_workers_log_a_broken_file_once_in_all(context, tmp_path, capfd):
    write_folder(tmp_path / "photos", 40)
    (tmp_path / "photos/bad.jpg").write_bytes(b"no image")
    batches = StreamBatches(load_stream(str(tmp_path / "photos")), Numbers(), 4, num_streams=4, num_workers=2)
    handler = logging.FileHandler(tmp_path / "log")  # of forked workers; spawned ones have standard error alone
    logging.getLogger("hf_geossl").addHandler(handler)
    try:
        for batch in itertools.islice(batches.loader(2, multiprocessing_context=context), 40):
            batches.advance(batch)
    finally:
        logging.getLogger("hf_geossl").removeHandler(handler)
    assert batches.skipped_images >= 3  # four passes, in workers that each meet it
    assert (capfd.readouterr().err + (tmp_path / "log").read_text()).count("skipped bad.jpg") == 1


def test_names_are_remembered_in_memory_of_a_fixed_size():
    names = ReportedNames(slots=64)
    assert [names.add("a"), names.add("b"), names.add("a"), names.add("b"), names.add("c")] == [1, 2, 0, 0, 3]
    for number in range(1000):
        names.add(f"file {number}")
    assert len(names._hashes) == 64
    many = ReportedNames()
    assert [many.add(f"{number}.jpg") for number in range(40)] == list(range(1, 41))
    assert not any(many.add(f"{number}.jpg") for number in range(40))


def test_after_ten_lines_only_powers_of_two_are_logged(caplog):
    broken, position = BrokenImages("photos", skip=True, max_share=1.0), Position()
    with caplog.at_level(logging.WARNING):
        for number in range(70):
            position.take_row()
            broken.count(position, f"{number}.jpg", "the file is empty")
    assert [int(line.split()[1].split(".")[0]) + 1 for line in skipped(caplog)] == [*range(1, 11), 16, 32, 64]
    assert caplog.messages[0] == "skipped 0.jpg: the file is empty (1 of 1 row so far)"
    assert caplog.messages[10] == (
        "skipped 15.jpg: the file is empty (16 of 16 rows so far; the next ones are not all logged)"
    )


def test_the_share_is_bounded_from_twenty_broken_rows_on():
    broken, position = BrokenImages("photos", skip=True, max_share=0.5), Position()
    for number in range(19):
        position.take_row()
        broken.count(position, f"{number}.jpg", "empty")
    position.take_row()
    with pytest.raises(BrokenStreamError, match=r"20 of the 20 rows read from photos are broken \(100%, allowed max"):
        broken.count(position, "19.jpg", "empty")


def test_a_whole_pass_is_every_unit_read_from_its_start():
    def tally() -> PassTally:
        broken = BrokenImages("photos", skip=True, max_share=0.25)
        broken.count(Position(rows=1), "a.jpg", "empty")
        return PassTally(2, broken)

    units, at = tally(), Position(rows=8, broken=4)
    units.add(0, at, rows=4, broken=4, from_start=True, usable=False)
    units.add(1, at, rows=4, broken=0, from_start=False, usable=False)  # resumed in its middle: not a whole unit
    with pytest.raises(BrokenStreamError, match="4 of the 8 rows .* a whole pass gave no image"):
        units.add(1, at, rows=4, broken=0, from_start=True, usable=False)
    units = tally()
    units.add(0, at, rows=4, broken=2, from_start=True, usable=True)
    with pytest.raises(BrokenStreamError, match=r"3 of the 8 rows read from photos are broken \(38%, allowed .*=25%\)"):
        units.add(1, at, rows=4, broken=1, from_start=True, usable=True)
    units = tally()
    units.add(0, at, rows=4, broken=2, from_start=True, usable=True)
    units.add(1, at, rows=4, broken=0, from_start=True, usable=True)  # a quarter is allowed
