"""Checks of plain values that a caller gives, with the texts of their errors."""

import operator
from typing import SupportsIndex

from shadow_mmu.errors import ConfigError


def whole(name: str, value: object, low: int, high: int) -> int:
    """Return ``value`` as an int if it is a whole number in ``low..high``.

    Raises
    ------
    ConfigError
        It is not.

    """
    if isinstance(value, SupportsIndex) and not isinstance(value, bool):
        number = operator.index(value)
        if low <= number <= high:
            return number
    raise ConfigError(f"{name} is {shown(value)}: expected a whole number from {low:,} to {high:,}")


def shown(value: object) -> str:
    """Return the text of a value for an error. Python refuses to write integers of thousands of digits."""
    if isinstance(value, int) and value.bit_length() > 1024:
        return f"an integer of {value.bit_length():,} bits"
    return repr(value)
