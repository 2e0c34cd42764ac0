"""The root of the project's error tree, and the two branches that this floor grows.

ContinualError          exit 1   something failed while running
└── InputError          exit 2   something that can be checked before training
    ├── StreamError              a stream or task file that cannot be read as one
    └── DataError                rows that are missing, or are not what the spec says
"""

from __future__ import annotations

from typing import ClassVar


class ContinualError(Exception):
    """Any failure that this project explains itself; `exit_code` is what the command line ends with."""

    exit_code: ClassVar[int] = 1


class InputError(ContinualError):
    """Something given by the user is wrong, found before anything was learned."""

    exit_code: ClassVar[int] = 2


class StreamError(InputError):
    """A stream or task file cannot be read as one."""


class DataError(InputError):
    """Rows are missing, or are not what the spec says."""
