"""Bytes by the SHA-256 of their content, in any place fsspec reaches."""

import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from hashlib import sha256
from typing import final
from uuid import uuid4

import fsspec

from registry.errors import BlobError
from registry.redaction import redact
from tasks.errors import InputError

BLOB_PATH = re.compile(r"/([0-9a-f]{2})/(?:([0-9a-f]{62})|(\.[0-9a-f]{32}))$")

# Stores in which an object is there as a whole or not at all; to rename one there is to copy it and delete the first.
ATOMIC_PROTOCOLS = {"s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "oci", "memory"}
EXTRAS = {"s3": "s3", "s3a": "s3", "gs": "gs", "gcs": "gs"}


@dataclass(frozen=True)
class StoredBlob:
    """What lies in the store: its digest (of a draft a name of its file), its place, bytes, and when it was put."""

    name: str
    place: str
    bytes: int
    put_at: datetime


@final
class BlobStore:
    """A content-addressed store: `url` is a folder, or any URL of fsspec such as `memory://blobs`.

    >>> blobs = Blobs("memory://example")
    >>> blobs.get(blobs.put(b"delta"))
    b'delta'
    """

    def __init__(self, url: str) -> None:
        try:  # what was listed before may have changed: others write too
            self._files, self._root = fsspec.core.url_to_fs(url, use_listings_cache=False)
        except ImportError as error:
            raise InputError(_no_driver(url, error)) from error
        except (ValueError, OSError) as error:
            why = redact(f"blobs cannot be kept at {url}: {error}", url)
            raise InputError(f"{why}. Give a folder or a URL of fsspec.") from None  # its cause may quote the URL
        self.url = url if "://" in url else self._root  # which no current folder changes
        self.protocols = {self._files.protocol} if isinstance(self._files.protocol, str) else {*self._files.protocol}

    def put(self, data: bytes) -> str:
        """Stores `data` and returns its digest.

        Content that is there already is written again: damage is mended, and it is as young as what is new, so that it
        is not collected before its row is written.
        Raises: BlobError, where there is no room, or no leave to write.
        """
        digest = sha256(data).hexdigest()
        place = self.path(digest)
        try:
            self._write(place, data)
        except OSError as error:
            raise BlobError(
                f"a blob of {len(data)} bytes could not be stored at {place}: {error}. Make room there, and go on."
            ) from error
        return digest

    def get(self, digest: str) -> bytes:
        """The bytes of `digest`, checked against it at every read.

        Raises: BlobError, where they are missing or others.
        """
        place = self.path(digest)
        with _reached("read", place):
            try:
                data: bytes = self._files.cat_file(place)
            except FileNotFoundError as error:
                raise BlobError(
                    f"blob {digest} is missing: nothing at {redact(place)}. Restore it, or learn the task again."
                ) from error
        found = sha256(data).hexdigest()
        if found != digest:
            raise BlobError(
                f"blob {digest} is damaged: the {len(data)} bytes at {redact(place)} have digest {found}. "
                "Restore the file, or delete it and learn the task again."
            )
        return data

    def exists(self, digest: str) -> bool:
        """Whether something is stored under `digest` (its bytes are checked on reading)."""
        place = self.path(digest)
        with _reached("look for", place):
            return bool(self._files.exists(place))

    def stat(self, digest: str) -> StoredBlob | None:
        """What is stored under `digest`, its bytes unread."""
        place = self.path(digest)
        with _reached("look for", place), suppress(FileNotFoundError):
            return StoredBlob(digest, place, int(self._files.size(place)), self._files.modified(place))
        return None

    def iterate(self) -> Iterator[StoredBlob]:
        """All that was put here, and drafts whose writers died; other files are nobody's business."""
        with _reached("list", self._root):
            for place, about in self._files.find(self._root, detail=True).items():
                if ours := BLOB_PATH.search(place):
                    with suppress(FileNotFoundError):  # a draft that was finished meanwhile
                        name, size = "".join(ours.groups("")), int(about["size"])
                        yield StoredBlob(name, place, size, self._files.modified(place))

    def delete(self, blob: StoredBlob, *, put_before: datetime | None) -> bool:
        """Deletes a blob unless it was put again since `put_before`; whether it did."""
        with _reached("delete", blob.place), suppress(FileNotFoundError):
            if put_before is None or self._files.modified(blob.place) <= put_before:
                self._files.rm_file(blob.place)
                return True
        return False

    def store_now(self) -> datetime:
        """This moment by the clock that says when a blob was put."""
        draft = f"{self._root}/00/.{uuid4().hex}"
        self._write(draft, b"")
        with _reached("look at", draft):
            moment: datetime = self._files.modified(draft)
            self._files.rm_file(draft)
        return moment

    def path(self, digest: str) -> str:
        """Where `digest` lies; sharded by its first two digits, so that no folder grows large.

        Raises: BlobError, where `digest` is not the 64 hexadecimal digits of a SHA-256.
        """
        if not re.fullmatch(r"[0-9a-f]{64}", digest):
            raise BlobError(f"{digest!r} is no digest: 64 lower-case hexadecimal digits are, as `put` returns them.")
        return f"{self._root}/{digest[:2]}/{digest[2:]}"

    def _write(self, place: str, data: bytes) -> None:
        with _reached("write", place):
            if self.protocols & ATOMIC_PROTOCOLS:
                self._files.pipe_file(place, data)
            else:
                self._rename(place, data)

    def _rename(self, place: str, data: bytes) -> None:
        # Under a name of its own first: whoever dies here, and whoever writes the same beside us, leaves no half blob.
        folder = place.rpartition("/")[0]
        draft = f"{folder}/.{uuid4().hex}"
        self._files.makedirs(folder, exist_ok=True)
        try:
            self._files.pipe_file(draft, data)
            self._files.mv(draft, place)
        except BaseException:
            if self._files.exists(draft):
                self._files.rm_file(draft)
            raise


@contextmanager
def _reached(doing: str, place: str) -> Iterator[None]:
    try:
        yield
    except BlobError:
        raise
    except Exception as error:  # each store's driver has errors of its own
        raise BlobError(
            f"could not {doing} {redact(place)}: {type(error).__name__}: {error}. Mend what hinders it, and try again."
        ) from error


def _no_driver(url: str, error: ImportError) -> str:
    scheme = url.partition("://")[0]
    extra = f" (pip install 'continual[{EXTRAS[scheme]}]')" if scheme in EXTRAS else ""
    return f"blobs cannot be kept at {scheme}:// yet: {error}. Install that package{extra}, or give a folder."
