"""What makes results values: mappings that do not change, and equality and hashes of classes that hold arrays.

A frozen dataclass of plain values compares, hashes, copies and pickles by itself. Two kinds of fields take that away, and
come back by this module: mappings (a view of a dictionary can be neither hashed nor pickled) and numpy arrays (which
compare element by element).
"""

from collections.abc import Hashable, Iterable, Iterator, Mapping
from dataclasses import fields
from typing import Any, Self, TypeVar

_K = TypeVar("_K", bound=Hashable)
_V = TypeVar("_V")


class FrozenDict(Mapping[_K, _V]):
    """A mapping that does not change. It equals every mapping of the same items, and can be hashed if its values can.

    >>> counts = FrozenDict({"load": 2, "sync": 1})
    >>> counts["load"], counts == {"sync": 1, "load": 2}
    (2, True)
    >>> hash(counts) == hash(FrozenDict({"sync": 1, "load": 2}))
    True
    """

    __slots__ = ("_items",)

    _items: dict[_K, _V]

    def __init__(self, items: "Mapping[_K, _V] | Iterable[tuple[_K, _V]]" = ()) -> None:
        object.__setattr__(self, "_items", dict(items))

    def __getitem__(self, key: _K) -> _V:
        return self._items[key]

    def __iter__(self) -> Iterator[_K]:
        return iter(self._items)

    def __len__(self) -> int:
        return len(self._items)

    def __hash__(self) -> int:
        return hash(key_of(self))

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"a FrozenDict does not change: {name!r} cannot be set")

    def __copy__(self) -> Self:
        return self

    def __reduce__(self) -> tuple[type[Self], tuple[dict[_K, _V]]]:
        return type(self), (dict(self._items),)

    def __repr__(self) -> str:
        return f"FrozenDict({self._items!r})"


def key_of(value: object) -> Hashable:
    """Return something to compare and to hash in the place of a value: arrays by type, shape and content."""
    if isinstance(value, Mapping):
        return frozenset((key, key_of(item)) for key, item in value.items())
    if isinstance(value, (tuple, list)):
        return tuple(map(key_of, value))
    if hasattr(value, "dtype") and hasattr(value, "tobytes"):
        return str(value.dtype), getattr(value, "shape", ()), value.tobytes()
    if not isinstance(value, Hashable):
        raise TypeError(f"{type(value).__name__} can be no part of a value")
    return value


def _key(one: Any) -> tuple[Hashable, ...]:  # noqa: ANN401  any dataclass
    return tuple(key_of(getattr(one, field.name)) for field in fields(one) if field.compare)


def same(one: object, other: object) -> Any:  # noqa: ANN401  bool or NotImplemented, as Python asks
    """Compare two values of a dataclass made with ``eq=False``; to be its ``__eq__``."""
    if type(one) is not type(other):
        return NotImplemented
    return one is other or _key(one) == _key(other)


def digest(one: object) -> int:
    """Hash a value of such a class, consistently with :func:`same`; to be its ``__hash__``."""
    return hash((type(one), _key(one)))
