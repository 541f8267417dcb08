"""A thousand damaged files of every format: each is decoded or broken, nothing else; in bounded time and memory, and counted."""

import itertools
import time
import warnings
from pathlib import Path

import numpy as np
import pytest

from hf_geossl.data.images import BrokenImageError, decode_image, decode_pixels
from hf_geossl.data.streams import load_stream
from hf_geossl.modeling.image_format import ImageFormat
from tests.helpers.image_files import good_files

FILES = 1000
ONE = ImageFormat(
    channels=(1,), names=("one",), dtype="uint16", value_range=((0, 4095),), range_source="given", mean=(0,), std=(1,)
)
ENDINGS = {"jpeg": "jpg", "mpo": "jpg", "png": "png", "apng": "png", "tiff": "tif", "dicom": "dcm", "npy": "npy", "npz": "npz",
           "webp": "webp", "bmp": "bmp", "gif": "gif", "avif": "avif", "ppm": "ppm", "pgm": "pgm", "pam": "pam", "pfm": "pfm"}  # fmt: skip
NUMBERS = (0, 1, 128, 255, 2**15, 2**16 - 1, 60_000, 2**24, 2**31 - 1, 2**32 - 1)


def damaged(content: bytes, draw: np.random.Generator) -> bytes:
    """Cuts a file, changes bytes, loses or inserts some, or writes a number that sizes and offsets must not have."""
    changed, kind = bytearray(content), draw.integers(5)
    if kind == 0:
        return content[: draw.integers(1, len(content))]
    at = int(draw.integers(min(len(content), draw.choice([64, 512, len(content)]))))  # mostly in the header
    if kind == 1:
        changed[at] = draw.integers(256)
    elif kind == 2:
        del changed[at : at + int(draw.integers(1, 64))]
    elif kind == 3:
        changed[at:at] = draw.bytes(int(draw.integers(1, 64)))
    else:
        size = int(draw.choice([1, 2, 4, 8]))
        number = int(draw.choice(NUMBERS)) % 256**size
        changed[at : at + size] = number.to_bytes(size, "big" if draw.integers(2) else "little")
    return bytes(changed)


def peak_megabytes() -> float:
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 1024


@pytest.mark.filterwarnings("ignore")
def test_damaged_files_cost_themselves_and_nothing_else(tmp_path: Path) -> None:
    draw, good = np.random.default_rng(0), good_files()
    clear = Path("/proc/self/clear_refs")
    if clear.exists():
        clear.write_text("5")  # forgets the peak so far
        before = peak_megabytes()
    sound, slowest = [], 0.0
    for number, (kind, content) in enumerate(itertools.islice(itertools.cycle(good.items()), FILES)):
        content, name = damaged(content, draw), f"{number:04}.{ENDINGS.get(kind.split(' ')[0], 'jp2')}"
        (tmp_path / name).write_bytes(content)
        outcomes = []
        for decode in (decode_image, decode_pixels, lambda source: decode_pixels(source, image_format=ONE)):
            start = time.perf_counter()
            try:
                decode(content)
                outcomes.append("")
            except BrokenImageError as error:
                outcomes.append(error.reason)
            slowest = max(slowest, time.perf_counter() - start)
        assert outcomes[0] == outcomes[1], name
        if not outcomes[0]:
            sound.append(name)
    assert 0.15 * FILES < len(sound) < 0.6 * FILES
    assert slowest < 5  # seconds, on a machine that does other work meanwhile
    if clear.exists():
        assert peak_megabytes() - before < 500
    stream = load_stream(tmp_path, max_broken_share=1.0)
    assert sorted(sample["key"] for sample in stream.one_epoch()) == sound
    for _ in itertools.islice(stream, len(sound)):  # a pass
        pass
    state = stream.state_dict()
    assert state["rows"] - state["broken"] == len(sound)
    assert FILES - 50 < state["rows"] <= FILES
    assert stream.skipped_images == state["broken"]


def test_the_sound_files_are_sound() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for kind, content in good_files().items():
            assert decode_pixels(content, image_format=ONE).shape == (40, 48, 1), kind
