"""Hostile and damaged files, drawn at random: one function per kind of file.

Each writes its files into an empty folder, beside a copy of a sound home, and returns the commands to run on them.
"""

import json
import math
import os
import shutil
import sqlite3
import zipfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from copy import deepcopy
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from random import Random
from typing import Any

import pyarrow.json
import pyarrow.parquet
import yaml

from registry import Registry
from registry.reads.blob_references import referenced_blobs

PAGE = 4096  # bytes of a page of SQLite
TASKS = ("animals", "mood")
DELTAS = tuple(f"{task}@1" for task in TASKS)

ODD_PATHS = (
    *("/dev/zero", "/proc/self/mem", "~", "..", "**", "a" * 5000),
    *("http://127.0.0.1:9/rows.csv", "s3://nobody/rows.csv", "zip://a::/dev/zero", "file:///dev/zero"),
)
ODD_VALUES: Sequence[Any] = (
    *(None, True, -1, -1.5, 10**400, math.nan, math.inf, date(1, 1, 1)),
    *("", "\0", "\ud800", "a" * 100_000, b"\0\xff", "(" * 500, "{{ x }}", "{}" * 9),
    *([], {}, [[]], [None], ["a"] * 5000, {"": ""}, {1: 2}, {"path": {}}),
)
ODD_BYTES = (b'"', b"\0", b"\r", b"\n", b",", b"{", b"[" * 2000, b"9" * 400, b"\xff\xfe", b"NaN", b"1e999")
ODD_COLUMNS = (None, -1, 2**62, 1.5, "", "[]", "{}", "null", '"a"', "[" * 5000, "a" * 9000, b"\xff\0", "é\0")


@dataclass(frozen=True)
class World:
    """Sound files that damaged ones are made of.

    Attributes:
        folder: Their folder: rows of tasks, an exported adapter in `adapter`, a dump in `dump.zip`, texts in `texts`.
        stream: The stream that `home` learned, with absolute paths.
    """

    folder: Path
    stream: dict[str, Any]

    @property
    def home(self) -> Path:
        """The home that learned the stream."""
        return self.folder / "home"


@dataclass(frozen=True)
class Case:
    """Commands on hostile or damaged files.

    Attributes:
        what: What was damaged, and how.
        commands: The words of each command, without `--home`.
        intact: Deltas that `export` must still read afterwards.
        sound: Whether `verify --quick` must find nothing afterwards.
    """

    what: str
    commands: tuple[tuple[str, ...], ...]
    intact: tuple[str, ...] = ()
    sound: bool = False


Generator = Callable[[World, Path, Random], Case]


def odd_value(folder: Path, draw: Random) -> Any:
    """Draw a value that no key expects; `folder` gets what paths among them name."""
    pipe, odd_name = folder / "pipe", folder / "ü?#% *.csv"
    if not pipe.exists():
        os.mkfifo(pipe)
        odd_name.touch()
    return draw.choice([draw.choice(ODD_VALUES), str(draw.choice([pipe, odd_name, folder, *ODD_PATHS]))])


def with_odd_values(document: Any, folder: Path, draw: Random, *, protected: tuple[str, ...] = ()) -> Any:
    """Return a copy of a document in which one to three values, at any depth, are odd, missing or new.

    Args:
        document: A value of dicts and lists.
        folder: As for `odd_value`.
        draw: The source of chance.
        protected: Keys whose values stay.
    """
    changed = deepcopy(document)
    for _ in range(draw.randint(1, 3)):
        places = [place for place in _places(changed) if place[1] not in protected]
        parent, key = draw.choice(places)
        if draw.random() < 0.1:
            del parent[key]
        elif draw.random() < 0.1 and isinstance(parent, dict):
            parent[draw.choice(["odd", 1, None, "__class__", "path", "name"])] = odd_value(folder, draw)
        else:
            parent[key] = odd_value(folder, draw)
    return changed


def _places(value: Any) -> list[tuple[Any, Any]]:
    keys = [*value] if isinstance(value, dict) else [*range(len(value))] if isinstance(value, list) else []
    return [(value, key) for key in keys] + [place for key in keys for place in _places(value[key])]


def harmed(data: bytes, draw: Random) -> bytes:
    """Return bytes with one to four random damages."""
    for _ in range(draw.randint(1, 4)):
        start = draw.randint(0, len(data))
        end = min(len(data), start + draw.choice([1, 1, 4, 64, 4096]))
        size = end - start
        inserted = draw.choice([draw.randbytes(size), b"", bytes(size), data[start:end] * 2, draw.choice(ODD_BYTES)])
        data = data[:start] + inserted + data[end:]
    return data[: draw.randint(0, len(data))] if draw.random() < 0.1 else data


BOMB = "a0: &a0 [x, x]\n" + "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 40))
TEXTS: Mapping[str, bytes] = {
    "alias bomb": BOMB.encode(),
    "merge bomb": BOMB.replace("[x, x]", "{x: 1}").replace("[", "{<<: [").replace("]", "]}").encode(),
    "depth": b"name: " + b"[" * 100_000,
    "depth of keys": b"? " * 50_000,
    "depth of indents": b"".join(b" " * i + b"a:\n" for i in range(3000)),
    "holds itself": b"name: &a [*a]\ntasks: *a\n",
    "object": b"name: !!python/object/apply:os.system [exit 7]\ntasks: []\n",
    "digits": b"name: x\nseed: " + b"9" * 100_000,
    "float": b"name: x\nseed: 1e" + b"9" * 1000,
    "dates": b"name: 2001-99-99\ntasks: 2001-13-01 99:99:99\n",
    "repeated": b"name: x\nname: y\n",
    "documents": b"name: x\n---\nname: y\n",
    "UTF-16": "name: x\ntasks: []\n".encode("utf-16"),
    "NUL": b"name: \0\n",
    "tabs": b"name:\tx\n\ttasks: []\n",
    "17 MB": b"# " + b"x" * 17_000_000,
    "binary": bytes(range(256)),
    "empty": b"",
    "set": b"name: !!set {a, b}\ntasks: !!omap [a: 1]\n",
    "keys": b"{[a]: 1, {b: 1}: 2, !!binary aGk=: 3}",
}


def streams(world: World, folder: Path, draw: Random) -> Case:
    """Write a stream or task file."""
    file = folder / "stream.yaml"
    command = draw.choice(["run", "learn"])
    document = world.stream if command == "run" else {**world.stream["tasks"][0], **_defaults(world)}
    what = draw.choice(["values", "values", "bytes", "text", "path"])
    if what == "values":
        file.write_bytes(
            yaml.dump(with_odd_values(document, folder, draw), allow_unicode=True).encode(errors="replace")
        )
    elif what == "bytes":
        file.write_bytes(harmed(yaml.safe_dump(document).encode(), draw))
    elif what == "text":
        what = draw.choice([*TEXTS])
        file.write_bytes(TEXTS[what])
    else:
        what = str(odd_value(folder, draw)).replace("\0", "0").encode(errors="replace").decode()
        file = Path(what if len(what) < 6000 else what[:6000])
    return Case(f"{command}: {what[:80]}", ((command, str(file), "--device", "cpu"),), sound=True)


def _defaults(world: World) -> dict[str, Any]:
    return {key: world.stream[key] for key in ("backbone", "budget", "method")}


def data(world: World, folder: Path, draw: Random) -> Case:
    """Write damaged rows of a task as CSV, JSON lines or Parquet, for its train or its test split."""
    form, split = draw.choice(["csv", "json", "parquet"]), draw.choice(["train", "test"])
    sound = world.folder / "mood" / f"{split}.jsonl"
    file = folder / f"rows.{form}"
    if form == "json":
        file.write_bytes(sound.read_bytes())
    else:
        table = pyarrow.json.read_json(sound)
        pyarrow.parquet.write_table(table, file) if form == "parquet" else table.to_pandas().to_csv(file, index=False)
    file.write_bytes(harmed(file.read_bytes(), draw))
    task = deepcopy(world.stream["tasks"][TASKS.index("mood")])
    splits = {"train", split}
    files = {name: str(world.folder / "mood" / f"{name}.{_EXTENSIONS[form]}") for name in splits} | {split: str(file)}
    task["source"] = {"path": form, "data_files": files}
    (folder / "task.yaml").write_text(yaml.safe_dump(task | {"name": "new"} | _defaults(world)))
    command = ("learn", str(folder / "task.yaml"), "--device", "cpu")
    return Case(f"{form}, {split}", (command,), sound=True)


_EXTENSIONS = {"csv": "csv", "json": "jsonl", "parquet": "parquet"}


def adapters(world: World, folder: Path, draw: Random) -> Case:
    """Write an adapter of PEFT with one damaged file."""
    adapter = folder / "adapter"
    shutil.copytree(world.folder / "adapter", adapter)
    file = draw.choice(sorted(adapter.iterdir()))
    if file.suffix == ".json" and draw.random() < 0.7:
        _write_odd_values(file, folder, draw)
    elif draw.random() < 0.1:
        file.unlink()
        replace_by_no_file(file, draw.choice(["folder", "pipe", "device"]))
    elif file.suffix == ".safetensors" and draw.random() < 0.5:
        content = file.read_bytes()
        size = int.from_bytes(content[:8], "little")
        header = draw.choice([harmed(content[8 : 8 + size], draw), _odd_header(content[8 : 8 + size], folder, draw)])
        file.write_bytes(len(header).to_bytes(8, "little") + header + content[8 + size :])
    else:
        file.write_bytes(harmed(file.read_bytes(), draw))
    command = ("import", str(adapter), "--task", "mood", "--device", "cpu")
    return Case(file.name, (command,), sound=True)


def replace_by_no_file(place: Path, what: str) -> None:
    """Put a folder, a pipe that nobody writes to, or a device without end in the place of a file."""
    if what == "folder":
        place.mkdir()
    elif what == "pipe":
        os.mkfifo(place)
    else:
        place.symlink_to("/dev/zero")


def _odd_header(header: bytes, folder: Path, draw: Random) -> bytes:
    return json.dumps(with_odd_values(json.loads(header), folder, draw), default=str).encode()


def dumps(world: World, folder: Path, draw: Random) -> Case:
    """Write a dump that is damaged as a whole, or in one member."""
    file = folder / "dump.zip"
    if draw.random() < 0.4:
        file.write_bytes(harmed((world.folder / "dump.zip").read_bytes(), draw))
        what = "bytes"
    else:
        with zipfile.ZipFile(world.folder / "dump.zip") as sound, zipfile.ZipFile(file, "w") as damaged:
            what = draw.choice(sound.namelist())
            for name in sound.namelist():
                content = sound.read(name)
                damaged.writestr(name, _harmed_member(content, folder, draw) if name == what else content)
    home = folder / "restored"
    commands = (("db", "restore", str(file), "--home", str(home)), ("verify", "--quick", "--home", str(home)))
    return Case(what, commands)


def _harmed_member(content: bytes, folder: Path, draw: Random) -> bytes:
    """Return a member of a dump with damaged bytes, or with odd values in one of its JSON lines."""
    lines = content.splitlines()
    try:
        number = draw.randrange(len(lines))
        lines[number] = json.dumps(with_odd_values(json.loads(lines[number]), folder, draw), default=str).encode()
    except (ValueError, IndexError):
        return harmed(content, draw)
    return draw.choice([harmed(content, draw), b"\n".join(lines)])


def registries(world: World, folder: Path, draw: Random) -> Case:
    """Damage a registry's SQLite file: a page, some bytes, every k-th byte, its end, or a row's value."""
    file = folder / "home" / "registry.db"
    content = bytearray(file.read_bytes())
    what = draw.choice(["page", "page", "bytes", "every k-th byte", "end", "value", "value"])
    if what == "page":
        start = PAGE * draw.randrange(len(content) // PAGE)
        content[start : start + PAGE] = draw.choice([draw.randbytes(PAGE), bytes(PAGE), b"\xff" * PAGE])
    elif what == "bytes":
        for _ in range(draw.choice([1, 8, 64])):
            content[draw.randrange(len(content))] = draw.randrange(256)
    elif what == "every k-th byte":
        step = draw.choice([16, 97, PAGE])
        for place in range(draw.randrange(step), len(content), step):
            content[place] = draw.randrange(256)
    elif what == "end":
        del content[draw.randrange(len(content)) :]
    file.write_bytes(content)
    if what == "value":
        what = _write_odd_value(file, draw)
    text, dump = str(world.folder / "texts"), str(folder / "dump.zip")
    commands = (
        ("tasks",),
        ("deltas",),
        ("report",),
        ("lineage", "mood@1"),
        ("similar", "mood"),
        ("query", "best"),
        ("query", "changes"),
        ("predict", text, "--device", "cpu"),
        ("predict", text, "--task", "mood", "--device", "cpu"),
        ("db", "dump", dump),
        ("verify", "--quick"),
        ("verify", "--device", "cpu"),
        ("export", "mood@1", str(folder / "exported"), "--device", "cpu"),
    )
    return Case(what, tuple(draw.sample(commands, 5)))


def _write_odd_value(file: Path, draw: Random) -> str:
    """Write an odd value into one column of one row, which SQLite's own check does not notice; describe it."""
    with closing(sqlite3.connect(file)) as connection:
        tables = "SELECT name FROM sqlite_master WHERE type = 'table' AND name NOT LIKE 'sqlite_%'"
        filled = [
            table
            for (table,) in connection.execute(tables)
            if connection.execute(f'SELECT count(*) FROM "{table}"').fetchone()[0]
        ]
        table = draw.choice(filled)
        column = draw.choice([row[1] for row in connection.execute(f'PRAGMA table_info("{table}")')])
        value = draw.choice(ODD_COLUMNS)
        connection.execute("PRAGMA foreign_keys = OFF")
        connection.execute("PRAGMA ignore_check_constraints = ON")
        try:
            connection.execute(f'UPDATE "{table}" SET "{column}" = ? WHERE rowid = 1', (value,))
            connection.commit()
        except sqlite3.DatabaseError:  # NOT NULL or UNIQUE: SQLite refuses it
            return f"{table}.{column} unchanged"
    return f"{table}.{column} = {value!r:.40}"


def blobs(world: World, folder: Path, draw: Random) -> Case:
    """Damage or remove one blob of a home."""
    home = folder / "home"
    with (
        Registry.open(f"sqlite:///{home}/registry.db", str(home / "blobs")) as registry,
        registry.read_session() as session,
    ):
        owners = [(owner, Path(registry.blobs.path(digest))) for owner, digest in referenced_blobs(session)]
    owner, place = draw.choice(owners)
    damaged = {name.split(",")[0] for name, other in owners if other == place}
    content = place.read_bytes()
    place.unlink()
    what = draw.choice(["missing", "bytes", "bytes", "empty", "folder", "short"])
    if what == "folder":
        place.mkdir()
    elif what != "missing":
        shortened = content[: draw.randrange(len(content))]
        place.write_bytes({"bytes": harmed(content, draw), "empty": b"", "short": shortened}[what])
    text = str(world.folder / "texts")
    commands = (
        ("verify", "--device", "cpu"),
        ("report",),
        ("similar", "mood"),
        ("predict", text, "--device", "cpu"),
        ("predict", text, "--task", "mood", "--device", "cpu"),
        *(("export", delta, str(folder / f"exported {delta}"), "--device", "cpu") for delta in sorted(damaged)),
        ("db", "dump", str(folder / "dump.zip")),
        ("gc",),
    )
    return Case(f"{owner}: {what}", commands, intact=tuple(delta for delta in DELTAS if delta not in damaged))


def backbones(world: World, folder: Path, draw: Random) -> Case:
    """Write the folder of a backbone with one damaged file."""
    backbone = folder / "backbone"
    shutil.copytree(world.folder / "backbone", backbone)
    file = draw.choice(sorted(backbone.iterdir()))
    if file.suffix == ".json" and draw.random() < 0.7:
        _write_odd_values(file, folder, draw)
    else:
        file.write_bytes(harmed(file.read_bytes(), draw))
    command = ("verify", "--backbone", str(backbone), "--device", "cpu")
    return Case(file.name, (command,), sound=True)


def _write_odd_values(file: Path, folder: Path, draw: Random) -> None:
    """Replace some values of a JSON file."""
    changed = with_odd_values(json.loads(file.read_bytes()), folder, draw)
    file.write_bytes(json.dumps(changed, default=str).encode())


KINDS: Mapping[str, Generator] = {
    "streams": streams,
    "data": data,
    "adapters": adapters,
    "dumps": dumps,
    "backbones": backbones,
    "registries": registries,
    "blobs": blobs,
}
