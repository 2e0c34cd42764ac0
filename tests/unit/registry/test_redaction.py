"""Redaction of passwords, keys and tokens in URLs and error messages."""

import traceback
from pathlib import Path

import pytest

from registry import BlobStore, Registry, redact, upgrade
from tasks.errors import InputError

SECRET = "l0ve/l@ce"


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("postgresql+psycopg://ada:l0vel4ce@db:5432/x", "postgresql+psycopg://***@db:5432/x"),
        ("postgresql://ada:l0ve/l@ce?#@db/x", "postgresql://***@db/x"),
        ("postgresql:///x?host=db&password=l0vel4ce", "postgresql:///x?host=***&password=***"),
        ("https://l0vel4ce@mlflow.example/path", "https://***@mlflow.example/path"),
        ("s3://key:l0vel4ce@bucket/blobs", "s3://***@bucket/blobs"),
        ("simplecache::s3://key:l0vel4ce@bucket", "simplecache::s3://***@bucket"),
        ("s3://bucket/blobs?token=l0vel4ce;sig=l0vel4ce", "s3://bucket/blobs?token=***;sig=***"),
        ("sqlite:////home/me@work/registry.db", "sqlite:////home/me@work/registry.db"),
        ("/home/me@work/blobs", "/home/me@work/blobs"),
        ("memory://blobs", "memory://blobs"),
    ],
)
def test_a_url_is_shown_without_its_secrets(url: str, expected: str) -> None:
    assert redact(url) == expected
    assert redact(f"cannot reach {url} now") == f"cannot reach {expected} now"


@pytest.mark.parametrize("url", ["postgresql://ada:{}@db/x", "postgresql:///x?user=ada&password={}", "https://{}@h"])
@pytest.mark.parametrize("secret", ["l0vel4ce", "l0ve%20l4ce", "l0ve+l4ce", "l'0\"ve"])
def test_a_url_in_a_drivers_error_is_redacted(url: str, secret: str) -> None:
    from urllib.parse import unquote_plus

    for form in (secret, unquote_plus(secret)):
        assert (
            redact(f"bad option near {form} of the string", url.format(secret)) == "bad option near *** of the string"
        )


@pytest.mark.parametrize(
    "url",
    [
        "postgresql+psycopg://ada:{}@127.0.0.1:9/x",
        "postgresql+psycopg://ada:{}@127.0.0.1:port/x",
        "postgresql+psycopg://127.0.0.1:9/x?password={}",
        "postgresql+psycopg://127.0.0.1:9/x?bogus={}",
        "oracel://ada:{}@db/x",
    ],
)
def test_an_unreachable_database_is_an_input_error_without_its_password(url: str, tmp_path: Path) -> None:
    for act in (lambda: Registry.open(url.format(SECRET), str(tmp_path)), lambda: upgrade(url.format(SECRET))):
        with pytest.raises(InputError) as caught:
            act()
        assert SECRET not in "".join(traceback.format_exception(caught.value))
        assert "***" in str(caught.value)


def test_an_unwritable_blob_store_is_an_error_without_its_password() -> None:
    with pytest.raises(InputError) as caught:
        BlobStore(f"nowhere://ada:{SECRET}@host/blobs")
    assert SECRET not in "".join(traceback.format_exception(caught.value))


def test_a_file_that_is_no_database_is_an_input_error(tmp_path: Path) -> None:
    (tmp_path / "registry.db").write_bytes(b"no database at all" * 100)
    with pytest.raises(InputError, match="not a database"):
        Registry.open(f"sqlite:///{tmp_path}/registry.db", str(tmp_path))
