"""Redaction of passwords, keys and tokens in URLs and messages, and of what is too long to quote."""

import re
from urllib.parse import unquote_plus

MASK = "***"
MAX_QUOTED = 200  # characters of a value that a message quotes
MIN_SECRET_LENGTH = 2  # secrets up to this length are masked in URLs only: they occur in ordinary words
# Everything before the last @ of an authority: a password may contain any character, even @ and /.
_USER = re.compile(r"(?<=://)(?!/)\S*@")
_VALUE = re.compile(r"([?&;][^\s=&;#?'\"]+=)[^\s&;#'\"]+")
_SECRET = re.compile(r"[?&;][^=&;]*(?:pass|pwd|secret|token|key|sig|cred|auth)[^=&;]*=([^&;#]+)", re.IGNORECASE)


def quote(value: str) -> str:
    """Return a value as messages quote it: its `repr`, cut after 200 characters.

    >>> quote("mood"), len(quote("a" * 1000))
    ("'mood'", 203)
    """
    return repr(value if len(value) <= MAX_QUOTED else f"{value[:MAX_QUOTED]}…")


def redact(text: str, *urls: str) -> str:
    """Mask the secrets of URLs in `text`, and the secrets of `urls` anywhere in it.

    The user part and every query value are masked, because a token may be in any of them.

    >>> redact("postgresql://ada:lovelace@db.example/registry?sslmode=require")
    'postgresql://***@db.example/registry?sslmode=***'
    >>> redact("no such option: lovelace", "postgresql://ada:lovelace@db.example/registry")
    'no such option: ***'
    """
    for secret in sorted({part for url in urls for part in _secrets(url)}, key=len, reverse=True):
        text = text.replace(secret, MASK)
    return _VALUE.sub(rf"\g<1>{MASK}", _USER.sub(f"{MASK}@", text))


def _secrets(url: str) -> set[str]:
    """Return the secrets of a URL, both as written and percent-decoded."""
    secrets = set(_SECRET.findall(url))
    if match := re.search(r"(?<=://)(?!/)(.*)@", url, re.DOTALL):
        secrets.add(match[1].partition(":")[2] or match[1])
    forms = {form for secret in secrets for form in (secret, unquote_plus(secret))}
    return {form for form in forms if len(form) > MIN_SECRET_LENGTH}
