"""URLs as they may be shown: without the passwords, keys and tokens that they carry."""

import re
from urllib.parse import unquote_plus

MASK = "***"
MIN_SECRET_LENGTH = 2  # so short a secret is hidden in URLs alone: every other word of a message would hold it
# What stands before the last @ of an authority: a password may hold any sign, an @ and a / among them.
_USER = re.compile(r"(?<=://)(?!/)\S*@")
_VALUE = re.compile(r"([?&;][^\s=&;#?'\"]+=)[^\s&;#'\"]+")
_SECRET = re.compile(r"[?&;][^=&;]*(?:pass|pwd|secret|token|key|sig|cred|auth)[^=&;]*=([^&;#]+)", re.IGNORECASE)


def redact(text: str, *urls: str) -> str:
    """`text` with no secret of a URL in it, and with none of those of `urls`, wherever in it they stand.

    Who logs in and every value of a query are hidden, because a token may be any of them.

    >>> shown("postgresql://ada:lovelace@db.example/registry?sslmode=require")
    'postgresql://***@db.example/registry?sslmode=***'
    >>> shown("no such option: lovelace", "postgresql://ada:lovelace@db.example/registry")
    'no such option: ***'
    """
    for secret in sorted({part for url in urls for part in _secrets(url)}, key=len, reverse=True):
        text = text.replace(secret, MASK)
    return _VALUE.sub(rf"\g<1>{MASK}", _USER.sub(f"{MASK}@", text))


def _secrets(url: str) -> set[str]:
    """The secrets of a URL, as they stand in it and as a driver gets them."""
    found = set(_SECRET.findall(url))
    if user := re.search(r"(?<=://)(?!/)(.*)@", url, re.DOTALL):
        found.add(user[1].partition(":")[2] or user[1])
    forms = {form for secret in found for form in (secret, unquote_plus(secret))}
    return {form for form in forms if len(form) > MIN_SECRET_LENGTH}
