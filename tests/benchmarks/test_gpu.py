"""The command for a GPU keeps what it measured whatever fails, reads its own log lines, and runs at tiny sizes on a CPU."""

import json
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from benchmarks.gpu import __main__ as command
from benchmarks.gpu import equality, files, runs
from benchmarks.gpu.rows import READERS, Row, Setup, measure, table


@pytest.fixture
def setup(tmp_path: Path) -> Setup:
    return Setup("cpu", True, tmp_path, time.time() + 60)


def test_what_fails_or_has_no_time_is_a_row_and_the_others_stay(setup: Setup, tmp_path: Path) -> None:
    def half(setup: Setup) -> Iterator[Row]:
        yield {"number": 1}
        raise ZeroDivisionError("of\nlines")

    rows = list(measure("section", {"first": half, "second": lambda setup: iter([{"number": 2}])}, setup))
    assert [{key: value for key, value in row.items() if key != "seconds"} for row in rows] == [
        {"section": "section", "row": "first", "number": 1},
        {"section": "section", "row": "first", "failed": "ZeroDivisionError: of lines"},
        {"section": "section", "row": "first"},
        {"section": "section", "row": "second", "number": 2},
        {"section": "section", "row": "second"},
    ]
    late = Setup("cpu", True, tmp_path, time.time() - 1)
    (row,) = measure("section", {"first": half}, late)
    assert row["failed"] == "not measured: the section's time is over"


def test_the_table_has_ratios_and_says_what_was_not_measured() -> None:
    rows: list[Row] = [
        {"section": "step", "row": "gtsa", "compiled_images_per_second": 1900.4, "compiled_share_of_rate": 0.412},
        {"section": "step", "row": "gtsa", "augmentation_share": 0.06},
        {"section": "step", "row": "loca", "augmentation_share": 0.112},
        {"section": "step", "row": "ibot", "compiled_ms": 50.0},
        {"section": "step", "row": "equicoherent", "compiled_ms": 54.0},
        {"section": "runs", "row": "dino, two views", "images_per_second": 1500.0},
        {"section": "runs", "row": "lightly-train, two views", "images_per_second": 500.0},
        {"section": "runs", "row": "dino, ten views", "images_per_second": 1200.0},
        {"section": "runs", "row": "lightly-train, ten views", "failed": "not installed"},
    ]
    lines = [line.removesuffix(" |").split(" | ") for line in table(rows).splitlines()[2:]]
    assert len(lines) == len(READERS)  # each finds its line of README
    assert {cells[2] for cells in lines} >= {">= 2,000", "<= 1.09", "<= 90 s"}
    assert [cells[3] for cells in lines] == [
        "1900 images/s; 41 % of the square bf16 rate",
        "not measured",
        "1.080",
        "6.0 %; 11.2 %",
        "1500 images/s, 3.00 x 500",
        "1200 images/s, no peer installed",
        "not measured",
        "not measured",
    ]


def test_a_section_that_hangs_is_ended_and_keeps_its_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    program = 'import time; print(\'{"section": "step", "row": "gtsa", "ms": 1}\', flush=True); time.sleep(60)'
    popen = command.subprocess.Popen
    monkeypatch.setattr(command.subprocess, "Popen", lambda line, **given: popen([line[0], "-c", program], **given))
    monkeypatch.setattr(command.threading, "Timer", lambda seconds, end: timer(1.0, end))
    output = tmp_path / "results" / "gpu.json"
    command.main(["--device", "cpu", "--tiny", "--sections", "step", "--output", str(output)])
    printed = capsys.readouterr().out
    rows = json.loads(output.read_text())["rows"]
    assert rows[0] == {"section": "step", "row": "gtsa", "ms": 1}
    assert rows[1]["failed"].startswith("ended after ")
    assert "gtsa                   ms 1\n" in printed
    assert "| GTSA step, 2 x 224" in printed


timer = command.threading.Timer


def test_a_run_from_files_is_read_from_its_log(setup: Setup) -> None:
    """LOCA's, by the command that a user types."""
    (row,) = runs.MEASUREMENTS["loca"](setup)
    assert row["images_per_second"] > 0
    assert row["percent_of_rate"] is row["peak_gb"] is None  # of a CPU
    first, last = row["first_and_last_loss"]
    assert 0 < last < 20
    assert first != last
    assert len(list((setup.folder / "images").glob("*.jpg"))) == 24


def test_numbers_of_log_lines_are_those_of_steps() -> None:
    text = "\n".join(
        [f"step {step}: loss {-step}.5, crop 0.1, {10 * step}.0 images/s, 41 % of the bf16 rate" for step in (1, 2, 3)]
        + ["step 3: trained for 0:01:01, 5.0 images/s, mean loss 2.000"]
    )
    assert runs.numbers_in(text, r"([\d.]+) images/s") == [10.0, 20.0, 30.0]
    assert runs.numbers_in(text, r"loss (-?[\d.]+)") == [-1.5, -2.5, -3.5]
    assert runs.steady([1.0, 2.0, 3.0, 5.0]) == 4.0
    assert runs.steady([]) is None


def test_golden_numbers_and_colours_hold_on_the_device(setup: Setup) -> None:
    tf32 = torch.backends.cudnn.allow_tf32
    try:
        (golden,) = equality.loca_golden(setup)
        assert golden["holds"]
        assert 0 < golden["gradient_norms_off_by"] < 1e-4
        rows = list(equality.colors(setup))
    finally:
        torch.backends.cudnn.allow_tf32 = tf32
    assert rows[:3] == [{method: "at most 0.0e+00, mean 0.0e+00"} for method in ("gtsa", "loca", "equicoherent")]


def test_files_are_written_once_and_without_photographs_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = files.make_jpegs(tmp_path / "images", 3, (64, 48))
    before = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    assert sorted(before) == ["000000.jpg", "000001.jpg", "000002.jpg"]
    files.make_jpegs(tmp_path / "images", 3)
    assert {path.name: path.stat().st_mtime_ns for path in folder.iterdir()} == before
    monkeypatch.setitem(__import__("sys").modules, "skimage", None)
    assert {picture.size for picture in files.sources()} == {(640, 480)}
