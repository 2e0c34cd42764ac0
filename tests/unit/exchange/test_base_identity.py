"""Whether an adapter's base is the backbone: by content and record, never by a folder's name."""

from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from continual.backbones.backbone import Backbone
from continual.errors import ExchangeError
from continual.exchange.base_identity import require_base
from continual.exchange.files import ExportOrigin
from tests.helpers.tiny_tasks import save_backbone, tiny_backbone

COMMIT, OTHER_COMMIT = "1" * 40, "2" * 40


def compare(backbone: Backbone, base: str | Path | None, **config: Any) -> str | None:
    return require_base(backbone, {"base_model_name_or_path": base and str(base), **config}, None)


def named(bert: Backbone, name: str | Path, *, commit: str | None = None) -> Backbone:
    model = deepcopy(bert.model)
    model.config._commit_hash = commit
    return replace(bert, name=str(name), model=model)


def test_an_export_is_compared_by_fingerprint_alone(bert: Backbone) -> None:
    config = {"base_model_name_or_path": "some/other"}
    same, other = (ExportOrigin(backbone=value, delta="a@1", digest="") for value in (bert.fingerprint, "0" * 64))
    assert require_base(bert, config, same) is None
    with pytest.raises(ExchangeError, match=r"exported from backbone 000000000000 \(some/other\).*--backbone"):
        require_base(bert, config, other)


@pytest.mark.parametrize("base", ["mine/model", "sentence-transformers/all-MiniLM-L12-v2", "model", "bert-base-cased"])
def test_another_hub_id_is_refused_whatever_the_folder_is_called(bert: Backbone, base: str) -> None:
    """The packaged minilm lies in a folder called `model`."""
    with pytest.raises(ExchangeError, match=rf"'{base}'.*'sentence-transformers/all-MiniLM-L6-v2'.*null"):
        compare(named(bert, "minilm"), base)


def test_a_folder_on_this_machine_is_compared_by_its_weights(
    bert: Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    same, other = tmp_path / "mine" / "model", tmp_path / "theirs" / "model"
    for folder, backbone in ((same, bert), (other, tiny_backbone("bert", seed=1))):
        save_backbone(backbone, folder)
    for backbone in (bert, named(bert, "minilm"), named(bert, same)):
        assert compare(backbone, same) is None
        assert compare(backbone, "mine/model") is None
        with pytest.raises(ExchangeError, match=r"'theirs/model', whose configuration and weights .* null"):
            compare(backbone, "theirs/model")
    (same / "config.json").write_text("{}")
    assert "cannot be read" in str(compare(bert, same))


def test_one_hub_id_is_the_same_base_unless_the_commits_differ(bert: Backbone) -> None:
    backbone = named(bert, "google-bert/bert-base-uncased", commit=COMMIT)
    for revision in (None, "main", COMMIT):
        assert compare(backbone, "google-bert/bert-base-uncased", revision=revision) is None
    note = compare(backbone, "google-bert/bert-base-uncased", revision=OTHER_COMMIT)
    assert "could not be proved" in str(note)
    assert "222222222222, and here it is 111111111111" in str(note)


@pytest.mark.parametrize(
    ("name", "base", "reason"),
    [
        ("google-bert/bert-base-uncased", None, "records no base"),
        ("google-bert/bert-base-uncased", "/content/drive/model", "not at hand"),
        ("google-bert/bert-base-uncased", "bert-base-uncased", "may be the older name"),
        ("{folder}", "google-bert/bert-base-uncased", "not at hand"),
        ("{folder}", "mine/model", "not at hand"),
    ],
)
def test_where_nothing_decides_a_note_says_so(
    bert: Backbone, name: str, base: str | None, reason: str, tmp_path: Path
) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    note = compare(named(bert, name.format(folder=folder)), base)
    assert "could not be proved" in str(note)
    assert reason in str(note)
