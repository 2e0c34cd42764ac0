"""The results of a study so far: one line of JSON per trial, in a file under the home folder.

Why a file and not a table of the registry: the registry stores what was learned and what serves, and a study's trials
are neither; each study's outcomes have their own fields; and a line that is appended and flushed to the disk survives a
kill of the process without a transaction. A line that was only partly written is not valid JSON; it is skipped, and its
trial run again.
"""

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from continual.backbones.backbone import Backbone
from continual.experiments.studies.trial import StudyTrial, digest

FOLDER = "studies"
DIGITS = 12  # hexadecimal digits of the digest in a file's name


class TrialStore:
    """The results in one file; a result is on the disk before `add` returns."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._outcomes = dict(_read_outcomes(file.read_bytes())) if file.exists() else {}

    @classmethod
    def open(cls, home: Path, study: str, backbone: Backbone) -> "TrialStore":
        """Open the store of a study on a backbone; it is shared by all streams, tasks and seeds."""
        backbone_digest = digest([backbone.fingerprint, backbone.device.type, str(backbone.dtype)])
        return cls(home / FOLDER / f"{study}-{backbone_digest[:DIGITS]}.jsonl")

    def get(self, trial: StudyTrial) -> Mapping[str, Any] | None:
        """Return the outcome of a trial, or None where it has not been run."""
        return self._outcomes.get(trial.key)

    def add(self, trial: StudyTrial, outcome: Mapping[str, Any]) -> None:
        """Store the outcome of a trial."""
        self._outcomes[trial.key] = outcome
        line = json.dumps({"key": trial.key, "asked": trial.to_json(), "outcome": outcome})
        self._file.parent.mkdir(parents=True, exist_ok=True)
        with self._file.open("ab+") as file:
            # A line that a killed process left unfinished must not swallow this one.
            file.write(f"{_missing_newline(file)}{line}\n".encode())
            file.flush()
            os.fsync(file.fileno())


def _missing_newline(file: BinaryIO) -> str:
    """Return a newline where the last line has none."""
    if file.seek(0, os.SEEK_END) == 0:
        return ""
    file.seek(-1, os.SEEK_END)
    return "" if file.read() == b"\n" else "\n"


def _read_outcomes(data: bytes) -> Iterator[tuple[str, Mapping[str, Any]]]:
    for line in data.splitlines():
        try:
            record = json.loads(line)
            yield record["key"], record["outcome"]
        except (ValueError, KeyError, TypeError):
            continue
