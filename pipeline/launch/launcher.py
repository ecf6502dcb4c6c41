"""torchrun, which leaves one line about the rank that failed.

`python -m pipeline.launch.launcher FILE torchrun's arguments`

FILE is where it goes, as JSON: {"line": ..., "of_others": ..., "time": ...}. Without it torchrun prints a page about
all ranks, most of which failed only because one had.
"""

import json
import logging
import signal
import socket
import sys
from collections.abc import Mapping
from pathlib import Path

from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure
from torch.distributed.run import parse_args, run

_OF_OTHERS = ("closed by peer", "reset by peer", "Broken pipe", "NCCL", "ProcessGroup")
"""In what an exception says where its cause is that another rank is gone."""


def main() -> None:
    file, *arguments = sys.argv[1:]
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)  # the line says it
    try:
        run(parse_args(arguments))
    except ChildFailedError as error:
        rank, failure = first(error.failures)
        line = failure_line(rank, failure, socket.gethostname())
        record = {"line": line, "of_others": is_of_others(failure), "time": failure.timestamp}
        Path(file).write_text(json.dumps(record), encoding="utf-8")
        sys.exit(1)


def first(failures: Mapping[int, ProcessFailure]) -> tuple[int, ProcessFailure]:
    """Rank and failure that came before all others, by cause and then by time.

    Time alone does not tell: torchrun has it in whole seconds, and of a killed rank only when it looks.
    """

    rank = min(failures, key=lambda rank: (is_of_others(failures[rank]), failures[rank].timestamp, rank))
    return rank, failures[rank]


def is_of_others(failure: ProcessFailure) -> bool:
    """Whether a rank ended only because another one had."""
    return -failure.exitcode == signal.SIGTERM or any(sign in exception_line(failure) for sign in _OF_OTHERS)


def failure_line(rank: int, failure: ProcessFailure, host: str) -> str:
    """How a rank failed."""
    if message := exception_line(failure):
        return f"rank {rank} on {host} failed: {message}; its traceback stands above"
    if failure.exitcode >= 0:
        return f"rank {rank} on {host} ended with code {failure.exitcode}"
    name = failure.signal_name()
    where = ": by a user, or by the system where memory had run out (see dmesg)" if name == "SIGKILL" else ""
    return f"rank {rank} on {host} was ended by {name}{where}"


def exception_line(failure: ProcessFailure) -> str:
    """The first line of a rank's exception; nothing where it ended otherwise."""
    message = failure.message
    return message["message"].strip().split("\n", 1)[0] if isinstance(message, dict) else ""


if __name__ == "__main__":
    main()
