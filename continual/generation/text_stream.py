"""Text of tokens as they come: no half character, no part of a text that stops the answer."""

from collections.abc import Sequence
from typing import Any

REPLACEMENT = "\ufffd"  # what the first bytes of a character decode to


class TextStream:
    """Decodes an answer token by token; the parts that it returns add up to the text of all tokens.

    A token's text may depend on the one before it, and a character may consist of several tokens. Tokens are therefore
    decoded together with the last ones before them, and text is returned when no later token can change it.

    Args:
        tokenizer: The tokenizer; its special tokens are no text.
        stop: Texts at which the answer ends.
        strip: Whether white space at both ends is left out.

    Attributes:
        stopped: Whether the answer has reached a text of `stop`.
        text: What was returned so far.
    """

    def __init__(self, tokenizer: Any, *, stop: Sequence[str] = (), strip: bool = True) -> None:
        self._tokenizer, self._stop, self._strip = tokenizer, tuple(stop), strip
        self._ids: list[int] = []
        self._begin = self._end = 0  # tokens from `begin` on are decoded; those before `end` are in `_pending` or sent
        self._pending = ""  # decoded text that is held back
        self.stopped, self.text = False, ""

    def add(self, token: int) -> str:
        """Take the next token, and return the text that is certain by it; often empty."""
        self._ids.append(token)
        before, after = self._decode(self._end), self._decode(None)
        if len(after) > len(before) and not after.endswith(REPLACEMENT):
            self._pending += after[len(before) :]
            self._begin, self._end = self._end, len(self._ids)
        return self._release(final=False)

    def finish(self) -> str:
        """Return the rest of the text."""
        if not self.stopped:
            self._pending += self._decode(None)[len(self._decode(self._end)) :]
        return self._release(final=True)

    def _decode(self, end: int | None) -> str:
        text: str = self._tokenizer.decode(
            self._ids[self._begin : end], skip_special_tokens=True, clean_up_tokenization_spaces=False
        )
        return text

    def _release(self, *, final: bool) -> str:
        """Return what of the pending text is certain, and keep the rest."""
        places = [place for text in self._stop if (place := self._pending.find(text)) >= 0]
        if places and not self.stopped:
            self.stopped, self._pending = True, self._pending[: min(places)]
        if final or self.stopped:
            part, self._pending = self._pending.rstrip() if self._strip else self._pending, ""
        else:
            overlap = max((_overlap(self._pending, text) for text in self._stop), default=0)
            part = self._pending[: len(self._pending) - overlap]
            part = part.rstrip() if self._strip else part
            self._pending = self._pending[len(part) :]
        if self._strip and not self.text:
            part = part.lstrip()
        self.text += part
        return part


def _overlap(text: str, stop: str) -> int:
    """Return the length of the longest end of a text that is a beginning of `stop`.

    >>> _overlap("one, tw", "two")
    2
    """
    return next((length for length in range(min(len(text), len(stop) - 1), 0, -1) if text.endswith(stop[:length])), 0)
