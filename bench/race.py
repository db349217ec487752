"""The parent's side: workers, and rounds that go from one to the next.

Only one worker runs at any time: the others are stopped, so that thread pools that spin (OpenBLAS
does for a tenth of a second) spin at no one's cost.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import select
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from bench import machine
from bench.cases import Case

PATIENCE = 900  # seconds for one answer: a large case in the reference takes minutes
SILENT = "no answer within"  # so many seconds: how a worker died


class DiedError(Exception):
    """A worker ended, or did not answer in time."""


class Worker:
    """A peer's process, stopped except while it answers."""

    def __init__(self, peer: str, threads: int, command: list[str] | None = None,
                 folder: str | None = None) -> None:
        self.peer, self.threads = peer, threads
        self.log = tempfile.TemporaryFile("w+")  # noqa: SIM115  # lives as long as the process
        cpus = machine.cores(threads)
        # another checkout, built in place, measures itself with its own bench
        if folder is None:
            folder = os.environ.get("FASTRNN_BEFORE", "") if peer == "before" else str(machine.ROOT)
        name = "fastrnn" if peer == "before" else peer
        self.process = subprocess.Popen(
            command or [sys.executable, "-m", "bench.worker", name, str(threads)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.log, text=True,
            env=machine.environment(threads), cwd=folder or None,
            # before exec: libraries count the CPUs they may use while they are imported
            preexec_fn=(lambda: os.sched_setaffinity(0, cpus)) if cpus else None,
            start_new_session=True,  # so that a compiler that it runs ends with it
        )
        self.hello = self._answer()
        self._signal("SIGSTOP")

    def _signal(self, name: str) -> None:
        if hasattr(signal, name) and self.process.poll() is None:
            self.process.send_signal(getattr(signal, name))

    def _answer(self, patience: float = PATIENCE) -> dict[str, Any]:
        assert self.process.stdout is not None
        ready, _, _ = select.select([self.process.stdout], [], [], patience)
        line = self.process.stdout.readline() if ready else ""
        if not line:
            why = f"{SILENT} {patience:g} s"
            if ready:
                why = self.last_words() if self.process.wait() else "ended"
            self.close()
            raise DiedError(why)
        return json.loads(line)

    def ask(self, do: str, *, patience: float = PATIENCE, **arguments: Any) -> dict[str, Any]:
        """Let the worker run until it has answered; end it after so many seconds."""
        assert self.process.stdin is not None
        if self.process.poll() is not None:
            raise DiedError(self.last_words())
        self._signal("SIGCONT")
        try:
            self.process.stdin.write(json.dumps({"do": do, **arguments}) + "\n")
            self.process.stdin.flush()
        except OSError as error:
            raise DiedError(self.last_words()) from error
        try:
            return self._answer(patience)
        finally:
            self._signal("SIGSTOP")

    def last_words(self) -> str:
        """Return how the process ended, or the last line it printed."""
        code = self.process.poll()
        if self.log.closed:
            return f"exit {code}"
        self.log.seek(0)
        lines = self.log.read().strip().splitlines()
        return f"exit {code}: {lines[-1][:160] if lines else 'nothing printed'}"

    def close(self) -> None:
        """End the process, and those it has started."""
        if hasattr(os, "killpg"):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)  # works on a stopped process too
        self.process.kill()
        self.process.wait()
        for stream in (self.process.stdin, self.process.stdout, self.log):
            with contextlib.suppress(OSError):
                stream.close()  # type: ignore[union-attr]


class Workers:
    """Worker processes by key, made on first use, and the references of cases."""

    def __init__(self) -> None:
        self._workers: dict[Any, Worker] = {}
        self._folder = tempfile.TemporaryDirectory(prefix="bench-")
        self._expected: dict[str, str] = {}
        self.missing: dict[str, str] = {}
        self.versions: dict[str, str] = {}

    def __enter__(self) -> Workers:
        return self

    def __exit__(self, *error: object) -> None:
        for worker in self._workers.values():
            worker.close()
        self._folder.cleanup()

    def get(self, peer: str, threads: int, key: Any = "") -> Worker | None:
        """Return a worker, or None if the peer is not installed; `key` tells equals apart."""
        if peer in self.missing:
            return None
        name = (peer, threads, key)
        worker = self._workers.get(name)
        if worker is None or worker.process.poll() is not None:
            try:
                worker = Worker(peer, threads)
            except DiedError as why:
                self.missing[peer] = str(why)
                return None
            if "missing" in worker.hello:
                self.missing[peer] = worker.hello["missing"]
                worker.close()
                return None
            self.versions[peer] = worker.hello["version"]
            self._workers[name] = worker
        return worker

    def expected(self, case: Case) -> str:
        """Return the file with the float64 reference of a case."""
        same = dataclasses.replace(case, need=None, need_torch=None, name="", weights="float32")
        known = json.dumps(same.asdict())
        if known not in self._expected:
            for path in self._expected.values():  # only the latest: some are gigabytes
                Path(path).unlink(missing_ok=True)
            path = str(Path(self._folder.name) / f"{len(self._expected)}.npz")
            worker = self.get("reference", 1, "expect")
            if worker is None:
                raise SystemExit(f"bench: no reference: {self.missing['reference']}")
            answer = worker.ask("expect", case=case.asdict(), path=path)
            if "failed" in answer:
                raise DiedError(answer["failed"])
            self._expected = {known: path}
        return self._expected[known]


@dataclasses.dataclass
class Entry:
    """One who takes part in a race."""

    label: str
    peer: str
    threads: int
    case: Case
    key: Any = ""  # entries of one peer and thread count need different keys
    patience: float = PATIENCE  # seconds to load the case: a peer that compiles does it then
    status: str = ""  # "ok", or what went wrong
    way: str = ""
    error: float = 0.0
    estimate: float = 0.0
    first: float = 0.0  # seconds of the very first call, with what is compiled for it
    medians: list[float] = dataclasses.field(default_factory=list)  # seconds, one per round
    minima: list[float] = dataclasses.field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Whether there are times."""
        return self.status == "ok" and bool(self.medians)

    @property
    def median(self) -> float:
        """Seconds."""
        return float(np.median(self.medians))

    @property
    def minimum(self) -> float:
        """Seconds."""
        return min(self.minima)

    def ratio(self, other: Entry) -> float:
        """Return how many times longer `other` takes: the median of the paired rounds."""
        pairs = zip(other.medians, self.medians, strict=False)
        return float(np.median([theirs / own for theirs, own in pairs]))

    def asdict(self) -> dict[str, Any]:
        """Return what JSON keeps, in microseconds."""
        if not self.ok:
            return {"status": self.status}
        return {
            "status": "ok", "way": self.way, "error": self.error,
            "median_us": self.median * 1e6, "min_us": self.minimum * 1e6,
            "rounds_us": [round(m * 1e6, 4) for m in self.medians],
        }


@dataclasses.dataclass(frozen=True)
class Effort:
    """How long to measure."""

    rounds: int = 7
    warm: float = 0.2
    fill: float = 0.03  # seconds of calls per round

    def rounds_of(self, slowest: float) -> int:
        """Fewer rounds where one call takes seconds: such a call is its own average."""
        return self.rounds if slowest < 1 else max(3, self.rounds // 2)


def race(workers: Workers, entries: Iterable[Entry], effort: Effort) -> list[Entry]:
    """Load, check and time the entries, a round going once to each; return them with results."""
    entries = list(entries)
    running: list[tuple[Entry, Worker]] = []
    for entry in entries:
        worker = _prepare(workers, entry, effort)
        if worker is not None:
            running.append((entry, worker))
    if running:
        for turn in range(effort.rounds_of(max(entry.estimate for entry, _ in running))):
            # forwards and backwards, so that no one always follows the same neighbour
            for entry, worker in running[:: -1 if turn % 2 else 1]:
                _guarded(entry, _round, entry, worker, effort)
    for _, worker in running:
        with contextlib.suppress(DiedError):
            worker.ask("drop")
    return entries


def _guarded(entry: Entry, do: Any, *arguments: Any) -> Any:
    try:
        return do(*arguments)
    except DiedError as why:
        entry.status = f"died, {why}"
        return None


def _round(entry: Entry, worker: Worker, effort: Effort) -> None:
    if entry.status != "ok":
        return
    answer = worker.ask("round", seconds=effort.fill)
    if "failed" in answer:
        entry.status = answer["failed"]
        return
    entry.medians.append(answer["median"])
    entry.minima.append(answer["min"])


def _prepare(workers: Workers, entry: Entry, effort: Effort) -> Worker | None:
    """Load and check; return the worker if there is something to time."""
    worker = workers.get(entry.peer, entry.threads, entry.key)
    if worker is None:
        entry.status = "not installed"
        return None
    path = workers.expected(entry.case)
    answer = _guarded(entry, lambda: worker.ask("load", patience=entry.patience,
                                                case=entry.case.asdict(), path=path))
    if answer is None:
        return None
    for trouble in ("unsupported", "failed"):
        if trouble in answer:
            entry.status = f"{trouble}: {answer[trouble]}"
            return None
    if answer["wrong"]:
        worst = "; ".join(
            f"{way} {name} {error:.1e}"
            for way, bad in answer["wrong"].items() for name, error in list(bad.items())[:1]
        )
        print(f"  {entry.label}: wrong by more than {answer['tolerance']:.1e}: {worst}")
        if not answer["ways"]:
            entry.status = f"wrong: {worst}"
            return None
    entry.error, first = answer["error"], answer.get("first", {})
    answer = _guarded(entry, lambda: worker.ask("warm", seconds=effort.warm))
    if answer is None:
        return None
    if "failed" in answer:
        entry.status = answer["failed"]
        return None
    entry.status, entry.way, entry.estimate = "ok", answer["way"], answer["estimate"]
    entry.first = first.get(entry.way, 0.0)
    return worker
