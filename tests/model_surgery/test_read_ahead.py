"""Jobs are done in order, a limited number of bytes in advance."""

import threading
from functools import partial

import pytest

from model_surgery.read_ahead import read_ahead


def test_results_come_in_order_whatever_their_sizes() -> None:
    for limit in (1, 10, 1000):
        jobs = [(partial(int, number), 1 + number % 7) for number in range(50)]
        assert list(read_ahead(jobs, limit)) == list(range(50))
    assert list(read_ahead([], 10)) == []
    assert list(read_ahead([(partial(int, 3), 99)], 10)) == [3]


def test_only_what_fits_is_begun() -> None:
    begun: list[int] = []
    lock = threading.Lock()

    def job(number: int) -> int:
        with lock:
            begun.append(number)
        return number

    results = read_ahead([(partial(job, number), 4) for number in range(10)], 10)
    assert next(results) == 0
    assert len(begun) <= 3  # two of 4 bytes fit into 10, and the one that was asked for
    assert list(results) == list(range(1, 10))


def test_an_error_comes_in_its_turn_and_ends_the_work() -> None:
    begun: list[int] = []

    def job(number: int) -> int:
        begun.append(number)
        if number == 2:
            raise OSError(5, "Input/output error")
        return number

    results = read_ahead([(partial(job, number), 5) for number in range(100)], 10)
    assert [next(results), next(results)] == [0, 1]
    with pytest.raises(OSError, match="Input/output error"):
        next(results)
    assert len(begun) < 6


def test_a_reader_that_stops_ends_the_work() -> None:
    begun: list[int] = []
    results = read_ahead([(partial(begun.append, number), 1) for number in range(100)], 3)
    next(results)
    results.close()
    assert len(begun) < 6
