"""Bytes by the SHA-256 of their content, in any place fsspec reaches."""

import re
from hashlib import sha256
from typing import final
from uuid import uuid4

import fsspec

from registry.errors import BlobError
from registry.secrets import shown
from tasks.errors import InputError


@final
class Blobs:
    """A content-addressed store: `url` is a folder, or any URL of fsspec such as `memory://blobs`.

    >>> blobs = Blobs("memory://example")
    >>> blobs.get(blobs.put(b"delta"))
    b'delta'
    """

    def __init__(self, url: str) -> None:
        try:
            self._files, self._root = fsspec.core.url_to_fs(url)
        except (ValueError, ImportError, OSError) as error:
            why = shown(f"blobs cannot be kept at {url}: {error}", url)
            raise InputError(f"{why}. Give a folder or a URL of fsspec.") from None  # its cause may quote the URL

    def put(self, data: bytes) -> str:
        """Stores `data` and returns its digest; content already there is left, and mended where it was damaged."""
        digest = sha256(data).hexdigest()
        try:
            self.get(digest)
        except BlobError:
            self._write(self.path(digest), data)
        return digest

    def get(self, digest: str) -> bytes:
        """The bytes of `digest`, checked against it at every read.

        Raises: BlobError, where they are missing or others.
        """
        place = self.path(digest)
        try:
            data: bytes = self._files.cat_file(place)
        except FileNotFoundError as error:
            raise BlobError(
                f"blob {digest} is missing: nothing at {shown(place)}. Restore it, or learn the task again."
            ) from error
        found = sha256(data).hexdigest()
        if found != digest:
            raise BlobError(
                f"blob {digest} is damaged: the {len(data)} bytes at {shown(place)} have digest {found}. "
                "Restore the file, or delete it and learn the task again."
            )
        return data

    def exists(self, digest: str) -> bool:
        """Whether something is stored under `digest` (its bytes are checked on reading)."""
        return bool(self._files.exists(self.path(digest)))

    def path(self, digest: str) -> str:
        """Where `digest` lies; sharded by its first two digits, so that no folder grows large.

        Raises: BlobError, where `digest` is not the 64 hexadecimal digits of a SHA-256.
        """
        if not re.fullmatch(r"[0-9a-f]{64}", digest):
            raise BlobError(f"{digest!r} is no digest: 64 lower-case hexadecimal digits are, as `put` returns them.")
        return f"{self._root}/{digest[:2]}/{digest[2:]}"

    def _write(self, place: str, data: bytes) -> None:
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
