"""
Programs in processes that are forked from one that has imported all: a start costs a fork instead of seconds of imports.

For programs without workers of their own (in forks of forks of a fork server the queues of a loader were seen to wake up
after 5 seconds only), and whose environment variables are not read while a library is imported, as HF_HOME is.
"""

import contextlib
import gc
import io
import multiprocessing
import multiprocessing.connection
import os
import socket
import sys
import time
from multiprocessing.process import BaseProcess
from pathlib import Path

import torch

FORKSERVER = multiprocessing.get_context("forkserver")
FORKSERVER.set_forkserver_preload(["tests.helpers.chaos_run"])  # which imports the trainers


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _run(program: str, words: tuple[str, ...], output: Path, environment: dict[str, str]) -> None:
    log = os.open(output, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.dup2(log, 1)
    os.dup2(log, 2)
    sys.stdout = io.TextIOWrapper(
        io.BufferedWriter(io.FileIO(1, "w", closefd=False))
    )  # as Python opens what is no terminal
    sys.argv = ["-c", *words]
    gc.freeze()  # what has been imported is no garbage, of which each training run collects
    os.environ.update(environment)
    torch.set_num_threads(1)
    try:
        exec(compile(program, "<program>", "exec"), {"__name__": "__main__"})
    finally:
        sys.stdout.flush()


def start(program: str, *words: str, output: Path, **environment: str) -> BaseProcess:
    """Starts Python code with `sys.argv[1:]` = `words`; what it prints is appended to a file, or goes to a named pipe."""
    process = FORKSERVER.Process(target=_run, args=(program, words, output, environment))
    process.start()
    return process


def run(program: str, *words: str, output: Path, world_size: int = 1, timeout: float = 240) -> str:
    """Runs Python code, in several processes with what torch.distributed reads, to its good end; returns what it printed."""
    places = [{"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(world_size)] if world_size > 1 else [{}]
    if world_size > 1:
        shared = {"WORLD_SIZE": str(world_size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
        places = [place | shared for place in places]
    processes = [start(program, *words, output=output, **place) for place in places]
    deadline = time.monotonic() + timeout
    try:
        while any(process.exitcode is None for process in processes) and not any(p.exitcode for p in processes):
            if time.monotonic() > deadline:
                break
            multiprocessing.connection.wait([p.sentinel for p in processes if p.exitcode is None], timeout=1)
        codes = [process.exitcode for process in processes]
    finally:
        for process in processes:
            with contextlib.suppress(Exception):
                process.kill()
            process.join()
    printed = output.read_bytes().decode()  # a carriage return stays one
    assert codes == [0] * world_size, f"exit codes {codes}: {printed[-3000:]}"
    return printed
