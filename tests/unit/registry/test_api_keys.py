"""API keys: only a digest of the secret is stored, revocation is final, and archives include them."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from sqlalchemy import insert, select, text
from sqlalchemy.exc import IntegrityError

from registry import NotFound, NothingToDo, Registry, add_key, dump_registry, key_digest, restore_registry, revoke_key
from registry.schema.base import Base, now
from registry.schema.tables import ApiKey, Role
from tasks.errors import InputError
from tests.helpers.databases import registry_url
from tests.helpers.registries import make_registry

ANY_TEXT = st.text(st.characters())
both = pytest.mark.usefixtures("database")


@pytest.fixture
def registry(tmp_path: Path) -> Iterator[Registry]:
    with make_registry(tmp_path) as opened:
        yield opened


def everything(registry: Registry) -> str:
    """Return every value in the registry's tables as text."""
    with registry.read_session() as session:
        return str([session.execute(select(table)).all() for table in Base.metadata.sorted_tables])


def names(registry: Registry) -> list[str]:
    listed = registry.keys()
    return [row["key"] for row in listed]


def test_the_digest_is_sha_256() -> None:
    """The example of FIPS 180-2, appendix B.1; with another digest no stored key would be valid."""
    assert key_digest("abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


@given(ANY_TEXT, ANY_TEXT)
@example("\ud800", "\udfff")
def test_different_secrets_have_different_digests(first: str, second: str) -> None:
    assert (key_digest(first) == key_digest(second)) == (first == second)


@both
def test_a_secret_is_valid_and_never_stored(registry: Registry, tmp_path: Path) -> None:
    roles: dict[str, Role] = {"ci": "read", "ops": "admin"}
    secrets = {name: add_key(registry, name, role=role) for name, role in roles.items()}
    assert all(secret.startswith("ck_") and len(secret) == 46 for secret in secrets.values())
    assert registry.active_keys() == {
        key_digest(secrets["ci"]): ("ci", "read"),
        key_digest(secrets["ops"]): ("ops", "admin"),
    }
    dump_registry(registry, tmp_path / "archive.zip")
    files = [path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()]
    stored = everything(registry)
    for secret in secrets.values():
        assert key_digest(secret) in stored
        assert secret[3:] not in stored
        assert not any(secret[3:].encode() in file for file in files)
    if registry_url(tmp_path).startswith("sqlite"):
        assert any(key_digest(secrets["ci"]).encode() in file for file in files), "these are the database's files"


@both
def test_a_revoked_key_is_invalid_and_keeps_its_name(registry: Registry) -> None:
    first, second = (add_key(registry, name, role="read") for name in ("ci", "ops"))
    before = now()
    moment = revoke_key(registry, "ci")
    assert before <= moment <= now()
    assert list(registry.active_keys()) == [key_digest(second)]
    revoked, active = registry.keys()
    assert (revoked["key"], revoked["role"], revoked["revoked_at"]) == ("ci", "read", moment.isoformat())
    assert (active["key"], active["revoked_at"]) == ("ops", None)
    with pytest.raises(NothingToDo, match=r"'ci' was revoked at 20.*\+00:00\. Nothing was changed"):
        revoke_key(registry, "ci")
    with pytest.raises(InputError, match="'ci' was revoked, and its name is kept"):
        add_key(registry, "ci", role="admin")
    assert key_digest(first) not in registry.active_keys()


@both
def test_invalid_arguments_are_refused_with_the_remedy(registry: Registry) -> None:
    with pytest.raises(NotFound, match=r"holds no key yet\. Add one: `continual keys add`"):
        revoke_key(registry, "ci")
    add_key(registry, "backup", role="read")
    with pytest.raises(NotFound, match="nearest known: backup"):
        revoke_key(registry, "bakcup")
    with pytest.raises(NotFound, match="nearest known: backup"):
        registry.keys(after="bakcup")
    with pytest.raises(InputError, match="'backup' is there already"):
        add_key(registry, "backup", role="admin")
    invalid_role: Any = "root"
    with pytest.raises(InputError, match="role 'root': give one of read, admin"):
        add_key(registry, "ops", role=invalid_role)
    assert names(registry) == ["backup"]


@both
def test_a_name_requested_concurrently_is_given_once(registry: Registry) -> None:
    def add(_: int) -> str | None:
        together.wait()
        try:
            return add_key(registry, "ci", role="read")
        except InputError:
            return None

    together = Barrier(4)
    with ThreadPoolExecutor(4) as pool:
        (added,) = [secret for secret in pool.map(add, range(4)) if secret]
    assert list(registry.active_keys()) == [key_digest(added)]


@both
@pytest.mark.parametrize("changes", [{"digest": "ck_in the clear"}, {"role": "root"}], ids=str)
def test_database_constraints_refuse_invalid_keys(registry: Registry, changes: dict[str, str]) -> None:
    values = {"name": "ci", "digest": key_digest("x"), "role": "read", "created_at": now()} | changes
    with pytest.raises(IntegrityError, match="ck_api_keys"), registry.engine.begin() as connection:
        connection.execute(insert(ApiKey).values(values))


@both
def test_an_archive_includes_keys_and_revocations(registry: Registry, tmp_path: Path) -> None:
    secret = add_key(registry, "ci", role="admin")
    add_key(registry, "old", role="read")
    revoke_key(registry, "old")
    dump_registry(registry, tmp_path / "archive.zip")
    target = f"sqlite:///{tmp_path}/other.db", f"{tmp_path}/other"
    restore_registry(tmp_path / "archive.zip", *target, with_keys=True)
    with Registry.open(*target) as restored:
        assert restored.active_keys() == {key_digest(secret): ("ci", "admin")}
        assert restored.keys() == registry.keys()
        with pytest.raises(NothingToDo):
            revoke_key(restored, "old")


@both
def test_a_registry_remembers_that_it_had_a_key(registry: Registry) -> None:
    assert not registry.has_keys()
    add_key(registry, "ci", role="read")
    revoke_key(registry, "ci")
    assert registry.has_keys()


@pytest.fixture(scope="module")
def emptied(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Registry]:
    with make_registry(tmp_path_factory.mktemp("keys")) as opened:
        yield opened


@settings(max_examples=25, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(("read", "admin", "revoke")), st.sampled_from("abc")), max_size=10))
def test_only_issued_and_unrevoked_secrets_are_ever_valid(emptied: Registry, done: list[Any]) -> None:
    with emptied.unit_of_work() as unit:
        unit.session.execute(text("DELETE FROM api_keys"))
    issued: dict[str, tuple[str, str]] = {}
    open_: set[str] = set()
    for action, name in done:
        if action == "revoke" and name in open_:
            revoke_key(emptied, name)
            open_.remove(name)
        elif action == "revoke":
            with pytest.raises(NothingToDo if name in issued else NotFound):
                revoke_key(emptied, name)
        elif name in issued:
            with pytest.raises(InputError):
                add_key(emptied, name, role=action)
        else:
            issued[name] = (key_digest(add_key(emptied, name, role=action)), action)
            open_.add(name)
    assert emptied.active_keys() == {digest: (name, role) for name, (digest, role) in issued.items() if name in open_}
    assert names(emptied) == list(issued)
