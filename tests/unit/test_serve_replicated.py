"""Which group a request is of, and that replicas take up champions in turn."""

import asyncio
import json
from collections.abc import Sequence
from typing import Any

import pytest

pytest.importorskip("ray", reason="Ray is not installed (extra `ray`)")

from continual.serve.replicated.groups import group_of
from continual.serve.replicated.turns import Turns


def group(path: str, body: Any) -> str:
    return group_of(path, json.dumps(body).encode(), groups=32)


def rows(*tasks: str | None) -> dict[str, Any]:
    return {"rows": [{"text": "a"} | ({"task": task} if task else {}) for task in tasks]}


def test_a_request_is_of_the_group_of_most_of_its_rows() -> None:
    mood, place = group("/v1/predict", rows("mood")), group("/v1/predict", rows("place"))
    assert mood != place
    assert group("/v1/predict", rows("place", "mood", None, "mood")) == mood
    assert group("/v1/completions", {"model": "mood"}) == group("/v1/chat/completions", {"model": "mood"}) == mood


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/predict", rows(None)),
        ("/v1/predict", {"rows": 3}),
        ("/v1/predict", []),
        ("/v1/completions", {}),
        ("/v1/embeddings", {"model": "mood"}),
        ("/v1/tasks", {}),
    ],
)
def test_what_names_no_task_is_of_no_group(path: str, body: Any) -> None:
    assert group(path, body) == ""
    assert group_of(path, b"\xff{", groups=32) == ""


class Handle:
    """Replicas that are behind; some of them fail to look."""

    def __init__(self, *behind: str, fails: Sequence[str] = ()) -> None:
        self.behind, self.fails, self.taking, self.took, self.most = [*behind], fails, 0, list[str](), 0

    def broadcast(self, method: str, *given: str) -> "Handle":
        self.asked = method, given
        return self

    async def results_async(self, *, return_exceptions: bool) -> list[Any]:
        method, given = self.asked
        if method == "behind":
            return [*self.behind, None, RuntimeError("the registry is away")]
        self.taking, (name,) = self.taking + 1, given
        self.most = max(self.most, self.taking)
        await asyncio.sleep(0)
        self.taking -= 1
        self.took.append(name)
        return [RuntimeError("died") if name in self.fails else True, False]


def test_champions_are_taken_up_in_turn_whoever_fails() -> None:
    async def told() -> tuple[bool, bool]:
        turns = Turns(handle, poll=1)
        first, second = await asyncio.gather(turns.once(), turns.once())
        return first, second

    handle = Handle("a", "b", "c", fails=["b"])
    assert asyncio.run(told()) == (True, True)
    assert handle.took == ["a", "b", "c"] * 2
    assert handle.most == 1


def test_where_nobody_is_behind_nothing_changes() -> None:
    assert asyncio.run(Turns(Handle(), poll=1).once()) is False
