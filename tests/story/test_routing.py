"""Routing through the public face: what is read, what is kept, what is refused."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from tiny import TASKS, open_home, rows_of, write_stream, write_task

from continual import Learner, read_stream
from continual.cli import visible  # noqa: F401  (the package must import without torch)
from continual.features import tokenize
from continual.frozen import frozen
from continual.routing import Statistics
