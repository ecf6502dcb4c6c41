"""The process that others are forked from: `python -m tests.forked.server SOCKET`; it prints "ready" once it listens.

It imports what commands and ranks import, computes nothing (threads of a pool would be missing after a fork) and forks
a process for every connection. A process is killed when its connection closes, as a child is that asked to die with
its parent.
"""

import atexit
import contextlib
import fcntl
import gc
import importlib
import os
import pickle
import pkgutil
import runpy
import selectors
import signal
import socket
import struct
import sys
import threading
import traceback
import types
import warnings
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from tests import forked
from tests.forked.spawned import fork_spawned

LIBRARIES = (
    "deepspeed", "megatron.core", "megatron.core.models.gpt", "torch.distributed.run", "torch.utils.tensorboard",
    "transformers.models.llama.modeling_llama", "transformers.models.qwen2.modeling_qwen2", "matplotlib.figure",
    "transformers.models.smollm3.modeling_smollm3", "pyarrow.parquet", "multiprocessing.spawn",
    "lm_eval.models.huggingface",
)  # fmt: skip
STARTER = forked.Starter()
PACKAGES = ("foundation", "data_prep", "model_surgery", "eval", "slurm", "pipeline")


def preload() -> None:
    """Imports libraries and all of the project's modules, without what they are to do as programs."""
    import torch

    from model_surgery.megatron.cpu import forgo_compiler_if_no_gpu
    from pipeline.launch.processes import worker_environment

    os.environ.update(worker_environment(1))
    compiler = torch.compile
    forgo_compiler_if_no_gpu()
    for name in LIBRARIES:
        importlib.import_module(name)
    for package in PACKAGES:
        for module in pkgutil.walk_packages(importlib.import_module(package).__path__, f"{package}."):
            with contextlib.suppress(ModuleNotFoundError):  # what needs a GPU's libraries
                importlib.import_module(module.name)
    torch.compile = compiler  # a process does without it, or not, by itself


def fork_ranks() -> None:
    """From now on torchrun forks its ranks, and this project forks its torchruns from the server.

    The ranks have DeepSpeed's operator from here: each would look, behind a lock, whether it is compiled already.
    """
    from torch.distributed.elastic.multiprocessing.subprocess_handler import subprocess_handler

    from pipeline.launch import processes

    def start(handler: Any, command: Sequence[str], environment: dict[str, str]) -> Any:
        python, unbuffered, *arguments = command
        assert (python, unbuffered) == (sys.executable, "-u"), command
        request = forked.Request(tuple(arguments), environment, os.getcwd(), None, True, (), os.getpid())
        return Child(lambda: run(request))

    # It walks through all imported modules, some ten times in a torchrun, for the names of methods in events.
    rendezvous = importlib.import_module("torch.distributed.elastic.rendezvous.dynamic_rendezvous")
    rendezvous.get_method_name = lambda depth=2: "forked"
    backend = importlib.import_module("deepspeed.comm.torch")
    operator = backend.build_shm_op()
    backend.build_shm_op = lambda: operator
    subprocess_handler.SubprocessHandler._popen = start
    processes.subprocess = STARTER
    fork_spawned(STARTER)


class Child:
    """A forked child process; what torchrun asks of a subprocess.Popen."""

    def __init__(self, main: Callable[[], None]) -> None:
        sys.stdout.flush()
        sys.stderr.flush()
        self.returncode: int | None = None
        self.pid = os.fork()
        if self.pid == 0:
            end_with(main)

    def poll(self) -> int | None:
        if self.returncode is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            self.returncode = os.waitstatus_to_exitcode(status) if pid else None
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Waits without end where a time-out is named too: torchrun has sent SIGKILL before it calls this."""
        if self.returncode is None:
            _, status = os.waitpid(self.pid, 0)
            self.returncode = os.waitstatus_to_exitcode(status)
        return self.returncode

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)


def end_with(main: Callable[[], None]) -> NoReturn:
    """Ends this process as the interpreter would after `main`; signals that are handled are as in a new program."""
    gc.freeze()  # Cycles that the parent left are its own: of the C++ threads in them none is here.
    for number in signal.valid_signals():
        if callable(signal.getsignal(number)) and number != signal.SIGINT:
            signal.signal(number, signal.SIG_DFL)
    code = 1
    try:
        main()
        code = 0
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else 0 if error.code is None else 1
        if isinstance(error.code, str):
            print(error.code, file=sys.stderr)
    except KeyboardInterrupt:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGINT)
    except BaseException:
        traceback.print_exc()
    finally:
        threading._shutdown()
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def run(request: forked.Request) -> None:
    """What Python does that is started with this."""
    import torch

    if request.new_session:
        os.setsid()
    if request.before is not None:
        request.before()
    os.getppid = lambda: request.parent  # the server stands between them, and ends this process with its parent
    os.environ.clear()
    os.environ.update(request.environment)
    STARTER.begin(real=False)
    os.chdir(request.folder)
    if os.environ.get("PYTHONWARNINGS") == "ignore":
        warnings.simplefilter("ignore")
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", len(os.sched_getaffinity(0)))))
    flag, program, *arguments = request.arguments
    if flag == "-c":
        sys.path[0] = ""
        sys.argv = ["-c", *arguments]
        sys.modules["__main__"] = main = types.ModuleType("__main__")
        exec(compile(program, "<string>", "exec"), main.__dict__)
        return
    sys.path[0] = request.folder
    sys.argv = [program, *arguments]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*found in sys.modules.*", RuntimeWarning)
        runpy.run_module(program, run_name="__main__", alter_sys=True)


class Server:
    def __init__(self, path: str) -> None:
        self._selector = selectors.DefaultSelector()
        self._connections: dict[int, socket.socket] = {}
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(path)
        self._listener.listen()
        self._selector.register(self._listener, selectors.EVENT_READ, self._accept)
        self._ended, wakeup = os.pipe()
        os.set_blocking(self._ended, False)
        os.set_blocking(wakeup, False)
        signal.set_wakeup_fd(wakeup)
        signal.signal(signal.SIGCHLD, lambda number, frame: None)
        self._selector.register(self._ended, selectors.EVENT_READ, self._reap)
        self._wakeup = wakeup

    def serve(self) -> NoReturn:
        while True:
            for key, _ in self._selector.select():
                key.data(key.fileobj)

    def _accept(self, listener: socket.socket) -> None:
        connection, _ = listener.accept()
        size, streams, _, _ = socket.recv_fds(connection, 4, 64)
        request = pickle.loads(forked.received(connection, struct.unpack("<I", size)[0]))
        sys.stdout.flush()
        pid = os.fork()
        if pid == 0:
            self._become_child(request, streams)
        for stream in streams:
            os.close(stream)
        connection.sendall(struct.pack("<i", pid))
        self._connections[pid] = connection
        self._selector.register(connection, selectors.EVENT_READ, lambda closed: os.kill(pid, signal.SIGKILL))

    def _become_child(self, request: forked.Request, received: Sequence[int]) -> NoReturn:
        above = max(received) + max((*request.kept, 2)) + 1
        moved = [fcntl.fcntl(number, fcntl.F_DUPFD, above) for number in received]
        signal.set_wakeup_fd(-1)
        self._selector.close()
        for connection in (self._listener, *self._connections.values()):
            connection.close()
        os.close(self._ended)
        os.close(self._wakeup)
        for number in received:
            os.close(number)
        for number, expected in zip(moved, (0, 1, 2, *request.kept), strict=True):
            os.dup2(number, expected)
            os.close(number)
        end_with(lambda: run(request))

    def _reap(self, ended: int) -> None:
        os.read(ended, 4096)
        while True:
            try:
                pid, status, usage = os.wait4(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            connection = self._connections.pop(pid)
            self._selector.unregister(connection)
            code = os.waitstatus_to_exitcode(status)
            with contextlib.suppress(OSError):  # nobody may wait for it any more
                connection.sendall(struct.pack("<id", code, usage.ru_utime + usage.ru_stime))
            connection.close()


def main() -> None:
    from pipeline.launch.processes import die_with_parent

    die_with_parent()
    path = sys.argv[1]
    preload()
    fork_ranks()
    forked.server = lambda: path  # forked processes fork from it too
    server = Server(path)
    print("ready", flush=True)
    server.serve()


if __name__ == "__main__":
    main()
