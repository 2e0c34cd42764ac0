"""The root of the project's error tree, and the two branches that this package adds.

ContinualError          exit 1   something failed while running
└── InputError          exit 2   something that can be checked before training
    ├── StreamError              a stream or task file that cannot be parsed or validated
    └── DataError                rows that are missing, or do not match the spec
"""

from __future__ import annotations

from typing import ClassVar


class ContinualError(Exception):
    """Base of all errors that the project raises on purpose.

    Attributes:
        exit_code: Exit status of the command line for this error.
    """

    exit_code: ClassVar[int] = 1


class InputError(ContinualError):
    """Invalid input from the user, found before anything was learned."""

    exit_code: ClassVar[int] = 2


class StreamError(InputError):
    """A stream or task file cannot be parsed or validated."""


class DataError(InputError):
    """Rows are missing, or do not match the task's spec."""
