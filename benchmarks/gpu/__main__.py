"""
Everything that is measured on one GPU, in at most nine minutes: `python -m benchmarks.gpu`.

Every row is printed when it is measured and stored in a JSON file at once, so that a run which is cut keeps what it has. Each
section runs in a process of its own, which is ended when its time is over; the two that time nothing run side by side.
`--device cpu --tiny` shows on a CPU that everything runs.
"""

import argparse
import importlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch

from benchmarks.gpu.rows import Row, Setup, measure, show, table
from benchmarks.interleave import machine

# what runs side by side, and the seconds that it may take; what one leaves, the others have
GROUPS = (
    (("step",), 130),
    (("runs",), 190),
    (("scenes",), 45),
    (("evaluation",), 100),
    (("equality", "reliability"), 75),
)
SECTIONS = [section for sections, _ in GROUPS for section in sections]
TOTAL = 540


class Rows:
    """All rows so far, printed and written as they come, from several threads."""

    def __init__(self, output: Path) -> None:
        self.output, self.rows = output, list[Row]()
        self._lock = threading.Lock()
        output.parent.mkdir(parents=True, exist_ok=True)

    def add(self, row: Row) -> None:
        """Adds a row; the file is whole at any time."""
        with self._lock:
            self.rows.append(row)
            print(show(row), flush=True)
            draft = self.output.with_suffix(".draft")
            draft.write_text(json.dumps({"rows": self.rows}, indent=1) + "\n")
            draft.replace(self.output)


def run_section(name: str, args: argparse.Namespace, folder: Path, seconds: float, rows: Rows) -> None:
    """Runs a section in a process of its own; adds its rows, and one more that says why it ended early, if it did."""
    command = [sys.executable, "-m", "benchmarks.gpu", "--section", name, "--device", args.device]
    command += ["--folder", str(folder), "--deadline", str(time.time() + seconds), *(["--tiny"] if args.tiny else [])]
    environment = os.environ | {"CUBLAS_WORKSPACE_CONFIG": ":4096:8"}  # a resumed run has the kernels of the first one
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment, start_new_session=True
    )
    ended = threading.Event()

    def end() -> None:
        ended.set()
        os.killpg(process.pid, signal.SIGKILL)  # with its data loader's processes

    timer = threading.Timer(seconds + 5, end)
    timer.start()
    last: deque[str] = deque(maxlen=4)
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith('{"section"'):
            rows.add(json.loads(line))
        elif line.strip():
            last.append(line.strip())
            if "not compiled" in line:  # a compiler that failed changes what the numbers are of
                rows.add({"section": name, "row": "compiler", "failed": line.strip()})
    code = process.wait()
    timer.cancel()
    reason = f"ended after {seconds:.0f} s" if ended.is_set() else f"ended with {code}: {' / '.join(last)[-400:]}"
    if code:
        rows.add({"section": name, "row": "all", "failed": reason})


def main(arguments: list[str] | None = None) -> None:
    """Runs the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--tiny", action="store_true", help="Small sizes that show on a CPU that everything runs.")
    parser.add_argument("--sections", nargs="+", choices=SECTIONS, default=SECTIONS)
    parser.add_argument("--seconds", type=float, default=TOTAL, help="In all.")
    parser.add_argument("--output", type=Path, default=Path("gpu_results.json"), help="The JSON file.")
    parser.add_argument("--folder", type=Path, help="For images and runs; a temporary one by default.")
    parser.add_argument("--section", choices=SECTIONS, help=argparse.SUPPRESS)
    parser.add_argument("--deadline", type=float, help=argparse.SUPPRESS)
    args = parser.parse_args(arguments)
    if args.section:
        setup = Setup(args.device, args.tiny, args.folder, args.deadline)
        measurements = importlib.import_module(f"benchmarks.gpu.{args.section}").MEASUREMENTS
        for row in measure(args.section, measurements, setup):
            print(json.dumps(row), flush=True)
        return
    if args.device.startswith("cuda") and not torch.cuda.is_available():
        sys.exit("benchmarks.gpu: there is no GPU here; --device cpu --tiny shows that everything runs")
    print(machine(args.device), flush=True)
    began, rows = time.time(), Rows(args.output)
    groups = [([name for name in names if name in args.sections], seconds) for names, seconds in GROUPS]
    groups = [(names, seconds) for names, seconds in groups if names]
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor() as pool:
        for index, (names, seconds) in enumerate(groups):
            rest = sum(others for _, others in groups[index + 1 :])
            left = args.seconds - (time.time() - began) - 5
            given = (args, args.folder or Path(folder), min(left, max(seconds, left - rest)), rows)
            for done in [pool.submit(run_section, name, *given) for name in names]:
                done.result()
    if args.tiny:
        print("\nThe sizes were tiny: the last column says that it ran, and nothing of how fast it is.")
    print(f"\n{table(rows.rows)}\n\n{time.time() - began:.0f} s, {args.output}")


if __name__ == "__main__":
    main()
