"""
Everything that is measured on one GPU, in at most nine minutes: `python -m benchmarks.gpu`.

Every row is printed when it is measured and stored in a JSON file at once, so that a run which is cut keeps what it has. Each
section runs in a process of its own, which is ended when its time is over. `--device cpu --tiny` shows on a CPU that
everything runs.
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
from pathlib import Path

import torch

from benchmarks.gpu.rows import Row, Setup, measure, show, table
from benchmarks.interleave import machine

# the seconds that each may take; what one leaves, the others have
SECTIONS = {"step": 130, "equality": 45, "runs": 190, "scenes": 50, "reliability": 75, "evaluation": 110}
TOTAL = 540


def run_section(name: str, args: argparse.Namespace, folder: Path, seconds: float) -> tuple[list[Row], str]:
    """Runs a section in a process of its own; its rows, and why it ended early, if it did."""
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
    rows: list[Row] = []
    last: deque[str] = deque(maxlen=4)
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith('{"section"'):
            rows.append(json.loads(line))
            print(show(rows[-1]), flush=True)
            store(args.output, [*args.rows, *rows])
        elif line.strip():
            last.append(line.strip())
    code = process.wait()
    timer.cancel()
    if ended.is_set():
        return rows, f"ended after {seconds:.0f} s"
    return rows, f"ended with {code}: {' / '.join(last)[-400:]}" if code else ""


def store(output: Path, rows: list[Row]) -> None:
    """Writes all rows, so that the file is whole at any time."""
    output.parent.mkdir(parents=True, exist_ok=True)
    draft = output.with_suffix(".draft")
    draft.write_text(json.dumps({"rows": rows}, indent=1) + "\n")
    draft.replace(output)


def main(arguments: list[str] | None = None) -> None:
    """Runs the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--tiny", action="store_true", help="Small sizes that show on a CPU that everything runs.")
    parser.add_argument("--sections", nargs="+", choices=list(SECTIONS), default=list(SECTIONS))
    parser.add_argument("--seconds", type=float, default=TOTAL, help="In all.")
    parser.add_argument("--output", type=Path, default=Path("gpu_results.json"), help="The JSON file.")
    parser.add_argument("--folder", type=Path, help="For images and runs; a temporary one by default.")
    parser.add_argument("--section", choices=list(SECTIONS), help=argparse.SUPPRESS)
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
    began, args.rows = time.time(), []
    with tempfile.TemporaryDirectory() as folder:
        for index, name in enumerate(args.sections):
            rest = sum(SECTIONS[other] for other in args.sections[index + 1 :])
            left = args.seconds - (time.time() - began)
            seconds = min(left - 5, max(SECTIONS[name], left - rest - 5))
            rows, failure = run_section(name, args, args.folder or Path(folder), seconds)
            if failure:
                rows.append({"section": name, "row": "all", "failed": failure})
                print(show(rows[-1]), flush=True)
            args.rows += rows
            store(args.output, args.rows)
    if args.tiny:
        print("\nThe sizes were tiny: the last column says that it ran, and nothing of how fast it is.")
    print(f"\n{table(args.rows)}\n\n{time.time() - began:.0f} s, {args.output}")


if __name__ == "__main__":
    main()
