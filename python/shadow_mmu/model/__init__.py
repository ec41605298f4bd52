"""The reference model: the shadow MMU as an executable specification, in pure Python.

Two parts. :class:`Machine` is the deterministic machine of ``docs/machine.md``: the same operations, outcomes, shadow pages,
roots, counters and trace events as the compiled core, one operation at a time. :class:`LegalTranslations` is an oracle that
knows no shadow pages at all: which translations an access may use, stale ones included (D.5).

Read it in this order: :mod:`.permissions`, :mod:`.walk` (the guest's tables), :mod:`.role`, :mod:`.spte`, :mod:`.pages` (the
shadow's), :mod:`.unsync`, :mod:`.leaf`, :mod:`.zap`, :mod:`.sync`, :mod:`.lookup`, :mod:`.fault` (how one comes from the other),
:mod:`.roots`, :mod:`.requests`, :mod:`.invlpg`, :mod:`.writes` (what invalidates), :mod:`.access`, :mod:`.translate`,
:mod:`.machine`. Ids in
comments (E..., C.x, I..., F-...) are those of the semantics that the project implements; KVM's names are kept.

Nothing here imports numpy or the compiled core.
"""

from .legal import LegalTranslations
from .machine import HypervisorMemory, Machine
from .ops import Op, Outcome

__all__ = ["HypervisorMemory", "LegalTranslations", "Machine", "Op", "Outcome"]
