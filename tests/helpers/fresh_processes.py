"""Fresh processes for tests, forked from one that has imported the libraries and done nothing else."""

import os
import runpy
import subprocess
import sys
from collections.abc import Mapping
from multiprocessing import get_context
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerContext
from pathlib import Path
from tempfile import TemporaryFile
from typing import TextIO

from tests.helpers.paths import ROOT


def fresh_processes() -> ForkServerContext:
    """Return a context whose processes share nothing with this one, and start without importing everything anew."""
    context = get_context("forkserver")
    context.set_forkserver_preload(["continual.learner", "continual.tracking.client", "tests.conftest"])
    return context


class FreshPython:
    """`python -m MODULE ARGUMENTS` or `python -c CODE ARGUMENTS` in a fresh process, with what tests use of `Popen`.

    Standard error goes to a file, so that a process never waits for someone to read it.

    Args:
        words: The words after `python`.
        cwd: The working directory.
    """

    def __init__(self, *words: object, cwd: Path = ROOT) -> None:
        (its_input, ours), (theirs, its_output) = os.pipe(), os.pipe()
        self.stdin: TextIO = os.fdopen(ours, "w", buffering=1)
        self.stdout: TextIO = os.fdopen(theirs)
        self._stderr = TemporaryFile()  # noqa: SIM115 (closed with this object)
        ends = [Connection(its_input, writable=False), Connection(its_output, readable=False)]
        ends.append(Connection(os.dup(self._stderr.fileno()), readable=False))
        arguments = ([str(word) for word in words], cwd, dict(os.environ), ends)
        self._process = fresh_processes().Process(target=_run_python, args=arguments)
        self._process.start()
        for end in ends:
            end.close()

    @property
    def pid(self) -> int:
        """The process's number."""
        assert self._process.pid is not None
        return self._process.pid

    @property
    def stderr(self) -> str:
        """What it has written to standard error."""
        size = os.fstat(self._stderr.fileno()).st_size
        return os.pread(self._stderr.fileno(), size, 0).decode()

    def poll(self) -> int | None:
        """Return its exit code, negative for a signal; None while it runs."""
        return self._process.exitcode

    def wait(self, timeout: float | None = None) -> int:
        """Wait until it ends and return its exit code."""
        self._process.join(timeout)
        code = self._process.exitcode
        if code is None:
            raise subprocess.TimeoutExpired(self._process.name, timeout or 0.0)
        return code

    def communicate(self, text: str = "") -> str:
        """Write its standard input, wait until it ends, and return its standard output."""
        with self.stdin:
            self.stdin.write(text)
        output = self.stdout.read()
        self.wait()
        return output

    def send_signal(self, number: int) -> None:
        """Send a signal."""
        os.kill(self.pid, number)

    def kill(self) -> None:
        """Kill it, and wait until it has ended."""
        self._process.kill()
        self._process.join()


def run_python(*words: object, cwd: Path = ROOT) -> str:
    """Return the standard output of `python WORDS` without standard input; it must succeed."""
    process = FreshPython(*words, cwd=cwd)
    output = process.communicate()
    assert process.poll() == 0, f"{words}: {process.poll()}\n{output}\n{process.stderr}"
    return output


def _run_python(words: list[str], cwd: Path, environment: Mapping[str, str], ends: list[Connection]) -> None:
    for number, end in enumerate(ends):
        os.dup2(end.fileno(), number)
        end.close()
    sys.stdin, sys.stdout, sys.stderr = os.fdopen(0), os.fdopen(1, "w"), os.fdopen(2, "w", buffering=1)
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(environment)  # what Python and the libraries read when they were started is not read again
    how, what, *sys.argv[1:] = words
    sys.argv[0] = how if how == "-c" else what
    try:
        if how == "-c":
            exec(what, {"__name__": "__main__"})
        else:
            runpy.run_module(what, run_name="__main__", alter_sys=True)
    finally:
        sys.stdout.flush()
