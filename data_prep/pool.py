"""Worker processes that do pieces of work, and the loop that gives them out."""

import contextlib
import ctypes
import logging
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from data_prep.errors import WorkFailed
from data_prep.tokenizers.checked import CheckedEncoder, Difference
from data_prep.tokenizers.fast import load_fast
from data_prep.tokenizers.reference import Tokenizer, load_tokenizer
from data_prep.work import Meter, do_piece
from data_prep.work_item import PieceRecord, WorkItem

logger = logging.getLogger(__name__)

ONE_THREAD = ("FASTOKENS_BPE_THREADS", "RAYON_NUM_THREADS", "OMP_NUM_THREADS", "ARROW_NUM_THREADS")
POLL_SECONDS = 0.5
_PR_SET_PDEATHSIG = 1


Finished = Callable[[WorkItem, PieceRecord], None]


@dataclass(frozen=True)
class Done:
    """A piece that is complete; `difference` tells why its fast backend was given up, if it was."""

    record: PieceRecord
    difference: str | None


def available_cores() -> int:
    """Cores that this process may run on; a SLURM task sees its own."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class Workers:
    """Processes of one thread each that do pieces; a context manager.

    They start, and load the reference, while the caller still chooses the library that they are to encode with.
    """

    def __init__(self, tokenizer: Path, check_fraction: float, count: int) -> None:
        self._count = count
        self._in_work: set[str] = set()
        context = multiprocessing.get_context("spawn")
        self._counters = context.Array("q", 2)
        self._others = set(multiprocessing.active_children())
        started_with = (tokenizer, check_fraction, self._counters, os.getpid())
        self._pool = ProcessPoolExecutor(count, mp_context=context, initializer=_start, initargs=started_with)

    def __enter__(self) -> "Workers":
        with _one_thread_each():
            for _ in range(self._count):  # a process is started for every task given to the pool, not before
                self._pool.submit(os.getpid)
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        if kind is not None and not issubclass(kind, ValueError | OSError):  # asked to end, not ended by a document
            for worker in set(multiprocessing.active_children()) - self._others:
                worker.terminate()
        self._pool.shutdown(wait=True, cancel_futures=True)

    def do(self, items: Iterator[WorkItem], backend: str | None, *, bar: tqdm, finished: Finished) -> None:
        """Do the pieces with the fast library `backend`, or the reference; `finished` is called for every complete one.

        `items` is asked for the next piece only when a worker is free, so that it can look at what is done by then. A
        library that is found wrong is given up for all pieces not yet begun.

        Raises: DataError and DiskError as `do_piece`; WorkFailed if a worker is killed. Complete pieces stay.
        """
        try:
            self._give_out(items, backend, _Shown(bar, self._counters), finished)
        except BrokenProcessPool as error:
            raise WorkFailed(
                f"a worker process was killed at {' or '.join(sorted(self._in_work)) or 'its start'} (out of memory, "
                "or a file that crashes its reader?); run again to go on from the last complete shard"
            ) from error

    def _give_out(self, items: Iterator[WorkItem], backend: str | None, shown: "_Shown", finished: Finished) -> None:
        pending: dict[Future[Done], WorkItem] = {}
        while True:
            while len(pending) < self._count and (item := next(items, None)) is not None:
                pending[self._pool.submit(_do, item, backend)] = item
            self._in_work = {f"{item.name} ({item.file.url})" for item in pending.values()}
            if not pending:
                return
            complete, _ = wait(pending, timeout=POLL_SECONDS, return_when=FIRST_COMPLETED)
            shown.update()
            for future in complete:
                item = pending.pop(future)
                done = future.result()
                if done.difference and backend:
                    backend = None
                    warn_of_difference(done.difference)
                finished(item, done.record)


def warn_of_difference(difference: str) -> None:
    logger.warning("%s; going on with the reference from the last complete shard", difference)


@dataclass
class _Shown:
    """The progress bar, fed from what the workers have counted."""

    bar: tqdm
    counters: Any
    bytes_before: int = 0
    started: float = 0.0

    def __post_init__(self) -> None:
        self.started = time.monotonic()

    def update(self) -> None:
        text_bytes, tokens = self.counters[0], self.counters[1]
        rate = tokens / max(time.monotonic() - self.started, 1e-9)
        self.bar.set_postfix_str(f"{rate:,.0f} tokens/s", refresh=False)
        self.bar.update(text_bytes - self.bytes_before)
        self.bytes_before = text_bytes


@contextlib.contextmanager
def _one_thread_each() -> Iterator[None]:
    """Libraries in the workers read these at import: a thread for every core in every worker would only collide."""
    before = {name: os.environ.get(name) for name in ONE_THREAD}
    os.environ.update(dict.fromkeys(ONE_THREAD, "1"))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


_worker: dict[str, Any] = {}  # of this worker process: an initializer has no other place to leave what it loads


def _start(tokenizer: Path, check_fraction: float, counters: Any, parent: int) -> None:
    """What a worker process does once."""
    if sys.platform == "linux":  # a killed parent must not leave workers behind that still write
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # it died before the request above
            os.kill(os.getpid(), signal.SIGKILL)
    for number in (signal.SIGINT, signal.SIGUSR1):  # Ctrl-C and a scheduler's warning reach all; the parent decides
        signal.signal(number, signal.SIG_IGN)
    _worker.update(encoders=Encoders(load_tokenizer(tokenizer), check_fraction), counters=counters)


class Encoders:
    """The reference, and the fast libraries that stand in for it, each loaded when it is first asked for."""

    def __init__(self, reference: Tokenizer, check_fraction: float) -> None:
        self._reference = reference
        self._check_fraction = check_fraction
        self._loaded: dict[str | None, CheckedEncoder] = {}

    def get(self, backend: str | None) -> CheckedEncoder:
        """The encoder by that library, checked all along; by the reference alone for None."""
        if backend not in self._loaded:
            library = load_fast(backend, self._reference) if backend else None
            self._loaded[backend] = CheckedEncoder(self._reference, library, self._check_fraction)
        return self._loaded[backend]


def _do(item: WorkItem, backend: str | None) -> Done:
    return do_trusted(item, _worker["encoders"], backend, _count)


def do_trusted(item: WorkItem, encoders: Encoders, backend: str | None, meter: Meter) -> Done:
    """Do a piece; if the fast library proves wrong in it, do it again, from its start, with the reference."""
    try:
        return Done(do_piece(item, encoders.get(backend), meter), None)
    except Difference as difference:
        return Done(do_piece(item, encoders.get(None)), f"{item.name}: {difference}")


def _count(text_bytes: int, tokens: int) -> None:
    counters = _worker["counters"]
    with counters.get_lock():
        counters[0] += text_bytes
        counters[1] += tokens
