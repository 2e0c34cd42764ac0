"""A content-addressed blob store: bytes by their SHA-256, on any file system that fsspec supports."""

import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from hashlib import sha256
from typing import final
from uuid import uuid4

import fsspec
from pydantic import BaseModel, ConfigDict, ValidationError

from registry.errors import BlobError, StoreMismatch
from registry.redaction import redact
from tasks.errors import InputError

MARK = "registry.json"  # no path of a blob
DERIVED = "derived"  # folder of files that can be computed again, each after the digest of its bytes
DIGEST_BYTES = 32
BLOB_PATH = re.compile(r"/([0-9a-f]{2})/(?:([0-9a-f]{62})|(\.[0-9a-f]{32}))$")

# Object stores with atomic writes; renaming in them would be a copy and a delete.
ATOMIC_PROTOCOLS = {"s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "oci", "memory"}
EXTRAS = {"s3": "s3", "s3a": "s3", "gs": "gs", "gcs": "gs"}


@dataclass(frozen=True)
class StoredBlob:
    """A file in the store.

    Attributes:
        name: The blob's digest, or the file name of an unfinished draft.
        place: Its path.
        bytes: Its size.
        put_at: Time of the last write, by the store's clock.
    """

    name: str
    place: str
    bytes: int
    put_at: datetime

    @property
    def is_draft(self) -> bool:
        """Whether it is an unfinished draft."""
        return "." in self.name


class StoreMark(BaseModel):
    """The registry that a store belongs to.

    Attributes:
        registry: Its identity.
        database: Digest of its database's location when the mark was written.
        blobs: Digest of the store's own location then.
    """

    model_config = ConfigDict(frozen=True)

    registry: str
    database: str
    blobs: str


@final
class BlobStore:
    """A content-addressed store in a folder or at any fsspec URL, such as `memory://blobs`.

    >>> blobs = BlobStore("memory://example")
    >>> blobs.get(blobs.put(b"delta"))
    b'delta'
    """

    def __init__(self, url: str) -> None:
        try:  # no listings cache, because other processes write too
            self._files, self._root = fsspec.core.url_to_fs(url, use_listings_cache=False)
        except ImportError as error:
            raise InputError(_missing_driver_message(url, error)) from error
        except (ValueError, OSError) as error:
            why = redact(f"blobs cannot be kept at {url}: {error}", url)
            raise InputError(f"{why}. Give a folder or a URL of fsspec.") from None  # the cause may quote the URL
        self.url = url if "://" in url else self._root  # absolute, independent of the current folder
        self.protocols = {self._files.protocol} if isinstance(self._files.protocol, str) else {*self._files.protocol}

    def put(self, data: bytes) -> str:
        """Store `data` and return its digest.

        Existing content is written again: that repairs damage and renews its age, so that garbage collection does not
        delete it before its row is written.

        Raises:
            BlobError: The store is full or not writable.
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
        """Return the bytes of `digest`, verified against it at every read.

        Raises:
            BlobError: The blob is missing or its bytes have another digest.
        """
        place = self.path(digest)
        with _translate_errors("read", place):
            try:
                data: bytes = self._files.cat_file(place)
            except FileNotFoundError as error:
                raise BlobError(
                    f"blob {digest} is missing: nothing at {redact(place)}. Restore it, or learn the task again."
                ) from error
        actual = sha256(data).hexdigest()
        if actual != digest:
            raise BlobError(
                f"blob {digest} is damaged: the {len(data)} bytes at {redact(place)} have digest {actual}. "
                "Restore the file, or delete it and learn the task again."
            )
        return data

    def exists(self, digest: str) -> bool:
        """Return True if a blob is stored under `digest`; its bytes are verified only on reading."""
        place = self.path(digest)
        with _translate_errors("look for", place):
            return bool(self._files.exists(place))

    def stat(self, digest: str) -> StoredBlob | None:
        """Return the stored blob of `digest` without reading its bytes; None if it is missing."""
        place = self.path(digest)
        with _translate_errors("look for", place), suppress(FileNotFoundError):
            return StoredBlob(digest, place, int(self._files.size(place)), self._files.modified(place))
        return None

    def iterate(self) -> Iterator[StoredBlob]:
        """Yield all blobs, and drafts whose writers died; other files are skipped."""
        with _translate_errors("list", self._root):
            for place, info in self._files.find(self._root, detail=True).items():
                if match := BLOB_PATH.search(place):
                    with suppress(FileNotFoundError):  # a draft that was finished meanwhile
                        name, size = "".join(match.groups("")), int(info["size"])
                        yield StoredBlob(name, place, size, self._files.modified(place))

    def holds_blobs(self) -> bool:
        """Return True if anything but drafts is stored."""
        return any(not blob.is_draft for blob in self.iterate())

    def put_derived(self, name: str, data: bytes) -> None:
        """Store a file that can be computed again, under a name of its own.

        Raises:
            BlobError: The store is full or not writable.
        """
        self._write(f"{self._root}/{DERIVED}/{name}", sha256(data).digest() + data)

    def get_derived(self, name: str) -> bytes | None:
        """Return the bytes of a derived file; None where it is missing or damaged.

        Raises:
            BlobError: The store cannot be read.
        """
        place = f"{self._root}/{DERIVED}/{name}"
        with _translate_errors("read", place), suppress(FileNotFoundError):
            data: bytes = self._files.cat_file(place)
            content = memoryview(data)[DIGEST_BYTES:]
            return bytes(content) if sha256(content).digest() == data[:DIGEST_BYTES] else None
        return None

    def iterate_derived(self) -> Iterator[StoredBlob]:
        """Yield all derived files, and drafts of them."""
        folder = f"{self._root}/{DERIVED}"
        with _translate_errors("list", folder):
            for place, info in self._files.find(folder, detail=True).items():
                with suppress(FileNotFoundError):
                    name = place.rpartition(f"/{DERIVED}/")[2]
                    yield StoredBlob(name, place, int(info["size"]), self._files.modified(place))

    @property
    def mark_path(self) -> str:
        """The path of the store's mark."""
        return f"{self._root}/{MARK}"

    def mark(self) -> StoreMark | None:
        """Return the store's mark; None where it has none.

        Raises:
            StoreMismatch: The mark cannot be parsed.
        """
        with _translate_errors("read", self.mark_path), suppress(FileNotFoundError):
            try:
                return StoreMark.model_validate_json(self._files.cat_file(self.mark_path))
            except ValidationError as error:
                raise StoreMismatch(
                    f"{redact(self.mark_path)} does not say which registry the blobs beside it belong to: "
                    f"{error.error_count()} wrong values. Restore the file, or delete it if they are this registry's."
                ) from None
        return None

    def set_mark(self, mark: StoreMark) -> None:
        """Write the store's mark."""
        self._write(self.mark_path, mark.model_dump_json().encode())

    def delete(self, blob: StoredBlob, *, put_before: datetime | None) -> bool:
        """Delete a blob unless it was put again after `put_before`.

        Args:
            blob: The blob to delete.
            put_before: A time by the store's clock; None to delete unconditionally.

        Returns:
            True if the blob was deleted.
        """
        with _translate_errors("delete", blob.place), suppress(FileNotFoundError):
            if put_before is None or self._files.modified(blob.place) <= put_before:
                self._files.rm_file(blob.place)
                return True
        return False

    def store_now(self) -> datetime:
        """Return the current time by the clock that timestamps blobs."""
        draft = f"{self._root}/00/.{uuid4().hex}"
        self._write(draft, b"")
        with _translate_errors("look at", draft):
            moment: datetime = self._files.modified(draft)
            self._files.rm_file(draft)
        return moment

    def path(self, digest: str) -> str:
        """Return the path of `digest`, sharded by its first two digits so that no folder grows large.

        Raises:
            BlobError: `digest` is not the 64 lower-case hexadecimal digits of a SHA-256.
        """
        if not re.fullmatch(r"[0-9a-f]{64}", digest):
            raise BlobError(f"{digest!r} is no digest: 64 lower-case hexadecimal digits are, as `put` returns them.")
        return f"{self._root}/{digest[:2]}/{digest[2:]}"

    def _write(self, place: str, data: bytes) -> None:
        with _translate_errors("write", place):
            if self.protocols & ATOMIC_PROTOCOLS:
                self._files.pipe_file(place, data)
            else:
                self._rename(place, data)

    def _rename(self, place: str, data: bytes) -> None:
        # First under a unique name, so that neither a crash nor a concurrent writer leaves a partial blob.
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
def _translate_errors(action: str, place: str) -> Iterator[None]:
    try:
        yield
    except (BlobError, StoreMismatch):
        raise
    except Exception as error:  # each store's driver raises its own types
        raise BlobError(
            f"could not {action} {redact(place)}: {type(error).__name__}: {error}. Mend what hinders it, and try again."
        ) from error


def _missing_driver_message(url: str, error: ImportError) -> str:
    scheme = url.partition("://")[0]
    extra = f" (pip install 'continual-deltas[{EXTRAS[scheme]}]')" if scheme in EXTRAS else ""
    return f"blobs cannot be kept at {scheme}:// yet: {error}. Install that package{extra}, or give a folder."
