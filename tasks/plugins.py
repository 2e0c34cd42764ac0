"""Catalogues of plugins: built-in ones, and those that installed packages declare as entry points."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import Generic, TypeVar, final

from tasks.errors import InputError

T = TypeVar("T")


def closest_match(name: str, known_names: Iterable[str]) -> str | None:
    """Return the known name that a mistyped name is closest to, or None where none is close.

    >>> closest_match("lorra", ["adapter", "lora"])
    'lora'
    """
    return next(iter(difflib.get_close_matches(name, list(known_names), n=1)), None)


@cache
def entry_points_in(group: str) -> Mapping[str, tuple[EntryPoint, ...]]:
    """Return the entry points that installed packages declare in a group, by name, without importing them."""
    declared = entry_points(group=group)
    return {name: tuple(declared.select(name=name)) for name in sorted(declared.names)}


@final
class PluginRegistry(Mapping[str, T], Generic[T]):
    """Plugins by name: built-in ones, then those that installed packages declare in an entry-point group.

    A package's plugin is imported when it is first looked up.

    Args:
        noun: A plugin in one word, for messages.
        group: The entry-point group.
        check: Returns the imported object if it is such a plugin, else a message that says what it should be.
        built_in: The built-in plugins; `register` adds more.
        error: The error that is raised for an unknown name or a faulty package.

    >>> numbers = PluginRegistry("number", "example.numbers", check=lambda x: x if isinstance(x, int) else "an int",
    ...                          built_in={"one": 1})
    >>> list(numbers), numbers["one"], "two" in numbers
    (['one'], 1, False)
    >>> numbers.lookup("ome")
    Traceback (most recent call last):
        ...
    tasks.errors.InputError: number 'ome' is not known; did you mean 'one'. Known: one
    """

    def __init__(
        self,
        noun: str,
        group: str,
        *,
        check: Callable[[object], T | str],
        built_in: Mapping[str, T] | None = None,
        error: type[InputError] = InputError,
    ) -> None:
        self.group = group
        self._noun, self._check, self._error = noun, check, error
        self._built_in: dict[str, T] = dict(built_in or {})
        self._loaded: dict[str, T] = {}

    @property
    def built_in(self) -> Mapping[str, T]:
        """The built-in plugins, by name."""
        return self._built_in

    def register(self, plugins: Mapping[str, T]) -> None:
        """Add built-in plugins, where the catalogue is in a module that imports this registry's."""
        self._built_in |= plugins

    def lookup(self, name: str, *, also_known: Iterable[str] = ()) -> T:
        """Return the plugin of a name.

        Args:
            name: The name.
            also_known: Further names that the caller accepts, for the message.

        Raises:
            InputError: The name is unknown, or its package is faulty (of the registry's error class).
        """
        if name in self:
            return self[name]
        known_names = [*also_known, *self]
        match = closest_match(name, known_names)
        hint = f"; did you mean {match!r}" if match else ""
        raise self._error(f"{self._noun} {name!r} is not known{hint}. Known: {', '.join(known_names)}")

    def __getitem__(self, name: str) -> T:
        """Return the plugin of a name.

        Raises:
            KeyError: The name is unknown.
            InputError: The plugin's package is faulty (of the registry's error class).
        """
        declared = entry_points_in(self.group).get(name, ())
        if len(declared) + (name in self._built_in) > 1:
            raise self._error(
                f"{name!r} of {self.group} is offered more than once: {', '.join(self._sources(name, declared))}; "
                "uninstall one of the packages, or rename its entry point"
            )
        if name in self._built_in:
            return self._built_in[name]
        if name not in self._loaded:
            if not declared:
                raise KeyError(name)
            self._loaded[name] = self._load(declared[0])
        return self._loaded[name]

    def __iter__(self) -> Iterator[str]:
        """Yield the names, built-in ones first."""
        yield from self._built_in
        yield from (name for name in entry_points_in(self.group) if name not in self._built_in)

    def __len__(self) -> int:
        """Return the number of names."""
        return sum(1 for _ in self)

    def __contains__(self, name: object) -> bool:
        """Whether there is a plugin of this name; nothing is imported."""
        return name in self._built_in or name in entry_points_in(self.group)

    def _load(self, entry: EntryPoint) -> T:
        try:
            plugin = entry.load()
        except Exception as error:  # a package may raise anything when it is imported
            raise self._error(
                f"{entry.name!r} of {self.group}, from {_source(entry)}, cannot be imported: "
                f"{type(error).__name__}: {error}; mend or uninstall the package"
            ) from error
        checked = self._check(plugin)
        if isinstance(checked, str):
            raise self._error(
                f"{entry.name!r} of {self.group}, from {_source(entry)}, is {plugin!r}, and should be {checked}; "
                "mend its entry point"
            )
        return checked

    def _sources(self, name: str, declared: tuple[EntryPoint, ...]) -> Iterator[str]:
        if name in self._built_in:
            yield "built in"
        yield from map(_source, declared)


def _source(entry: EntryPoint) -> str:
    package = entry.dist.name if entry.dist else "a package"
    return f"{package} ({entry.value})"
