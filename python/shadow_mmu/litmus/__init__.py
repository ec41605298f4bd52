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

from shadow_mmu.litmus.catalogue import CATALOGUE, Litmus, find
from shadow_mmu.litmus.models import MODELS
from shadow_mmu.litmus.verdict import Verdict, run

__all__ = ["CATALOGUE", "MODELS", "Litmus", "Verdict", "find", "run"]
