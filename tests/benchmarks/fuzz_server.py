"""Does a server stand an hour of bad input, while a good client is answered as ever?

    python -m tests.benchmarks.fuzz_server [--minutes 2] [--seed 0] > attacked.json

At once: requests that schemathesis makes of the server's OpenAPI document, requests that no good client sends
(`tests.benchmarks.malformed_requests`), clients that connect and say nothing, and a good client whose answers are compared
with those before it began. Wrong is: any status of 500 or more but 503 and 504, what the document does not describe, a
traceback in the log, an answer of the good client that is lost or another one, and memory that grows after the first
minute (in shorter runs the first third). One JSON document; exit code 1 where anything was wrong. The backbone is a
tiny random GPT-2, so that tasks of both kinds, and all operations, are there.
"""

import argparse
import asyncio
import json
import re
import subprocess
import sys
import time
from collections import Counter
from dataclasses import dataclass, field, replace
from pathlib import Path
from random import Random
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

from continual.backbones.backbone import load_backbone
from tests.benchmarks.load import Question, answers, posted, questions, session
from tests.benchmarks.malformed_requests import GARBAGE, Garbage
from tests.benchmarks.mixed import learned
from tests.benchmarks.run_log import quieten, say
from tests.benchmarks.server_process import Served, fill, opened, register, serving
from tests.helpers.tiny_models import tiny_model

CHECKS = "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance"
DELIBERATE = {"503", "504"}
PATIENCE = 2.0  # seconds that garbage waits for an answer
ATTACKERS = 8
SILENT = 32  # clients that say nothing
SAME = 1e-2  # of a probability, whatever else is in the batch, where matrix products may be of bfloat16
GROWTH = 24.0  # MiB that the allocator may take or give as it likes
STATUS = re.compile(rb"HTTP/1\.1 (\d{3})")
COUNTED = re.compile(r'continual_requests_total\{path="(.*)",status="(5\d\d)"\} (\S+)')


@dataclass
class Seen:
    """What came of it all. statuses: of garbage, by its name · lost, wrong: of the good client's requests."""

    statuses: Counter[str] = field(default_factory=Counter)
    asked: int = 0
    lost: list[str] = field(default_factory=list)
    wrong: list[Any] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    memory: list[tuple[float, float]] = field(default_factory=list)

    @property
    def growth(self) -> float:
        """MiB, from the end of the first minute, or third, to the last tenth."""
        last = self.memory[-1][0]
        begun = [mib for at, mib in self.memory if min(60, last / 3) <= at <= min(90, last / 2)]
        return median(mib for at, mib in self.memory if at >= 0.9 * last) - median(begun)


def home_of(folder: Path) -> tuple[Path, str]:
    """A home with four classifications and a generation."""
    home, name = folder / "home", str(folder / "gpt2")
    model, tokenizer = tiny_model("gpt2")
    model.save_pretrained(name)
    tokenizer.save_pretrained(name)
    backbone = load_backbone(name, device="cpu")
    fill(home, backbone, [f"task-{number}" for number in range(4)])
    writer = replace(learned(backbone, "lora", 9), head=None, kind={"name": "generation", "longest": 4})
    with opened(home) as registry:
        register(registry, backbone, "writer", writer, kind="generation")
    return home, name


async def attack(port: int, seen: Seen, draw: Random, until: float) -> None:
    while time.monotonic() < until:
        name = draw.choice([*GARBAGE])
        try:
            said = await asyncio.wait_for(sent(port, GARBAGE[name](draw)), PATIENCE + 5)
        except (OSError, TimeoutError) as error:
            said = [type(error).__name__]
        seen.statuses.update(f"{name} {status}" for status in said)


async def sent(port: int, garbage: Garbage) -> list[str]:
    """The statuses of all answers to it."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        size = -(-len(garbage.sent) // garbage.pieces)
        for at in range(0, len(garbage.sent), size):
            writer.write(garbage.sent[at : at + size])
            await writer.drain()
            if garbage.pieces > 1:
                await asyncio.sleep(0.05)
        if garbage.leaves:
            return ["left"]
        found = await asyncio.wait_for(reader.read(1 << 22), PATIENCE)
        return [status.decode() for status in STATUS.findall(found)] or ["closed"]
    finally:
        writer.transport.abort()


async def silence(port: int, until: float) -> None:
    """Clients that connect, say half a word, and hold on."""
    while time.monotonic() < until:
        held = [await asyncio.open_connection("127.0.0.1", port) for _ in range(SILENT)]
        for _, writer in held:
            writer.write(b"POST /v1/predict HT")
        await asyncio.sleep(min(20, max(until - time.monotonic(), 0.1)))
        for _, writer in held:
            writer.transport.abort()


async def good(url: str, seen: Seen, asked: list[Question], expected: list[list[dict[str, Any]]], until: float) -> None:
    async with session() as client:
        while time.monotonic() < until:
            number, began = seen.asked % len(asked), time.monotonic()
            seen.asked += 1
            try:
                status, body = await posted(client, url, asked[number])
            except OSError as error:
                seen.lost.append(repr(error))
                continue
            seen.seconds.append(time.monotonic() - began)
            if status != 200:
                seen.lost.append(body.decode())
            else:
                pairs = zip(json.loads(body)["predictions"], expected[number], strict=True)
                seen.wrong += [pair for pair in pairs if not same(*pair)]
            await asyncio.sleep(0.02)


def same(answer: dict[str, Any], before: dict[str, Any]) -> bool:
    return (answer["task"], answer["label"]) == (before["task"], before["label"]) and abs(
        answer["score"] - before["score"]
    ) < SAME


async def watch(served: Served, seen: Seen, until: float) -> None:
    began = time.monotonic()
    while time.monotonic() < until:
        seen.memory.append((round(time.monotonic() - began, 1), served.process.memory_info().rss / (1 << 20)))
        await asyncio.sleep(1)


async def at_once(served: Served, seconds: float, seed: int) -> Seen:
    seen, port = Seen(), int(served.url.rpartition(":")[2])
    asked = questions([f"task-{number}" for number in range(4)], 64, rows=4, seed=seed)
    expected = await answers(served.url, asked)
    until = time.monotonic() + seconds
    async with asyncio.TaskGroup() as group:
        group.create_task(good(served.url, seen, asked, expected, until))
        group.create_task(silence(port, until))
        group.create_task(watch(served, seen, until))
        for number in range(ATTACKERS):
            group.create_task(attack(port, seen, Random(seed + number), until))
    return seen


def schemathesis(url: str, folder: Path, seconds: float, seed: int) -> subprocess.Popen[str]:
    """It, at work until the time is over; what it finds is on its standard output."""
    command = [str(Path(sys.executable).parent / "schemathesis"), "run", f"{url}/openapi.json", "--checks", CHECKS]
    options = ["--max-time", str(max(int(seconds), 1)), "--seed", str(seed), "--continue-on-failure", "--no-shrink"]
    return subprocess.Popen(
        [*command, *options, "--no-color"], cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def counted(url: str) -> dict[str, float]:
    """Answers that say it was the server's fault, by operation and status, as the server itself counted them."""

    async def metrics() -> str:
        async with session() as client, client.get(f"{url}/metrics") as response:
            return await response.text()

    return {f"{path} {status}": float(count) for path, status, count in COUNTED.findall(asyncio.run(metrics()))}


def faults_of(found: dict[str, Any]) -> list[str]:
    """What was wrong, in words."""
    bad = [name for name in found["server_faults"] if name.split()[-1] not in DELIBERATE]
    wrong = {
        f"the server failed: {bad}": bool(bad),
        f"{found['tracebacks']} tracebacks": found["tracebacks"] > 0,
        f"{len(found['lost'])} requests of the good client lost": bool(found["lost"]),
        f"{len(found['wrong'])} answers to the good client wrong": bool(found["wrong"]),
        f"the memory grew by {found['growth']:.0f} MiB": found["growth"] > GROWTH,
        "what the document does not describe; see schemathesis": found["schemathesis_exit"] != 0,
    }
    return [text for text, is_so in wrong.items() if is_so]


def main() -> None:
    """Prints one JSON document."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=2.0)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    seconds = 60 * given.minutes
    with TemporaryDirectory(prefix="continual-attacked-") as folder:
        home, name = home_of(Path(folder))
        quieten()
        with serving(home, name) as served:
            tester = schemathesis(served.url, Path(folder), seconds, given.seed)
            seen = asyncio.run(at_once(served, seconds, given.seed))
            output, _ = tester.communicate()
            say(output)
            faults = counted(served.url)
        log = served.log.read_text()
    seen_ = {**vars(seen), "seconds": {"median": median(seen.seconds), "most": max(seen.seconds)}}
    found = {**seen_, "growth": seen.growth, "server_faults": faults, "tracebacks": log.count("Traceback")}
    found |= {"schemathesis_exit": tester.returncode, "log": log[-4000:]}
    found["faults"] = faults_of(found)
    print(json.dumps({"given": vars(given), **found}, indent=1))
    sys.exit(1 if found["faults"] else 0)


if __name__ == "__main__":
    main()
