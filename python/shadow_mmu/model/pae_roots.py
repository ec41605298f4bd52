"""Roots of four entries, the roots of guests without long mode: their tables, their PDPTRs, whom they serve (E040, E043, E101).

KVM has one such root for a vCPU. Here there are as many tables of four entries as a vCPU may have roots, so that one can be parked
in the root cache; a root names its table by its address, from ``PAE_ROOT`` downwards.
"""

from .constants import GPTE_P, PAE_ROOT, PAE_TABLES, PAGE_OFFSET, PAGE_SHIFT, PAGE_SIZE, PFN_MASK
from .permissions import pdptr_is_reserved
from .role import pae_root_role
from .vcpu import Root, Vcpu
from .vm import SharedState


def is_pae(root: Root) -> bool:
    """Whether the root is four entries instead of a shadow page."""
    return PAE_ROOT - (PAE_TABLES - 1) * PAGE_SIZE <= root.hpa <= PAE_ROOT


def free_table(vcpu: Vcpu) -> int:
    """Return the address of the lowest table that is no previous root's: that of the root to be loaded."""
    used = {root.hpa for root in vcpu.previous}
    return next(hpa for hpa in range(PAE_ROOT, 0, -PAGE_SIZE) if hpa not in used)


def serves(vm: SharedState, root: Root, role: int, pdptrs: tuple[int, ...]) -> bool:
    """Whether a root of four entries serves a vCPU with this root role that has loaded these PDPTRs.

    It must be made of the same ones (F-10), and each of its pages must have the wanted role, the whole word, so that an obsolete
    page never serves (E024).
    """
    roles = ((vm.books.page_at(hpa).role, pae_root_role(role, i)) for i, hpa in enumerate(root.entries) if hpa)
    return is_pae(root) and root.pdptrs == pdptrs and all(found == wanted for found, wanted in roles)


def table_of(vm: SharedState, pdptr: int) -> int | None:
    """Return the frame of the table that a PDPTR leads to, if it is present and the table in memory."""
    frame = (pdptr & PFN_MASK) >> PAGE_SHIFT
    return frame if pdptr & GPTE_P and vm.memory.has(frame) else None


def lacks_page(vm: SharedState, root: Root) -> bool:
    """Whether there is no page for a PDPTR whose table is in memory by now (E016)."""
    return any(
        not hpa and table_of(vm, pdptr) is not None for hpa, pdptr in zip(root.entries, root.pdptrs, strict=True)
    )


def read_pdptrs(vm: SharedState, vcpu: Vcpu, cr3: int) -> tuple[int, ...] | None:
    """Read the four PDPTRs; ``None`` if they are in no memslot or a present one has a reserved bit set (B.3)."""
    gpa = cr3 & PFN_MASK | cr3 & PAGE_OFFSET & ~0x1F
    if not vm.memory.has(gpa >> PAGE_SHIFT):
        return None
    pdptrs = tuple(vm.memory.word(gpa + 8 * i) for i in range(4))
    bad = any(pdptr & GPTE_P and pdptr_is_reserved(pdptr, vcpu.cpu.maxphyaddr) for pdptr in pdptrs)
    return None if bad else pdptrs
