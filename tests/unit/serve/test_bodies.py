"""Bounds on the structure of JSON bodies, and paths of fields in errors."""

import json
import time
from typing import Any

import pytest

from continual.errors import TooLarge
from continual.serve.core.bodies import check_structure, parse_body
from continual.serve.core.error_responses import field_path
from tasks.errors import InputError

MANY = 4_000_000


@pytest.mark.parametrize(
    ("body", "error"),
    [
        ({"rows": [1] * MANY}, TooLarge),
        ({"rows": [{"text": [1] * MANY}]}, TooLarge),
        ({"rows": [[1] * 1000] * 1000}, TooLarge),
        ({"rows": [{"text": "a"} | {f"x{i}": 1 for i in range(100_000)}]}, InputError),
        ({f"x{i}": 1 for i in range(100_000)}, InputError),
        ([{}] * MANY, TooLarge),
    ],
)
def test_values_beyond_what_rows_need_are_refused(body: Any, error: type[Exception]) -> None:
    with pytest.raises(error):
        check_structure(body, rows=1024)


def test_the_largest_request_is_allowed() -> None:
    rows = [{"text": ["a", "b"], "task": "mood"}] * 1024
    check_structure({"rows": rows, "at_least": 0.5}, rows=1024)
    check_structure({"model": "echo", "prompt": ["a"] * 1024, "stream": False}, rows=1024)


@pytest.mark.parametrize(
    "body",
    [
        b"[%s]" % b",".join([b"1"] * MANY),
        b"[" * 8_000_000,
        b'"' * 8_000_000,
        b'["' + rb"\"" * 1_000_000 + b'",' + b"{}," * 1_000_000,
    ],
)
def test_too_many_values_are_refused_before_they_are_parsed(body: bytes) -> None:
    start = time.process_time()
    with pytest.raises(TooLarge):
        parse_body(body, rows=1024)
    assert time.process_time() - start < 1


@pytest.mark.parametrize("text", ['[{,"\\' * 1_000_000, "\\" * 2_000_000, "é" * 1_000_000, '"' * 1_000_000])
def test_a_long_text_is_one_value(text: str) -> None:
    assert parse_body(json.dumps([text]).encode(), rows=1) == [text]


@pytest.mark.parametrize("body", [b"\xff", b"9" * 100_000, b"[" * 100_000, b"{", b""])
def test_what_cannot_be_parsed_is_one_error(body: bytes) -> None:
    with pytest.raises(json.JSONDecodeError):
        parse_body(body, rows=100_000)


@pytest.mark.parametrize(
    ("location", "missing", "path"),
    [
        (("body", "rows", 0, "text", "function-after[_without_surrogates(), str]"), False, "body.rows.0.text"),
        (("body", "rows", 0, "text", "tuple[str, str]", 1), False, "body.rows.0.text.1"),
        (("body", "rows", 0, "task"), True, "body.rows.0.task"),
        (("body", "rows", 0, "list[str]", 7), False, "body.rows.0"),
        (("query", "limit"), False, "query.limit"),
        (("body", "a" * 10_000), False, f"body.{'a' * 200}"),
    ],
)
def test_a_path_names_fields_of_the_request_only(location: Any, missing: bool, path: str) -> None:
    body = {"rows": [{"text": ["a", 1]}], "a" * 10_000: 1}
    assert field_path(location, body, missing=missing) == path
