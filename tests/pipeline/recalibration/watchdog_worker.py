"""A rank that computes nothing: `torchrun ... -m tests....watchdog_worker CASE OUT HANG_SECONDS`.

Every step has a "data" and a "forward" mark and ends in a collective, as those of a training do. CASE says what goes
wrong in step FAULTY, and on which rank: "frozen 3", "reading 2", "healthy 1", "torchrun 1".
"""

import json
import logging
import os
import signal
import subprocess
import sys
import time
from datetime import timedelta
from pathlib import Path

import torch

from pipeline.launch.processes import die_with_parent
from pipeline.recalibration.stop_request import StopRequest
from pipeline.recalibration.stragglers import OwnTime
from pipeline.recalibration.watchdog import Watchdog

STEPS, FAULTY = 8, 5


def main() -> None:
    die_with_parent()
    what, unlucky = sys.argv[1].split()
    out_dir, hang_seconds = Path(sys.argv[2]), float(sys.argv[3])
    rank, world_size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    logging.basicConfig(format="%(message)s")
    stop_request = StopRequest()  # SIGTERM alone does not end a rank of a training
    torch.distributed.init_process_group("gloo", timeout=timedelta(seconds=300))
    with Watchdog(out_dir, hang_seconds) as watchdog:
        own = OwnTime(torch.device("cpu"))
        times = []
        for step in range(1, STEPS + 1):
            watchdog.mark(step, "data")
            with own:
                if step == FAULTY and rank == int(unlucky):
                    go_wrong(what, watchdog, hang_seconds)
                time.sleep(0.03 if rank == int(unlucky) else 0.01)
                time.sleep(hang_seconds / 2 * (step == 1))  # heartbeats of a rank in a step must have been heard
            watchdog.mark(step, "forward")
            if step == FAULTY + 1 and what == "healthy":
                suspend(hang_seconds)
            gathered = [0.0] * world_size
            torch.distributed.all_gather_object(gathered, own.take())
            times.append(gathered)
    assert stop_request.name is None
    (out_dir / f"rank-{rank}.json").write_text(json.dumps(times))
    time.sleep(1.25 * hang_seconds * (rank == 0 and what == "healthy"))  # nobody watches a rank that is through


def go_wrong(what: str, watchdog: Watchdog, hang_seconds: float) -> None:
    if what == "frozen":
        os.kill(os.getpid(), signal.SIGSTOP)
    elif what == "reading":
        time.sleep(600)
    elif what == "torchrun":  # which keeps the store
        os.kill(os.getppid(), signal.SIGSTOP)
        time.sleep(600)
    elif what == "healthy":
        for _ in range(5):  # what goes on slowly, then a pause within the limit
            watchdog.progress()
            time.sleep(hang_seconds / 4)
        time.sleep(hang_seconds / 3)


def suspend(hang_seconds: float) -> None:
    """All ranks sleep at once, as a suspended job does."""
    time.sleep(hang_seconds / 4)  # what watches has seen this rank where it is now
    wake = f"sleep {1.25 * hang_seconds}; kill -CONT {os.getpid()}"
    subprocess.Popen(["sh", "-c", wake])
    os.kill(os.getpid(), signal.SIGSTOP)
    time.sleep(hang_seconds / 3)  # what watches wakes up before the training goes on


if __name__ == "__main__":
    main()
