"""The page on installing, and the image: extras, contents and commands are those of this repository."""

import re
import shlex
import tomllib
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.cli import parse_command
from tests.helpers.paths import ROOT

PAGE = (ROOT / "docs" / "how-to" / "install.md").read_text(encoding="utf-8")
DOCKERFILE = (ROOT / "docs" / "examples" / "Dockerfile").read_text(encoding="utf-8").replace("\\\n", " ")
INSTRUCTIONS = [line.split(maxsplit=1) for line in DOCKERFILE.splitlines() if line and not line.startswith("#")]
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
EXTRAS = PROJECT["project"]["optional-dependencies"]
RUNS = re.findall(r"^docker run (.*)$", PAGE, flags=re.MULTILINE)


def arguments(name: str) -> list[str]:
    return [value for instruction, value in INSTRUCTIONS if instruction == name]


def test_the_table_lists_exactly_the_extras() -> None:
    section = PAGE.partition("## Which extras")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| `([a-z0-9]+)` \| (.+) \|$", section, flags=re.MULTILINE)
    assert sorted(name for name, _ in rows) == sorted(EXTRAS)
    assert all(reason for _, reason in rows)


def test_the_image_installs_extras_that_there_are() -> None:
    (default,) = (value.partition("=")[2] for value in arguments("ARG") if value.startswith("EXTRAS="))
    assert set(default.split(",")) <= EXTRAS.keys()
    named = re.findall(r"EXTRAS=([\w,]+)|\.\[([\w,]+)\]", PAGE)
    assert set(",".join("".join(pair) for pair in named).split(",")) <= EXTRAS.keys()
    lock = (ROOT / "constraints.txt").read_text(encoding="utf-8")
    assert len(re.findall(r"^torch==([^ ;]*)", lock, flags=re.MULTILINE)) == 1, "the build reads its version"


def test_the_image_runs_without_root_rights() -> None:
    names = [instruction for instruction, _ in INSTRUCTIONS]
    (user,) = arguments("USER")
    assert user not in ("root", "0")
    assert any(f" {user}" in command and "useradd" in command for command in arguments("RUN"))
    assert names.index("USER") < names.index("CMD")
    assert "RUN" not in names[names.index("USER") :]


def test_the_image_gets_what_is_installed_and_nothing_else() -> None:
    _, everything, *rules = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    assert everything == "*", "a clone may hold homes and secrets"
    copied = {rule.removeprefix("!").rstrip("/") for rule in rules if rule.startswith("!")}
    packages = {name for name in PROJECT["tool"]["setuptools"]["packages"]["find"]["include"] if "." not in name}
    assert copied == packages | {"pyproject.toml", "constraints.txt", PROJECT["project"]["readme"]}
    assert all((ROOT / name).exists() for name in copied)
    for sources in arguments("COPY"):
        words = [word for word in sources.split()[:-1] if not word.startswith("--from")]
        assert all(word in (".", "/opt/venv") or word in copied for word in words)


@pytest.mark.parametrize("line", RUNS)
def test_the_commands_of_the_page_are_valid(line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT / "docs" / "examples")
    words = shlex.split(line)
    options, command = words[: words.index("continual")], words[words.index("continual") + 2 :]
    assert "--rm" in options
    parse_command(command)


def test_the_image_runs_the_demo_of_make() -> None:
    makefile = Path(ROOT / "Makefile").read_text(encoding="utf-8")
    (demo,) = re.findall(r"^demo:.*\n\t\$\(BIN\)/(.*)$", makefile, flags=re.MULTILINE)
    assert any(line.endswith(f"continual {demo}") for line in RUNS)
