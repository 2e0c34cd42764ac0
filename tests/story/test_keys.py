"""API keys on the command line: the secret alone goes to standard output, once."""

from pathlib import Path

import pytest

from registry import Registry, key_digest
from tests.helpers.cli import CliRunner


def test_a_key_is_added_listed_and_revoked(cli: CliRunner, tmp_path: Path) -> None:
    added = cli("keys", "add", "ci")
    secret = added.out.removesuffix("\n")
    assert (added.code, secret[:3], len(secret.split())) == (0, "ck_", 1)
    assert "only this once" in added.err
    assert secret not in added.err
    (issued,) = cli("keys", "add", "ops", "--admin", "--json").json
    assert (issued["key"], issued["role"]) == ("ops", "admin")
    with Registry.open(f"sqlite:///{tmp_path}/home/registry.db", f"{tmp_path}/home/blobs") as registry:
        assert registry.active_keys() == {
            key_digest(secret): ("ci", "read"),
            key_digest(issued["secret"]): ("ops", "admin"),
        }
        listed = cli("keys", "--json")
        assert listed.json == registry.keys()
        assert cli("keys", "--limit", "1", "--after", "ci", "--json").json == registry.keys()[1:]
        (revoked,) = cli("keys", "revoke", "ci", "--json").json
        assert revoked == {"key": "ci", "revoked_at": registry.keys()[0]["revoked_at"]}
        assert list(registry.active_keys().values()) == [("ops", "admin")]
    shown = cli("keys")
    assert revoked["revoked_at"] in shown.out
    for output in (listed.out, shown.out, shown.err):
        assert secret not in output
        assert issued["secret"] not in output


def test_invalid_arguments_exit_with_2(cli: CliRunner) -> None:
    assert cli("keys", "--json").json == []
    assert cli("keys", "revoke", "ci").code == 2
    assert cli("keys", "add", "ci").code == 0
    for words in (("add", "ci"), ("add", ""), ("add", "ci@1"), ("add", "x" * 501), ("revoke", "ic")):
        result = cli("keys", *words)
        assert (result.code, result.out) == (2, "")
        assert result.err
    assert cli("keys", "revoke", "ci").code == 0
    assert cli("keys", "revoke", "ci").code == 2
    assert cli("keys", "add", "ci").code == 2, "names are for the log: none is given twice"


def test_a_restored_dump_brings_no_valid_keys_along(
    cli: CliRunner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert cli("keys", "add", "ops", "--admin").code == 0
    assert cli("db", "dump", str(tmp_path / "dump.zip")).code == 0
    for name, words, revoked in (("without", (), True), ("with", ("--with-keys",), False)):
        monkeypatch.setenv("CONTINUAL_REGISTRY_URL", f"sqlite:///{tmp_path}/{name}.db")
        monkeypatch.setenv("CONTINUAL_BLOBS_URL", str(tmp_path / name))
        restored = cli("db", "restore", str(tmp_path / "dump.zip"), *words)
        assert (restored.code, "the 1 API keys of the dump are revoked" in restored.err) == (0, revoked)
        (key,) = cli("keys", "--json").json
        assert (key["revoked_at"] is not None) == revoked
