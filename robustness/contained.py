"""Work that may crash, hang or ask for all memory, done in forked processes that can."""

import contextlib
import json
import os
import resource
import select
import signal
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

MEMORY = 3 * 2**30


def each(
    tasks: Sequence[Any], prepare: Callable[[], Callable[[Any], str]], seconds: float = 60.0, memory: int = MEMORY
) -> Iterator[str]:
    """Do tasks one after another in a forked process, in another one from where the last has died.

    Args:
        tasks: what is given to the function, one after another.
        prepare: makes the function, in the process; it returns text of one line.
        seconds: after so long without an answer the process is killed.
        memory: bytes of address space that it may use beyond what it begins with.

    Yields:
        What the function said of each task; "crash" and "hang" where the process ended without.
    """
    done = 0
    while done < len(tasks):
        reading, writing = os.pipe()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # newer Pythons warn of threads; none holds a lock
            child = os.fork()
        if child == 0:
            _work(tasks[done:], prepare, reading, writing, memory)
        os.close(writing)
        with os.fdopen(reading, "rb", buffering=0) as answers:
            buffered = b""
            while done < len(tasks):
                while b"\n" not in buffered and select.select([answers], [], [], seconds)[0]:
                    if not (more := answers.read(65536)):
                        break
                    buffered += more
                else:
                    if b"\n" not in buffered:
                        os.kill(child, signal.SIGKILL)
                        yield "hang"
                        done += 1
                        break
                if b"\n" not in buffered:
                    yield "crash"
                    done += 1
                    break
                line, _, buffered = buffered.partition(b"\n")
                yield str(json.loads(line))
                done += 1
        with contextlib.suppress(ChildProcessError):
            os.waitpid(child, 0)


def _work(
    tasks: Sequence[Any], prepare: Callable[[], Callable[[Any], str]], reading: int, writing: int, memory: int
) -> None:
    """The child: nothing of it goes back into the program that was forked."""
    code = 1
    try:
        os.close(reading)
        with open("/proc/self/statm", encoding="ascii") as file:
            used = int(file.read().split()[0]) * os.sysconf("SC_PAGE_SIZE")
        resource.setrlimit(resource.RLIMIT_AS, (used + memory, used + memory))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        quiet = os.open(os.devnull, os.O_WRONLY)
        os.dup2(quiet, 1)
        os.dup2(quiet, 2)
        do = prepare()
        for task in tasks:
            os.write(writing, json.dumps(do(task)).encode() + b"\n")
        code = 0
    finally:
        os._exit(code)
