"""Identities of the processes that hold positions: `host:pid:start`.

`start`, the process's start time, distinguishes it from a later process with the same id.
"""

import os
import socket
import sys
from pathlib import Path


def current_process_id() -> str:
    """Return the holder id of this process."""
    return f"{socket.gethostname()}:{os.getpid()}:{_process_start(os.getpid()) or ''}"


def is_alive(holder: str, *, lease_valid: bool) -> bool:
    """Return True if the process `holder` still runs.

    On this host the process table decides, elsewhere and on Windows the lease. This process itself is always alive,
    even if it no longer works on a position that it holds: there the lease decides too.

    Args:
        holder: `host:pid:start`.
        lease_valid: True if the holder's lease has not expired.
    """
    host, pid, start = [*holder.rsplit(":", 2), "", ""][:3]
    here = host == socket.gethostname() and sys.platform != "win32"  # `os.kill` would send Ctrl-C there
    if here and pid.isdecimal() and holder != current_process_id():
        return _is_running(int(pid), start=start)
    return lease_valid


def _is_running(pid: int, *, start: str) -> bool:
    if Path("/proc/self/stat").exists():
        actual_start = _process_start(pid)
        return actual_start is not None and start in ("", actual_start)
    try:
        os.kill(pid, 0)
    except PermissionError:
        return True  # another user's process
    except (ProcessLookupError, OverflowError):
        return False
    return True


def _process_start(pid: int) -> str | None:
    """Return a running process's start in ticks since boot; None if it is gone or there is no /proc."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    fields = stat.rpartition(")")[2].split()  # the process name may contain spaces and brackets
    state, start = fields[0], fields[19]
    return None if state in "ZX" else start  # a zombie has ended, but its parent has not reaped it
