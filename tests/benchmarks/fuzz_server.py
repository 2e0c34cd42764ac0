"""Robustness of the server under an hour of invalid input, while a valid client is answered.

    python -m tests.benchmarks.fuzz_server [--minutes 2] [--seed 0] > attacked.json

Concurrently: requests that schemathesis generates from the server's OpenAPI document, malformed requests
(`tests.benchmarks.malformed_requests`), clients that connect and stay silent, and a valid client whose answers are
compared with those before the attack. Faults are: a status of 500 or more but 503 and 504, a response that the document
does not describe, a traceback in the log, a lost or different answer to the valid client, and memory growth after the
first minute (in shorter runs the first third). One JSON document is printed; the exit code is 1 for any fault. The
backbone is a tiny random GPT-2, so that both kinds of tasks and all operations are covered.
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
SAME = 1e-2  # tolerance of a probability: in bfloat16 it depends on the rest of the batch
GROWTH = 24.0  # MiB that the allocator may take or give as it likes
STATUS = re.compile(rb"HTTP/1\.1 (\d{3})")
COUNTED = re.compile(r'continual_requests_total\{path="(.*)",status="(5\d\d)"\} (\S+)')


@dataclass
class Outcome:
    """The results of an attack.

    Attributes:
        statuses: Statuses of malformed requests, by the request's name.
        asked: Requests of the valid client.
        lost: Requests of the valid client without an answer.
        wrong: Answers to the valid client that differ from before.
        seconds: Seconds of each of its answers.
        memory: Resident MiB of the server by seconds since the start.
    """

    statuses: Counter[str] = field(default_factory=Counter)
    asked: int = 0
    lost: list[str] = field(default_factory=list)
    wrong: list[Any] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    memory: list[tuple[float, float]] = field(default_factory=list)

    @property
    def growth(self) -> float:
        """Memory growth in MiB from the end of the first minute, or third, to the last tenth."""
        last = self.memory[-1][0]
        first_part = [mib for moment, mib in self.memory if min(60, last / 3) <= moment <= min(90, last / 2)]
        return median(mib for moment, mib in self.memory if moment >= 0.9 * last) - median(first_part)


def home_of(folder: Path) -> tuple[Path, str]:
    """Create a home with four classification tasks and a generation task; its path and the backbone's."""
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


async def attack(port: int, outcome: Outcome, draw: Random, until: float) -> None:
    while time.monotonic() < until:
        name = draw.choice([*GARBAGE])
        try:
            statuses = await asyncio.wait_for(sent(port, GARBAGE[name](draw)), PATIENCE + 5)
        except (OSError, TimeoutError) as error:
            statuses = [type(error).__name__]
        outcome.statuses.update(f"{name} {status}" for status in statuses)


async def sent(port: int, garbage: Garbage) -> list[str]:
    """Send a malformed request and return the statuses of all answers."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        size = -(-len(garbage.sent) // garbage.pieces)
        for offset in range(0, len(garbage.sent), size):
            writer.write(garbage.sent[offset : offset + size])
            await writer.drain()
            if garbage.pieces > 1:
                await asyncio.sleep(0.05)
        if garbage.leaves:
            return ["left"]
        received = await asyncio.wait_for(reader.read(1 << 22), PATIENCE)
        return [status.decode() for status in STATUS.findall(received)] or ["closed"]
    finally:
        writer.transport.abort()


async def silence(port: int, until: float) -> None:
    """Keep clients connected that send half a line."""
    while time.monotonic() < until:
        connections = [await asyncio.open_connection("127.0.0.1", port) for _ in range(SILENT)]
        for _, writer in connections:
            writer.write(b"POST /v1/predict HT")
        await asyncio.sleep(min(20, max(until - time.monotonic(), 0.1)))
        for _, writer in connections:
            writer.transport.abort()


async def good(
    url: str, outcome: Outcome, requests: list[Question], expected: list[list[dict[str, Any]]], until: float
) -> None:
    async with session() as client:
        while time.monotonic() < until:
            number, start = outcome.asked % len(requests), time.monotonic()
            outcome.asked += 1
            try:
                status, body = await posted(client, url, requests[number])
            except OSError as error:
                outcome.lost.append(repr(error))
                continue
            outcome.seconds.append(time.monotonic() - start)
            if status != 200:
                outcome.lost.append(body.decode())
            else:
                pairs = zip(json.loads(body)["predictions"], expected[number], strict=True)
                outcome.wrong += [pair for pair in pairs if not same(*pair)]
            await asyncio.sleep(0.02)


def same(answer: dict[str, Any], before: dict[str, Any]) -> bool:
    return (answer["task"], answer["label"]) == (before["task"], before["label"]) and abs(
        answer["score"] - before["score"]
    ) < SAME


async def watch(served: Served, outcome: Outcome, until: float) -> None:
    start = time.monotonic()
    while time.monotonic() < until:
        outcome.memory.append((round(time.monotonic() - start, 1), served.process.memory_info().rss / (1 << 20)))
        await asyncio.sleep(1)


async def at_once(served: Served, seconds: float, seed: int) -> Outcome:
    outcome, port = Outcome(), int(served.url.rpartition(":")[2])
    requests = questions([f"task-{number}" for number in range(4)], 64, rows=4, seed=seed)
    expected = await answers(served.url, requests)
    until = time.monotonic() + seconds
    async with asyncio.TaskGroup() as group:
        group.create_task(good(served.url, outcome, requests, expected, until))
        group.create_task(silence(port, until))
        group.create_task(watch(served, outcome, until))
        for number in range(ATTACKERS):
            group.create_task(attack(port, outcome, Random(seed + number), until))
    return outcome


def schemathesis(url: str, folder: Path, seconds: float, seed: int) -> subprocess.Popen[str]:
    """Start schemathesis for so many seconds; its findings are on its standard output."""
    command = [str(Path(sys.executable).parent / "schemathesis"), "run", f"{url}/openapi.json", "--checks", CHECKS]
    options = ["--max-time", str(max(int(seconds), 1)), "--seed", str(seed), "--continue-on-failure", "--no-shrink"]
    return subprocess.Popen(
        [*command, *options, "--no-color"], cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def counted(url: str) -> dict[str, float]:
    """Return the server's own counts of 5xx answers, by operation and status."""

    async def metrics() -> str:
        async with session() as client, client.get(f"{url}/metrics") as response:
            return await response.text()

    return {f"{path} {status}": float(count) for path, status, count in COUNTED.findall(asyncio.run(metrics()))}


def faults_of(document: dict[str, Any]) -> list[str]:
    """Return a description of every fault."""
    bad = [name for name in document["server_faults"] if name.split()[-1] not in DELIBERATE]
    faults = {
        f"the server failed: {bad}": bool(bad),
        f"{document['tracebacks']} tracebacks": document["tracebacks"] > 0,
        f"{len(document['lost'])} requests of the good client lost": bool(document["lost"]),
        f"{len(document['wrong'])} answers to the good client wrong": bool(document["wrong"]),
        f"the memory grew by {document['growth']:.0f} MiB": document["growth"] > GROWTH,
        "what the document does not describe; see schemathesis": document["schemathesis_exit"] != 0,
    }
    return [text for text, is_so in faults.items() if is_so]


def main() -> None:
    """Print one JSON document."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=2.0)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    seconds = 60 * arguments.minutes
    with TemporaryDirectory(prefix="continual-attacked-") as folder:
        home, name = home_of(Path(folder))
        quieten()
        with serving(home, name) as served:
            tester = schemathesis(served.url, Path(folder), seconds, arguments.seed)
            outcome = asyncio.run(at_once(served, seconds, arguments.seed))
            output, _ = tester.communicate()
            say(output)
            faults = counted(served.url)
        log = served.log.read_text()
    fields = {**vars(outcome), "seconds": {"median": median(outcome.seconds), "most": max(outcome.seconds)}}
    document = {**fields, "growth": outcome.growth, "server_faults": faults, "tracebacks": log.count("Traceback")}
    document |= {"schemathesis_exit": tester.returncode, "log": log[-4000:]}
    document["faults"] = faults_of(document)
    print(json.dumps({"given": vars(arguments), **document}, indent=1))
    sys.exit(1 if document["faults"] else 0)


if __name__ == "__main__":
    main()
