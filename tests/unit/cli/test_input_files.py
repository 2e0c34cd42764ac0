"""Lines of standard input are answered as they come; what cannot be read is named by line."""

import io
import json
import os
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from continual.cli.input_files import open_batches, parse_lines
from continual.errors import InputLineError
from continual.inference.input_rows import InputRow, parse_row, parse_rows
from continual.inference.predictor import Prediction
from tasks import Conversation, Message

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=8,
)


def test_lines_are_handed_on_before_the_pipe_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    reader, writer = os.pipe()
    with os.fdopen(reader, "rb") as source, os.fdopen(writer, "wb", buffering=0) as pipe:
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(source))
        batches, total = open_batches("-", 2)
        pipe.write(b"one\n")
        assert (next(batches), total) == ([InputRow("one")], None)
        pipe.write(b'\n{"text": "three", "id": 3}\n{"text": 4}\n')
        rest = [InputRow(""), InputRow("three", None, {"id": 3})]
        received: list[InputRow] = []
        while len(received) < len(rest):
            received += next(batches)
        assert received == rest, "lines before a wrong one are answered"
        with pytest.raises(InputLineError, match="-:4 has the text 4"):
            next(batches)


@given(st.lists(st.text(st.characters(exclude_characters="\r\n", exclude_categories=["Cs"])), min_size=1))
def test_every_plain_line_is_one_input(lines: list[str]) -> None:
    data = "".join(f"{line}\n" for line in lines).encode()
    expected = [line for line in lines if not line.lstrip().startswith("{")]
    if len(expected) == len(lines):
        texts = [row.text for row in parse_lines(io.BytesIO(data), file="lines.txt")]
        assert texts == [lines[0].removeprefix("\ufeff"), *lines[1:]]


@given(st.dictionaries(st.text(), JSON))
@settings(max_examples=30)
def test_columns_are_handed_back_or_refused(columns: dict[str, object]) -> None:
    row = columns | {"text": "a"}
    with suppress(InputLineError):
        parsed = parse_row(row, where="row 1")
        assert len(parsed.columns) == len(row) - 1 - ("task" in row)
        assert json.loads(json.dumps(dict(parsed.columns), allow_nan=False)) == dict(parsed.columns)


def test_one_text_is_one_input_and_not_its_characters() -> None:
    assert parse_rows("my card") == [InputRow("my card")]
    assert parse_rows(["a", ("b", "c"), ["d", "e"]]) == [InputRow("a"), InputRow(("b", "c")), InputRow(("d", "e"))]


@pytest.mark.parametrize("wrong", [3, {"text": "a"}, None, [3], [("a", "b", "c")], [{"texts": "a"}], [b"ab"]])
def test_what_is_no_input_is_refused(wrong: object) -> None:
    with pytest.raises(InputLineError, match=r'\{"text": …\}'):
        parse_rows(wrong)


def test_wrong_files_are_named(tmp_path: Path) -> None:
    for name, data, reason in (
        ("a.csv", b"", "a.csv is empty"),
        ("b.parquet", b"PAR1 no", "cannot be read as parquet"),
        ("c.jsonl", b'{"text": "a"}\n{"text": "b"\n', "c.jsonl:2: .* is not JSON"),
        ("d.txt", b"a\n\xff\n", "d.txt:2: cannot be read as UTF-8"),
        ("f.csv", b'text,id\n"open,1\nb,2\n', "f.csv, line 2"),
        ("g.csv", b"text,id\na,1,extra\n", "3 fields for the 2 columns"),
        ("e.csv", b"words\na\n", "row 1 has the columns 'words' and no text"),
    ):
        (tmp_path / name).write_bytes(data)
        with pytest.raises(InputLineError, match=reason):
            open_batches(str(tmp_path / name), 8)
    with pytest.raises(InputLineError, match="No such file"):
        open_batches(str(tmp_path / "absent.csv"), 8)


def test_a_conversation_is_an_input() -> None:
    question = {"role": "user", "content": "q"}
    turns = [question, {"role": "assistant", "content": "a"}, question]
    chat = Conversation((Message("user", "q"), Message("assistant", "a"), Message("user", "q")))
    assert parse_row({"messages": turns, "id": 7}, where="row 1") == InputRow(chat, None, {"id": 7})
    assert parse_row({"messages": [question]}, where="row 1").text == "q"
    assert parse_row({"text": "t", "messages": turns}, where="row 1") == InputRow("t", None, {"messages": turns})
    answer = Prediction(chat, "t", "x", None, False, None, False, "t@1")
    assert json.loads(json.dumps(answer.to_json()))["text"] == turns
    with pytest.raises(InputLineError, match=r"row 1 .* \(message 1 is 'q'\); give a list of messages such as"):
        parse_row({"messages": ["q"]}, where="row 1")
