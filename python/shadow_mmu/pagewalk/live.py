"""Both dimensions of a machine: the guest's tables from its memory, the hardware's own as the machine tells them.

These are shadow tables, which translate the gva; or with ``mmu=tdp`` direct ones, which translate each gpa that the guest's walk meets.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, Protocol

from shadow_mmu.model.constants import PAGE_SIZE
from shadow_mmu.model.permissions import Context

from .access import Asked, answer, leaf_key, rights_in_words
from .guest import PDPTR, TableMemory, guest_dimension
from .shadow import ShadowPath, shadow_dimension, tlb_entry
from .types import AccessAnswer, EntryKind, PageWalk, WalkDimension, WalkStep
from .verdict import (
    compare,
    compare_direct,
    direct_words,
    may_decide_otherwise,
    pending_words,
    tlb_words,
    verdict_words,
)

__all__ = ["explain"]


class SlotMemory(TableMemory, Protocol):
    """The memory of a machine: tables, and what the guest may do to it."""

    def is_read_only(self, gpa: int, /) -> bool:
        """Whether the guest may only read what is at a gpa."""


Way = Callable[[int, int], Mapping[str, Any]]


def explain(
    memory: SlotMemory,
    shadow_path: Way,
    context_of: Callable[[tuple[int, int, int, int, int]], Context],
    gva: int,
    vcpu: int,
    *,
    asked: Asked | None = None,
) -> PageWalk:
    """Explain a translation of a machine at rest; the machine is only looked at.

    Parameters
    ----------
    memory : SlotMemory
        Guest memory.
    shadow_path : callable
        Of the machine: from (vCPU, address) to the way through its shadow tables.
    context_of : callable
        From (CR0, CR3, CR4, EFER, PKRU) to the rules of the guest's walk.
    gva, vcpu : int
    asked : Asked, optional
        An access to be answered too.

    """
    path = ShadowPath.from_dict(shadow_path(vcpu, gva))
    context = context_of(path.registers)
    guest = guest_dimension(memory, context, path.registers[1], gva, path.pdptrs)
    in_memory = guest.address is not None and memory.holds(guest.address & ~(PAGE_SIZE - 1), PAGE_SIZE)
    read_only = guest.address is not None and memory.is_read_only(guest.address)
    tlb = tlb_entry(path, guest)
    if path.two_dimensions:
        direct, missing = _direct(shadow_path, vcpu, guest)
        verdict = compare_direct(guest, direct, in_memory=in_memory)
        loose = False
        unwritable = [step for step in _read(guest) if memory.is_read_only(step.entry_address)]
        second, found = direct, [*direct_words(verdict, missing, unwritable), tlb_words(tlb, guest, path.requests)]
    else:
        shadow = shadow_dimension(path, guest.start, canonical=guest.end is not EntryKind.NON_CANONICAL)
        verdict = compare(context, guest, shadow, in_memory=in_memory)
        loose = may_decide_otherwise(verdict, guest, shadow)
        second, found = (
            shadow,
            [verdict_words(verdict, guest, shadow, read_only=read_only), tlb_words(tlb, shadow, path.requests)],
        )
    rights = (
        []
        if guest.rights is None
        else [f"by the guest's tables {rights_in_words(context, guest.rights, leaf_key(context, guest))}"]
    )
    if read_only:
        found.append("the memslot is read-only: a write that the guest's tables allow is an MMIO exit")
    notes = (*rights, *found, *pending_words(path))
    reply = None if asked is None else answer(context, guest, asked, in_memory=in_memory, read_only=read_only)
    if reply is not None and path.shut_down:
        reply = AccessAnswer(reply.access, "triple fault", None, "the vCPU is shut down")
    elif reply is not None and loose:
        reply = replace(reply, reason=f"{reply.reason} (the shadow's entry may still decide otherwise)")
    return PageWalk(gva, guest, second, vcpu, verdict, tlb, reply, notes)


def _direct(shadow_path: Way, vcpu: int, guest: WalkDimension) -> tuple[WalkDimension | None, list[WalkStep]]:
    """Return the second dimension of the page that the guest's walk reaches, and the guest's tables that have none."""

    def way(gpa: int) -> WalkDimension:
        return shadow_dimension(ShadowPath.from_dict(shadow_path(vcpu, gpa)), gpa)

    missing = [step for step in _read(guest) if way(step.entry_address).address is None]
    return None if guest.address is None else way(guest.address), missing


def _read(guest: WalkDimension) -> list[WalkStep]:
    """Return the steps whose entry is read from a table in memory."""
    return [step for step in guest.steps if step.name != PDPTR and step.kind is not EntryKind.ABSENT]
