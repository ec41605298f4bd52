"""Fields of values, compared without asking them for their own equality as a whole."""

import numpy as np


def differ(one: object, other: object) -> bool:
    """Whether two fields differ; arrays, also those in sequences and mappings, as wholes."""
    if isinstance(one, np.ndarray) and isinstance(other, np.ndarray):
        return not np.array_equal(one, other)
    if isinstance(one, list | tuple) and isinstance(other, list | tuple):
        return len(one) != len(other) or any(map(differ, one, other))
    if isinstance(one, dict) and isinstance(other, dict):
        return differ(list(one.items()), list(other.items()))
    return type(one) is not type(other) or repr(one) != repr(other) or bool(one != other)
