"""Arms side by side: processes that each take one job after the other."""

import os
import threading
from collections.abc import Iterable, Iterator
from multiprocessing import get_context, parent_process
from multiprocessing.connection import Connection, wait
from signal import SIG_IGN, SIGINT, signal
from typing import Any, Protocol

Job = tuple[str, int]  # arm and seed


class Work(Protocol):
    """What is done with jobs; it is pickled into the processes."""

    def prepare(self) -> None:
        """Prepares a process."""

    def run(self, job: Job) -> dict[str, Any] | str:
        """Does a job; returns its result, or in a sentence why it failed."""
        ...


def run_all(work: Work, jobs: Iterable[Job], parallel: int) -> Iterator[tuple[Job, dict[str, Any] | str]]:
    """
    Runs jobs, `parallel` at a time, as they are given; yields each with its result as it ends.

    With one at a time they run in this process. A process that is killed costs the job that it was at, whose sentence says so.
    """
    if parallel == 1:
        work.prepare()
        for job in jobs:
            yield job, work.run(job)
        return
    waiting = iter(jobs)
    working: dict[Connection, tuple[Any, Job]] = {}

    def give(connection: Connection, process: Any) -> None:
        job = next(waiting, None)
        if job is None:
            connection.close()  # which ends the process
            return
        working[connection] = process, job
        connection.send(job)

    try:
        for _ in range(parallel):
            give(*_start(work))
        while working:
            for connection in wait(list(working)):
                assert isinstance(connection, Connection)
                process, job = working.pop(connection)
                try:
                    result = connection.recv()
                except (EOFError, ConnectionResetError):
                    process.join()
                    result = f"its process ended with exit code {process.exitcode}"
                    connection, process = _start(work)
                give(connection, process)
                yield job, result
    finally:
        for process, _ in working.values():
            process.kill()
            process.join()


def _start(work: Work) -> tuple[Connection, Any]:
    context = get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_serve, args=(work, theirs))
    process.start()
    theirs.close()
    return ours, process


def _serve(work: Work, connection: Connection) -> None:
    signal(SIGINT, SIG_IGN)  # Ctrl-C reaches the first process, which ends this one
    threading.Thread(target=_end_with_parent, daemon=True).start()
    work.prepare()
    while True:
        try:
            connection.send(work.run(connection.recv()))
        except (EOFError, BrokenPipeError, KeyboardInterrupt):
            return


def _end_with_parent() -> None:
    """Ends this process where the first one was killed: the next start works in the same folder."""
    parent = parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os._exit(1)
