"""A small weak-memory explorer for litmus tests, and the lock-free protocols of the shadow MMU as such tests.

It visits every execution of a small concurrent program that a memory model allows (SC, x86-TSO, RC11) and says whether a
forbidden outcome is among them; if it is, the execution is shown as a timeline. See ``docs/litmus.md``.

>>> from shadow_mmu.litmus import run
>>> run("SB", "F_0=F_NONE", "sc").outcome, run("SB", "F_0=F_NONE", "tso").outcome
('ok', 'BAD')

Read it in this order: :mod:`~shadow_mmu.litmus.program` (what a test is), :mod:`~shadow_mmu.litmus.thread`,
:mod:`~shadow_mmu.litmus.graph` (executions), :mod:`~shadow_mmu.litmus.models` (which of them can happen),
:mod:`~shadow_mmu.litmus.explore` (how all are found), :mod:`~shadow_mmu.litmus.timeline` (how one is shown),
:mod:`~shadow_mmu.litmus.catalogue` (the tests).
"""

# As in the package above: what is used is loaded when it is used, so that ``shadow-mmu --help`` does not build the catalogue.
TYPE_CHECKING = False

if TYPE_CHECKING:
    from shadow_mmu.litmus.catalogue import CATALOGUE, Litmus, find
    from shadow_mmu.litmus.models import MODELS
    from shadow_mmu.litmus.verdict import Verdict, run

__all__ = ["CATALOGUE", "MODELS", "Litmus", "Verdict", "find", "run"]

_HOME_OF = {
    "CATALOGUE": "catalogue",
    "Litmus": "catalogue",
    "find": "catalogue",
    "MODELS": "models",
    "Verdict": "verdict",
    "run": "verdict",
}


def __getattr__(name: str) -> object:
    home = _HOME_OF.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module  # noqa: PLC0415  the same

    value: object = getattr(import_module(f"{__name__}.{home}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
