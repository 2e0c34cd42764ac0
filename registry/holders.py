"""Who holds a position: `host:pid:start`, where `start` tells a process from a later one with its number."""

import os
import socket
from pathlib import Path


def current_process_id() -> str:
    """The holder that this process is."""
    return f"{socket.gethostname()}:{os.getpid()}:{_start(os.getpid()) or ''}"


def is_alive(holder: str, *, leased: bool) -> bool:
    """Whether `holder` still works: on this host its process is asked, otherwise its lease tells.

    This very process is alive, which does not say that what it once held is still being worked on.
    """
    host, pid, start = [*holder.rsplit(":", 2), "", ""][:3]
    if host == socket.gethostname() and pid.isdecimal() and holder != current_process_id():
        return _runs(int(pid), start=start)
    return leased


def _runs(pid: int, *, start: str) -> bool:
    if Path("/proc/self/stat").exists():
        found = _start(pid)
        return found is not None and start in ("", found)
    try:
        os.kill(pid, 0)
    except PermissionError:
        return True  # somebody else's process, but a process
    except (ProcessLookupError, OverflowError):
        return False
    return True


def _start(pid: int) -> str | None:
    """The start time of a running process in ticks since boot; None where there is none, or no /proc."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    fields = stat.rpartition(")")[2].split()  # the name before may hold spaces and brackets
    state, start = fields[0], fields[19]
    return None if state in "ZX" else start  # a zombie has ended, though its parent has not looked yet
