"""The memory models: each is the rule that says which execution graphs can happen."""

from typing import Final

from shadow_mmu.errors import ConfigError
from shadow_mmu.litmus.models.base import Model
from shadow_mmu.litmus.models.rc11 import Rc11
from shadow_mmu.litmus.models.sc import Sc
from shadow_mmu.litmus.models.tso import Tso

__all__ = ["MODELS", "Model", "model"]

MODELS: Final[dict[str, Model]] = {one.name: one for one in (Sc(), Tso(), Rc11())}
"""The models by name, strongest first."""


def model(name: str) -> Model:
    """Return the model of a name.

    Raises
    ------
    ConfigError
        There is no such model.

    """
    found = MODELS.get(name.lower())
    if found is None:
        raise ConfigError(f"no memory model {name!r}: expected {', '.join(MODELS)}")
    return found
