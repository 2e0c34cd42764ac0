"""Paths of the project's files, and of the data that may lie beside a checkout."""

from pathlib import Path

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
FIXTURES = ROOT / "tests" / "fixtures"
PROCESSES = ROOT / "tests" / "helpers" / "processes"
SHARED = ROOT.parent / "shared"
