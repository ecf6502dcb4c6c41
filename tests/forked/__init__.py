"""Processes forked from one that has imported the libraries already: a start takes milliseconds, not five seconds.

`Popen` is subprocess.Popen for `python -m MODULE ARGUMENTS` and `python -c CODE ARGUMENTS`. They are processes like
others, with their own environment, standard streams, exit code and signals; all that differs is who has imported.
Where that matters (see `must_import_anew`), or a GPU is there, a real one is started.
"""

import atexit
import os
import pickle
import select
import signal
import socket
import struct
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[2]
READ_AT_IMPORT = ("PYTHON", "HF_", "HUGGINGFACE_", "TRANSFORMERS_", "TORCH", "DS_", "LD_", "HOME", "XDG_", "CUDA_VIS")
READ_LATER = ("PYTHONWARNINGS", "DS_ACCELERATOR", "TORCHINDUCTOR_DETERMINISTIC")


@cache
def environment_at_start() -> dict[str, str]:
    """That of this process when it first asked, which is before any test has changed it."""
    return dict(os.environ)


def must_import_anew(environment: Mapping[str, str], before: Mapping[str, str]) -> bool:
    """Whether the environment differs from the one before in what libraries read when they are imported."""
    names = [name for name in {*environment, *before} if name.startswith(READ_AT_IMPORT) and name not in READ_LATER]
    return any(environment.get(name) != before.get(name) for name in names)


@dataclass(frozen=True)
class Request:
    """What the server is asked for; the file descriptors come with it, the standard streams first."""

    arguments: tuple[str, ...]
    """Of Python: "-m", a module and its arguments, or "-c", code and its arguments."""
    environment: dict[str, str]
    folder: str
    before: Callable[[], None] | None
    new_session: bool
    kept: tuple[int, ...]
    """Numbers of the file descriptors after the standard streams, which are the same in the new process."""
    parent: int


class Popen:
    """A process forked from the server."""

    def __init__(
        self,
        command: Sequence[str],
        *,
        env: Mapping[str, str] | None = None,
        cwd: str | os.PathLike[str] | None = None,
        stdout: Any = None,
        stderr: Any = None,
        preexec_fn: Callable[[], None] | None = None,
        start_new_session: bool = False,
        pass_fds: Sequence[int] = (),
    ) -> None:
        assert command[0] == sys.executable, command
        first = next(number for number, word in enumerate(command) if word in ("-m", "-c"))
        self.args = command
        self.returncode: int | None = None
        self.cpu_seconds = 0.0
        """Of the process and of those it has waited for; known at its end."""
        request = Request(
            arguments=tuple(command[first:]),
            environment=dict(os.environ if env is None else env),
            folder=os.fspath(cwd or os.getcwd()),
            before=preexec_fn,
            new_session=start_new_session,
            kept=tuple(pass_fds),
            parent=os.getpid(),
        )
        streams = [_number(stream, default) for default, stream in enumerate((None, stdout, stderr))]
        self._connection = socket.socket(socket.AF_UNIX)
        self._connection.connect(server())
        message = pickle.dumps(request)
        socket.send_fds(self._connection, [struct.pack("<I", len(message))], [*streams, *pass_fds])
        self._connection.sendall(message)
        (self.pid,) = struct.unpack("<i", received(self._connection, 4))

    def poll(self) -> int | None:
        try:
            return self.wait(0)
        except subprocess.TimeoutExpired:
            return None

    def wait(self, timeout: float | None = None) -> int:
        if self.returncode is None:
            if not select.select([self._connection], [], [], timeout)[0]:
                raise subprocess.TimeoutExpired(self.args, timeout or 0.0)
            self.returncode, self.cpu_seconds = struct.unpack("<id", received(self._connection, 12))
            self._connection.close()
        return self.returncode

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def __enter__(self) -> "Popen":
        return self

    def __exit__(self, *error: object) -> None:
        self.wait()


class Starter:
    """Starts Python: forked where that is the same as a real process, and the test does not ask for one.

    It stands for the module `subprocess` where pipeline.launch.processes starts torchrun.
    """

    def __init__(self) -> None:
        environment_at_start()
        self.begin(real=False)

    def begin(self, *, real: bool) -> None:
        """From now on a test runs, or a process; what the environment holds has been set by imports, not by it."""
        self.real = real
        self._before = dict(os.environ)

    def forks(self, environment: Mapping[str, str]) -> bool:
        return not (self.real or must_import_anew(environment, self._before) or _has_gpu())

    def Popen(self, command: Sequence[str], **options: Any) -> Any:
        start: Any = Popen if self.forks(options.get("env") or os.environ) else subprocess.Popen
        return start(command, **options)

    def run(self, command: Sequence[str], *, timeout: float, **options: Any) -> subprocess.CompletedProcess[str]:
        """subprocess.run(..., capture_output=True, text=True).

        Raises: subprocess.TimeoutExpired, after the process is killed.
        """
        with tempfile.TemporaryFile("w+") as stdout, tempfile.TemporaryFile("w+") as stderr:
            with self.Popen(command, stdout=stdout, stderr=stderr, **options) as process:
                try:
                    process.wait(timeout)
                except subprocess.TimeoutExpired:
                    process.kill()
                    raise
            stdout.seek(0)
            stderr.seek(0)
            return subprocess.CompletedProcess(list(command), process.returncode, stdout.read(), stderr.read())

    def run_together(self, arguments: Sequence[Sequence[str]], timeout: float = 300) -> None:
        """A Python with each of these arguments, all at once, with one thread each.

        Raises: AssertionError with what the first that failed wrote to its standard error;
            subprocess.TimeoutExpired. Nothing runs on in either case.
        """
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        with ExitStack() as stack:
            processes = []
            for words in arguments:
                errors = stack.enter_context(tempfile.TemporaryFile("w+"))
                command = [sys.executable, *words]
                process = self.Popen(command, env=environment, cwd=REPOSITORY, stderr=errors)
                stack.callback(process.kill)
                processes.append((process, errors))
            for process, errors in processes:
                if process.wait(timeout) != 0:
                    errors.seek(0)
                    raise AssertionError(errors.read())


@cache
def server() -> str:
    """The socket of the server, which is started when it is first asked for; it ends with this process."""
    folder = tempfile.TemporaryDirectory(prefix="fork-server-")
    path = f"{folder.name}/socket"
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.forked.server", path],
        cwd=REPOSITORY,
        env=environment_at_start(),
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    if "ready\n" not in process.stdout:
        raise RuntimeError("the fork server ended; its traceback stands above")

    def end() -> None:
        process.kill()
        process.wait()
        folder.cleanup()

    atexit.register(end)
    return path


@cache
def _has_gpu() -> bool:
    import torch

    return torch.cuda.is_available()


def _number(stream: Any, default: int) -> int:
    return default if stream is None else stream if isinstance(stream, int) else stream.fileno()


def received(connection: socket.socket, count: int) -> bytes:
    """Raises: EOFError if the server is gone."""
    received = b""
    while len(received) < count:
        if not (more := connection.recv(count - len(received))):
            raise EOFError("the fork server is gone")
        received += more
    return received
