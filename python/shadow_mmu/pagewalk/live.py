"""Both dimensions of a machine: the guest's tables from its memory, the shadow's as the machine tells them."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from shadow_mmu.model.constants import PAGE_SIZE
from shadow_mmu.model.permissions import Context

from .access import Asked, answer, rights_in_words
from .guest import TableMemory, guest_dimension
from .shadow import ShadowPath, shadow_dimension, tlb_entry
from .types import AccessAnswer, EntryKind, PageWalk, Verdict
from .verdict import compare, pending_words, tlb_words, verdict_words

__all__ = ["explain"]


def explain(
    memory: TableMemory,
    shadow_path: Callable[[int, int], Mapping[str, Any]],
    context_of: Callable[[tuple[int, int, int, int]], Context],
    gva: int,
    vcpu: int,
    *,
    asked: Asked | None = None,
) -> PageWalk:
    """Explain a translation of a machine at rest; the machine is only looked at.

    Parameters
    ----------
    memory : TableMemory
        Guest memory.
    shadow_path : callable
        Of the machine: from (vCPU, address) to the way through its shadow tables.
    context_of : callable
        From (CR0, CR3, CR4, EFER) to the rules of the guest's walk.
    gva, vcpu : int
    asked : Asked, optional
        An access to be answered too.

    """
    path = ShadowPath.from_dict(shadow_path(vcpu, gva))
    context = context_of(path.registers)
    guest = guest_dimension(memory, context, path.registers[1], gva, path.pdptrs)
    shadow = shadow_dimension(path, guest.start, canonical=guest.end is not EntryKind.NON_CANONICAL)
    in_memory = guest.address is not None and memory.holds(guest.address & ~(PAGE_SIZE - 1), PAGE_SIZE)
    verdict = compare(context, guest, shadow, in_memory=in_memory)
    tlb = tlb_entry(path, guest.start)
    reply = None if asked is None else answer(context, guest, asked, in_memory=in_memory)
    if reply is not None and verdict is Verdict.STALE:
        reply = replace(reply, reason=f"{reply.reason} (the stale entry may still decide otherwise)")
    if reply is not None and path.shut_down:
        reply = AccessAnswer(reply.access, "triple fault", None, "the vCPU is shut down")
    notes = [] if guest.rights is None else [f"by the guest's tables {rights_in_words(context, guest.rights)}"]
    notes += [verdict_words(verdict, guest, shadow), tlb_words(tlb, shadow, path.requests), *pending_words(path)]
    return PageWalk(gva, guest, shadow, vcpu, verdict, tlb, reply, tuple(notes))
