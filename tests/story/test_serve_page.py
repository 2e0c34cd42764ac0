"""The server's page in a browser: filled, used by keyboard, at any width, with and without a key."""

import base64
import hashlib
import html
import json
import os
import re
import shutil
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from starlette.responses import HTMLResponse
from starlette.types import Receive, Scope, Send

from continual import Learner, read_stream
from continual.serve import ChampionServer, bind_socket, create_app, create_server
from continual.settings import resolve_locations
from registry import NothingToDo, Registry, add_key, promote_delta, revoke_key
from tests.helpers.paths import FIXTURES
from tests.helpers.tiny_tasks import rows_of, write_task

METHODS = {"animals": "lora", "mood": "ia3"}
BUDGET = {"epochs": 1, "batch_size": 16, "learning_rate": 0.01, "max_length": 32}
WIDTHS = (360, 1200)
BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
QUIET = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"),
    *("--disable-background-networking", "--disable-component-update"),
)
ASKED = ("--enable-logging=stderr", "--dump-dom", "--virtual-time-budget=20000")
CONTROLS = ["Text", "Second text only for tasks of pairs", "Task", "Ask", "Filter", "animals"]
CONTROLS += ["Try this task", "Versions", "mood"]  # of the task that is open, and the next
# Uses the page in each of its frames, and writes its findings into the document that the browser prints.
DRIVER = (FIXTURES / "serve_page.html").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def learner(bert_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Learner]:
    """A learner with two tasks, one of them with two versions."""
    folder = tmp_path_factory.mktemp("page")
    entries = [write_task(folder, task) | {"method": method} for task, method in METHODS.items()]
    places = resolve_locations(folder / "home", {})
    registry = Registry.open(places.registry, places.blobs)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path_factory.mktemp("cache")))
        with Learner.open(str(bert_folder), registry, device="cpu", dtype="float32") as learner:
            for name, chosen in {"both": entries, "again": entries[:1]}.items():
                stream = {"name": name, "budget": BUDGET, "tasks": chosen}
                (folder / f"{name}.yaml").write_text(yaml.safe_dump(stream))
                assert learner.run(read_stream(folder / f"{name}.yaml")) == {}
            with suppress(NothingToDo):  # it serves already where it is no worse
                promote_delta(registry, "animals@2", reason="the page shows its lineage")
            yield learner


@contextmanager
def served(learner: Learner, *, local: bool) -> Iterator[str]:
    """The address of a server, which also serves the browser driver of these tests."""
    app = create_app(ChampionServer(learner.backbone, learner.registry), local=local)

    async def app_and_driver(scope: Scope, receive: Receive, send: Send) -> None:
        driver = scope["type"] == "http" and scope["path"] == "/driver"
        await (HTMLResponse(DRIVER) if driver else app)(scope, receive, send)

    with bind_socket("127.0.0.1", 0) as listener:
        server = create_server(app_and_driver)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join()


@pytest.fixture(scope="module")
def address(learner: Learner) -> Iterator[str]:
    with served(learner, local=True) as address:
        yield address


@dataclass(frozen=True)
class Shown:
    """The page as a browser showed it.

    Attributes:
        scheme: The colour scheme.
        frames: The driver's findings by width of the frame.
        console: The browser's log.
        label: The label of the text, by HTTP.
    """

    scheme: str
    frames: dict[str, dict[str, Any]]
    console: str
    label: str


def used(url: str, folder: Path, *, scheme: str = "light", **settings: Any) -> tuple[dict[str, Any], str]:
    """Return the driver's findings by width of the frame, and the browser's log."""
    if BROWSER is None:
        pytest.skip("no chromium, chromium-browser or google-chrome is installed")
    colours = f"--blink-settings=preferredColorScheme={0 if scheme == 'dark' else 1}"
    page_url = f"{url}/driver#{httpx.QueryParams(told=json.dumps({'widths': WIDTHS, **settings}))}"
    words = [BROWSER, *QUIET, *ASKED, colours, f"--user-data-dir={folder / 'profile'}", page_url]
    environment = {"PATH": os.environ["PATH"], "HOME": str(folder)}
    completed = subprocess.run(words, capture_output=True, text=True, timeout=120, env=environment, check=True)
    matches = re.findall(r'<pre id="seen">(.*?)</pre>', completed.stdout, flags=re.DOTALL)
    assert matches, f"the driver did not come to its end: {completed.stderr}"
    return json.loads(html.unescape(matches[0])), completed.stderr


def test_the_content_security_policy_lists_the_pages_scripts(address: str) -> None:
    answer = httpx.get(address)
    policy = dict(rule.split(maxsplit=1) for rule in answer.headers["content-security-policy"].split("; "))
    assert (policy["default-src"], policy["connect-src"]) == ("'none'", "'self'")
    for tag in ("script", "style"):
        (inline,) = re.findall(rf"<{tag}>(.*?)</{tag}>", answer.text, flags=re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(inline.encode()).digest()).decode()
        assert policy[f"{tag}-src"] == f"'sha256-{digest}'"
        assert len(inline) > 1000
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert not re.findall(r"innerHTML|https?://(?!www\.w3\.org/2000/svg)|\b(?:src|on\w+)=|url\(", answer.text)


def test_the_load_counts_what_was_answered(address: str) -> None:
    before = httpx.get(f"{address}/v1/load").json()
    rows = [{"text": text} for text in rows_of("mood", 5).texts]
    assert httpx.post(f"{address}/v1/predict", json={"rows": rows}).is_success
    for _ in range(150):
        after = httpx.get(f"{address}/v1/load").json()
        if sum(after["inputs_by_second"]) == sum(before["inputs_by_second"]) + len(rows):
            break
        time.sleep(0.02)  # its second is still running
    else:
        pytest.fail(f"the inputs are not among {after['inputs_by_second']}")
    assert after["tasks"] == len(METHODS)
    assert after["in_memory"] > 0
    assert after["inputs_per_second"] > 0
    assert after["seconds"] > before["seconds"]


@pytest.fixture(scope="module", params=["light", "dark"])
def shown(request: pytest.FixtureRequest, address: str, tmp_path_factory: pytest.TempPathFactory) -> Shown:
    """The page as shown without a key."""
    (text,) = rows_of("mood", 1).texts
    folder = tmp_path_factory.mktemp("browser")
    frames, console = used(address, folder, scheme=request.param, text=text, task="mood", open="animals")
    response = httpx.post(f"{address}/v1/predict", json={"rows": [{"text": text, "task": "mood"}]})
    return Shown(request.param, frames, console, response.json()["predictions"][0]["label"])


def test_a_browser_fills_the_page(shown: Shown) -> None:
    assert "CONSOLE" not in shown.console
    for frame in shown.frames.values():
        assert "failed" not in frame, frame
        assert frame["tasks"] == [*METHODS]
        assert frame["choices"] == ["", *METHODS]
        assert frame["filtered"] == ["mood"]
        assert frame["load"] == "2"
        assert "animals@2" in frame["detail"], "versions"
        assert "animals@1 retrained, weight 1" in frame["detail"], "lineage"
        assert frame["others"] == [], "every request is to the server itself"


def test_a_text_is_answered(shown: Shown) -> None:
    for frame in shown.frames.values():
        assert frame["told"].startswith(f"{shown.label} with probability")
        assert "by mood, as you chose; delta mood@1" in frame["told"]
        assert re.search("chosen by the router with|like those of none of the tasks", frame["routed"])
        assert "'gone'" in frame["refused"]


def test_the_page_fits_any_width_and_scheme(shown: Shown) -> None:
    assert shown.frames.keys() == {str(width) for width in WIDTHS}
    for width, frame in shown.frames.items():
        assert frame["width"] == int(width)
        assert frame["needed"] <= frame["width"], "the page scrolls sideways"
        assert frame["paper"] == ("rgb(20, 23, 27)" if shown.scheme == "dark" else "rgb(255, 255, 255)")


def test_the_keyboard_reaches_every_control(shown: Shown) -> None:
    for frame in shown.frames.values():
        assert [control["name"] for control in frame["controls"]] == CONTROLS
        assert all(control["reached"] and control["visible"] for control in frame["controls"]), frame["controls"]


def test_the_page_requests_a_key_where_the_server_does(learner: Learner, tmp_path: Path) -> None:
    secret = add_key(learner.registry, "page", role="read")
    try:
        with served(learner, local=False) as address:
            keys = ["wrong", secret]
            frames, console = used(address, tmp_path, widths=WIDTHS[:1], keys=keys, text="a", task="mood", open="mood")
    finally:
        revoke_key(learner.registry, "page")
    (frame,) = frames.values()
    assert "failed" not in frame, frame
    assert frame["asked"] == ["The server asks for a key.", "The server knows no such key."]
    assert frame["tasks"] == [*METHODS]
    assert "Uncaught" not in console
    assert secret not in console
