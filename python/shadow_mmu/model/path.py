"""How the shadow tables translate an address now, to be looked at: the way of :func:`.access.hardware_walk`, with nothing changed."""

from typing import Any

from .access import effective_address, is_canonical
from .constants import INDEX, PAGE_SHIFT
from .pae_roots import is_pae
from .pages import ShadowPage
from .roots import root_page
from .vcpu import Vcpu
from .vm import SharedState


def shadow_path(vm: SharedState, vcpu: Vcpu, gva: int) -> dict[str, Any]:
    """Return the entries on the way to ``gva``, and what decides it; keys: see ``docs/native.md``.

    In two dimensions (``mmu=tdp``) the way is that of the address taken for a gpa, and only the TLB's entry is of the gva.
    An access would service requests, load a root, set A and D, fill the TLB. This does none of it and counts nothing.
    """
    gva, given = effective_address(vcpu, gva), gva
    # In two dimensions what the hardware's own tables translate is a gpa, of which four levels take 48 bits.
    address = given if vcpu.tdp else gva
    translatable = not given >> 48 if vcpu.tdp else is_canonical(vcpu, gva)
    registers = vcpu.registers
    page = root_page(vm, vcpu.root, address) if translatable else None
    return {
        "registers": (registers.cr0, registers.cr3, registers.cr4, registers.efer, registers.pkru),
        "pdptrs": list(vcpu.pdptrs),
        "two_dimensions": vcpu.tdp,
        "root": vcpu.root.hpa,
        "entries": list(vcpu.root.entries) if is_pae(vcpu.root) else None,
        "steps": _steps(vm, page, address),
        "tlb": vcpu.tlb.entries.get(gva >> PAGE_SHIFT),
        "requests": vcpu.requests,
        "shut_down": vcpu.shut_down,
    }


def _steps(vm: SharedState, page: ShadowPage | None, gva: int) -> list[tuple[int, int, int, int, int, bool, int, bool]]:
    """Follow the links from a page down to a leaf or an entry that is not present."""
    steps = []
    while page is not None:
        index = gva >> (3 + 9 * page.level) & INDEX
        marked = bool(page.unsync_bitmap >> index & 1)
        spte = page.sptes.get(index, 0)
        steps.append((page.id, page.gfn, page.role, index, spte, page.unsync, page.unsync_children, marked))
        page = vm.books.child(page, index) if page.level > 1 else None
    return steps
