"""Work on the next things while the present one is used."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")

_THREADS = 2


def read_ahead(jobs: Iterable[tuple[Callable[[], T], int]], limit: int) -> Iterator[T]:
    """Results of the jobs, in their order; later ones are begun in threads as long as their sizes stay below `limit`.

    A job is a function and the size of its result in bytes; one that alone is larger than `limit` is done all the same.

    Raises: what a job raises, when its turn comes; then no further job is begun.
    """
    begun: deque[tuple[Future[T], int]] = deque()
    ahead = 0
    with ThreadPoolExecutor(_THREADS, thread_name_prefix="read-ahead") as pool:
        try:
            for job, size in jobs:
                while begun and ahead + size > limit:
                    done, freed = begun.popleft()
                    yield done.result()
                    ahead -= freed
                begun.append((pool.submit(job), size))
                ahead += size
            while begun:
                yield begun.popleft()[0].result()
        finally:
            pool.shutdown(cancel_futures=True)
