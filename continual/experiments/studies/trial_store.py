"""What a study has found so far: one line of JSON for each trial, in a file under the home.

A file and no table of the registry: the registry says what was learned and what serves, and a study's trials are
neither; each study's have a shape of their own; and a line that is appended and flushed to the disk outlives whatever
kills the process, with no transaction to take part in. A line that was torn is no JSON, is passed over, and its trial
made again.
"""

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from continual.backbones.backbone import Backbone
from continual.experiments.studies.trial import StudyTrial, digest

FOLDER = "studies"
DIGITS = 12  # of the digest in a file's name


class TrialStore:
    """The trials of one file; a finished one is on the disk before `add` returns."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._outcomes = dict(_lines(file.read_bytes())) if file.exists() else {}

    @classmethod
    def open(cls, home: Path, study: str, backbone: Backbone) -> "TrialStore":
        """The ledger of a study on a backbone: trials of all streams, tasks and seeds are found again in it."""
        place = digest([backbone.fingerprint, backbone.device.type, str(backbone.dtype)])
        return cls(home / FOLDER / f"{study}-{place[:DIGITS]}.jsonl")

    def get(self, trial: StudyTrial) -> Mapping[str, Any] | None:
        """What came of a trial; None where it is still to be made."""
        return self._outcomes.get(trial.key)

    def add(self, trial: StudyTrial, outcome: Mapping[str, Any]) -> None:
        """Keep what came of a trial."""
        self._outcomes[trial.key] = outcome
        line = json.dumps({"key": trial.key, "asked": trial.to_json(), "outcome": outcome})
        self._file.parent.mkdir(parents=True, exist_ok=True)
        with self._file.open("ab+") as file:
            # A line that a killed process left unfinished must not swallow this one.
            file.write(f"{_line_end(file)}{line}\n".encode())
            file.flush()
            os.fsync(file.fileno())


def _line_end(file: BinaryIO) -> str:
    """What ends the last line, where it has no end."""
    if file.seek(0, os.SEEK_END) == 0:
        return ""
    file.seek(-1, os.SEEK_END)
    return "" if file.read() == b"\n" else "\n"


def _lines(data: bytes) -> Iterator[tuple[str, Mapping[str, Any]]]:
    for line in data.splitlines():
        try:
            found = json.loads(line)
            yield found["key"], found["outcome"]
        except (ValueError, KeyError, TypeError):
            continue
