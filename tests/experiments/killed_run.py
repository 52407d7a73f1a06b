"""``pyguide train`` that kills itself: run by test_kill_and_resume.py, and by its workers.

Arguments: an event ("step", "write" or "never"), its number, a file that counts the events
of all processes, and then the command line.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import time
from pathlib import Path

import torch

event, number, counter = sys.argv[1], int(sys.argv[2]), Path(sys.argv[3])


def kill_at(name: str) -> bool:
    """Whether this is the event to die at."""
    if name != event:
        return False
    with counter.open("ab") as file:  # One byte an event, appended atomically.
        file.write(b"x")
    return counter.stat().st_size >= number


def kill() -> None:
    parent = multiprocessing.parent_process()
    os.kill(os.getpid() if parent is None else parent.pid, signal.SIGKILL)
    time.sleep(60)  # A worker has to end by itself.


replace, step = os.replace, torch.optim.Adam.step


def dying_replace(source, destination):
    if kill_at("write"):
        os.truncate(source, os.stat(source).st_size // 2)
        kill()
    replace(source, destination)


def dying_step(self, *args, **kwargs):
    if kill_at("step"):
        kill()
    return step(self, *args, **kwargs)


os.replace = dying_replace
torch.optim.Adam.step = dying_step

if __name__ == "__main__":
    from pyguide.cli import main

    sys.exit(main(sys.argv[4:]))
