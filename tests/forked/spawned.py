"""The processes that multiprocessing spawns, forked from the server."""

import os
from collections.abc import Sequence
from multiprocessing import popen_spawn_posix, util
from typing import Any

from tests import forked

_spawn = util.spawnv_passfds
_waitpid_poll = popen_spawn_posix.Popen.poll


def fork_spawned(starter: forked.Starter) -> None:
    """From now on what this process spawns by multiprocessing is forked, where the starter forks."""
    processes: dict[int, forked.Popen] = {}

    def spawn(path: bytes, command: Sequence[Any], descriptors: Sequence[int]) -> int:
        words = [os.fsdecode(word) for word in command]
        if "--multiprocessing-fork" not in words or not starter.forks(os.environ):
            return _spawn(path, command, descriptors)
        process = forked.Popen(words, pass_fds=sorted(set(descriptors)))
        processes[process.pid] = process
        return process.pid

    def poll(popen: Any, flag: int = os.WNOHANG) -> int | None:
        if popen.pid not in processes:
            return _waitpid_poll(popen, flag)
        if popen.returncode is None:
            process = processes[popen.pid]
            popen.returncode = process.poll() if flag == os.WNOHANG else process.wait()
        return popen.returncode

    util.spawnv_passfds = spawn
    popen_spawn_posix.Popen.poll = poll
