"""`continual init`: from data files to a stream file that `run --check` accepts."""

from pathlib import Path

import pandas as pd
import pytest

from tests.helpers.cli import CliRunner
from tests.helpers.tiny_tasks import rows_of

ROWS = rows_of("mood", 60)


@pytest.fixture
def files(tmp_path: Path) -> list[str]:
    """Files of several formats and kinds; the CSV has an index and a text with quotes, commas and a line break."""
    texts = ['he said: "fine", \n and left', *ROWS.texts[1:]]
    frame = pd.DataFrame({"text": texts, "label": ROWS.labels})
    frame.to_csv(tmp_path / "Große Tabelle.csv")
    frame.rename(columns={"text": "Nachricht, Ü", "label": "null"}).to_json(
        tmp_path / "odd.jsonl", orient="records", lines=True
    )
    amounts = frame.assign(label=[number / 7 for number in range(len(frame))])
    amounts.to_parquet(tmp_path / "amounts.parquet")
    (tmp_path / "split").mkdir()
    for split in ("train", "valid"):
        frame.to_csv(tmp_path / "split" / f"{split}.tsv", sep="\t", index=False)
    return [str(tmp_path / name) for name in ("Große Tabelle.csv", "odd.jsonl", "amounts.parquet", "split")]


def test_the_written_file_passes_the_check(
    cli: CliRunner, files: list[str], tmp_path: Path, bert_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stream = tmp_path / "my stream.yaml"
    drafted = cli("init", *files, "--output", str(stream), "--backbone", str(bert_folder), "--json")
    assert drafted.code == 0, drafted.err
    assert [(row["task"], row["kind"]) for row in drafted.json] == [
        ("Groe-Tabelle", "classification"),
        ("odd", "classification"),
        ("amounts", "regression"),
        ("split", "classification"),
    ]
    assert drafted.json[1]["text"] == ["Nachricht, Ü"]
    assert f"continual run '{stream}' --check" in drafted.err
    assert not (tmp_path / "home").exists(), "nothing is learned yet"
    checked = cli("run", str(stream), "--check", "--json")
    assert checked.code == 0, checked.err
    assert [row["task"] for row in checked.json] == [row["task"] for row in drafted.json]
    refused = cli("init", *files, "--output", str(stream))
    assert (refused.code, "--force to replace it" in refused.err) == (2, True)
    monkeypatch.setenv("COLUMNS", "80")
    table = cli("init", files[2], "--output", str(stream), "--force")
    assert table.code == 0
    assert max(map(len, table.out.splitlines())) <= 80
    assert "regression" in table.out


def test_the_file_is_printed_where_asked(cli: CliRunner, files: list[str], tmp_path: Path) -> None:
    printed = cli("init", files[1], "--output", "-")
    assert printed.code == 0
    assert "\n    text: 'Nachricht, Ü'\n" in printed.out
    assert "'good' 30" in printed.out
    assert str(ROWS.texts[1]) not in printed.out + printed.err
    assert cli("init", files[1], "--output", "-", "--json").code == 2
    assert sorted(path.name for path in tmp_path.iterdir() if path.suffix == ".yaml") == []


def test_unclear_columns_are_named_with_the_options(cli: CliRunner, tmp_path: Path) -> None:
    file = tmp_path / "plain.csv"
    pd.DataFrame({"one": ROWS.texts, "two": ROWS.texts}).to_csv(file, index=False)
    refused = cli("init", str(file), "--output", str(tmp_path / "s.yaml"))
    assert refused.code == 2
    assert "give --label COLUMN" in refused.err
    assert "'one': texts," in refused.err
    assert not (tmp_path / "s.yaml").exists()
    nowhere = cli("init", str(file), "--output", str(tmp_path / "none" / "s.yaml"))
    assert (nowhere.code, "there is no folder" in nowhere.err) == (2, True)
