"""Regular files alone: a pipe may never be written to, and a device may never end."""

import stat
from pathlib import Path


def regular_size(path: Path) -> int:
    """Return the bytes of a regular file, whose reading ends.

    Raises:
        OSError: It is a folder, a device or a pipe, or there is none.
        ValueError: The path holds a NUL.
    """
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):
        raise OSError(f"{'a folder' if stat.S_ISDIR(status.st_mode) else 'a device or a pipe'}, not a file")
    return status.st_size
