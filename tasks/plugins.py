"""What other packages add: things by name, which they declare as entry points."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import Generic, TypeVar, final

from tasks.errors import InputError

T = TypeVar("T")


@cache
def entry_points_in(group: str) -> Mapping[str, tuple[EntryPoint, ...]]:
    """The entry points that installed packages declare in a group, by name; nothing is imported."""
    found = entry_points(group=group)
    return {name: tuple(found.select(name=name)) for name in sorted(found.names)}


@final
class PluginRegistry(Mapping[str, T], Generic[T]):
    """Things of our own by name, and those that installed packages declare in `group`.

    One of a package is imported when it is first looked up. check: what was imported, if it is such a thing, or a
    message that says what it should be · error: what is raised then, and where two packages, or a package and we, use
    the same name.

    >>> numbers = Open({"one": 1}, "example.numbers", check=lambda found: found if isinstance(found, int) else "an int")
    >>> list(numbers), numbers["one"], "two" in numbers
    (['one'], 1, False)
    """

    def __init__(
        self,
        own: Mapping[str, T],
        group: str,
        *,
        check: Callable[[object], T | str],
        error: type[InputError] = InputError,
    ) -> None:
        self._own, self._group, self._check, self._error = own, group, check, error
        self._loaded: dict[str, T] = {}

    def __getitem__(self, name: str) -> T:
        """Raises KeyError for an unknown name, and `error` where a package's thing cannot be had."""
        offers = entry_points_in(self._group).get(name, ())
        if len(offers) + (name in self._own) > 1:
            raise self._error(
                f"{name!r} of {self._group} is offered more than once: {', '.join(self._sources(name, offers))}; "
                "uninstall one of the packages, or rename its entry point"
            )
        if name in self._own:
            return self._own[name]
        if name not in self._loaded:
            if not offers:
                raise KeyError(name)
            self._loaded[name] = self._load(offers[0])
        return self._loaded[name]

    def __iter__(self) -> Iterator[str]:
        yield from self._own
        yield from (name for name in entry_points_in(self._group) if name not in self._own)

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def __contains__(self, name: object) -> bool:
        return name in self._own or name in entry_points_in(self._group)

    def _load(self, entry: EntryPoint) -> T:
        try:
            found = entry.load()
        except Exception as error:  # whatever a package does when it is imported
            raise self._error(
                f"{entry.name!r} of {self._group}, from {_source(entry)}, cannot be imported: "
                f"{type(error).__name__}: {error}; mend or uninstall the package"
            ) from error
        checked = self._check(found)
        if isinstance(checked, str):
            raise self._error(
                f"{entry.name!r} of {self._group}, from {_source(entry)}, is {found!r}, and should be {checked}; "
                "mend its entry point"
            )
        return checked

    def _sources(self, name: str, offers: tuple[EntryPoint, ...]) -> Iterator[str]:
        if name in self._own:
            yield "built in"
        yield from map(_source, offers)


def _source(entry: EntryPoint) -> str:
    package = entry.dist.name if entry.dist else "a package"
    return f"{package} ({entry.value})"
