"""One guest access: TLB, hardware walk of the shadow tables, exits (``docs/machine.md`` §5).

TLB NOTE: the TLB can be ignored at a first reading; without it :func:`access` walks the shadow tables every time.
"""

from shadow_mmu.errors import ShadowMmuError

from . import spte as sptes
from .constants import (
    DUMMY_ROOT,
    INDEX,
    INVALID_ROOT,
    PAGE_OFFSET,
    PAGE_SHIFT,
    PF_P,
    PF_RSVD,
    PFN_MASK,
    RAM_BASE_PFN,
    SHADOW_BASE_PFN,
    STORE,
    WORD,
    WRITE,
)
from .fault import Emulate, GuestFault, Mmio, Resolution, handle_page_fault, reaches_memory
from .invlpg import invalidate_address
from .ops import GENERAL_PROTECTION, MMIO, PAGE_FAULT, SHUT_DOWN, Outcome
from .pae_roots import is_pae
from .requests import enter_guest
from .tdp import Violation, handle_violation, walk_in_two_dimensions
from .vcpu import AccessRights, Vcpu
from .vm import SharedState
from .writes import emulate_store, emulate_translation

MAX_TRIES = 64
"""An access that faults more often than this makes no progress: a bug of the model, shown instead of a hang."""


def is_canonical(vcpu: Vcpu, gva: int) -> bool:
    """Whether the bits above the mode's address width repeat its top bit (E116); every 32-bit address is."""
    return gva <= vcpu.canonical or gva >= WORD - vcpu.canonical


def effective_address(vcpu: Vcpu, gva: int) -> int:
    """Return the address as an instruction of this mode forms it: outside long mode of 32 bits."""
    return gva if vcpu.context.long else gva & 0xFFFFFFFF


def access(
    vm: SharedState, vcpu: Vcpu, gva: int, kind: int, flags: int, *, value: int = 0, size: int = 0
) -> int | Outcome:
    """Make one guest access: the gpa that it reached, or how else it ended.

    Parameters
    ----------
    vm, vcpu : SharedState, Vcpu
        Where.
    gva : int
        The address; a STORE stays within its page.
    kind : int
        READ, WRITE, FETCH or STORE.
    flags : int
        USER, AC and IMPLICIT count.
    value, size : int
        What a STORE stores.

    """
    if vcpu.shut_down:
        return SHUT_DOWN
    gva = effective_address(vcpu, gva)
    if vcpu.canonical < gva < WORD - vcpu.canonical:
        return GENERAL_PROTECTION
    rights = vcpu.rights_of(WRITE if kind == STORE else kind, flags)
    page = gva >> PAGE_SHIFT
    for _ in range(MAX_TRIES):
        pending = vcpu.requests or vcpu.root.hpa == INVALID_ROOT or vcpu.cr3_unsettled is not None
        if pending and not enter_guest(vm, vcpu):
            return SHUT_DOWN
        spte = vcpu.tlb.entries.get(page, 0)
        if not permits(rights, spte):
            if spte:
                vcpu.tlb.drop(page)
            found = (
                hardware_walk(vm, vcpu, gva, rights)
                if not vcpu.tdp
                else walk_in_two_dimensions(vm, vcpu, gva, rights.access)
            )
            if not isinstance(found, int) or found <= PF_P:
                end = _exit(vm, vcpu, gva, rights, found)
                if end is None:
                    continue
                if isinstance(end, Outcome):
                    return end
                gpa = end.gfn << PAGE_SHIFT | gva & PAGE_OFFSET
                if not reaches_memory(vm, end.gfn, rights.access):
                    vcpu.counters["mmio_exits"] += 1
                    return Outcome(MMIO, gpa)
                if kind == STORE:
                    emulate_store(vm, vcpu, gpa, value, size)
                elif rights.access.write:
                    emulate_translation(vm, vcpu, gpa)
                return gpa
            spte = found
            vcpu.tlb.fill(page, spte)
        gpa = ((spte & PFN_MASK) >> PAGE_SHIFT) - RAM_BASE_PFN << PAGE_SHIFT | gva & PAGE_OFFSET
        if kind == STORE:
            vm.memory.store(gpa, value, size)
        return gpa
    raise ShadowMmuError(f"the access to gva {gva:#x} made no progress in {MAX_TRIES} tries")


def permits(rights: AccessRights, spte: int) -> bool:
    """Whether a leaf permits the access (§5 step 3)."""
    if spte & rights.need != rights.need or spte & rights.forbid:
        return False
    return not (rights.denied_keys and spte & sptes.U and rights.denied_keys >> sptes.key_of(spte) & 1)


def hardware_walk(vm: SharedState, vcpu: Vcpu, gva: int, rights: AccessRights) -> int:
    """Walk the shadow tables as the processor does: the leaf SPTE if it permits the access, after A and D were set.

    An exit is returned as the P bit of its error code: 0 for an entry that is not present, 1 for one that does not permit.
    """
    hpa = vcpu.root.hpa
    if hpa == DUMMY_ROOT:
        return 0
    live = vm.books.live
    if is_pae(vcpu.root):
        hpa = vcpu.root.entries[gva >> 30]
        if not hpa:
            return 0
    page = live[(hpa >> PAGE_SHIFT) - SHADOW_BASE_PFN]
    for level in range(page.level, 1, -1):
        link = page.sptes.get(gva >> (3 + 9 * level) & INDEX)
        if link is None:
            return 0
        page = live[((link & PFN_MASK) >> PAGE_SHIFT) - SHADOW_BASE_PFN]
    index = gva >> PAGE_SHIFT & INDEX
    spte = page.sptes.get(index, 0)
    if not spte & sptes.P:
        return 0
    if not permits(rights, spte):
        return PF_P
    used = spte | sptes.A | (sptes.D if rights.access.write else 0)
    if used != spte:
        page.sptes[index] = used
    return used


def _exit(
    vm: SharedState, vcpu: Vcpu, gva: int, rights: AccessRights, found: int | GuestFault | Violation
) -> Outcome | Emulate | None:
    """Resolve what is no translation: the end of the access, an instruction to emulate, or ``None`` to try again."""
    result: Resolution
    if isinstance(found, int):
        result = handle_page_fault(vm, vcpu, gva, rights.access, rights.code | found)
    elif isinstance(found, Violation):
        result = handle_violation(vm, vcpu, found, gva, rights.access)
    else:
        result = found  # the hardware gives the guest its fault: no exit
    if isinstance(result, GuestFault):
        vcpu.tlb.drop(gva >> PAGE_SHIFT)
        if result.code & PF_P and not result.code & PF_RSVD:
            invalidate_address(vm, vcpu, vcpu.root, gva)  # a fault evicts the entry (E070)
        return Outcome(PAGE_FAULT, gva, result.code)
    if isinstance(result, Mmio):
        return Outcome(MMIO, result.gfn << PAGE_SHIFT | gva & PAGE_OFFSET)
    return result if isinstance(result, Emulate) else None
