"""The whole state as words, to be compared with another implementation's, and as dictionaries, to be read (§11)."""

import struct
from typing import Any

from .constants import COUNTERS, ENTRIES, LOCK_REASONS, WORD
from .pages import ShadowPage
from .vcpu import Vcpu
from .vm import SharedState


def state_words(vm: SharedState) -> bytes:
    """Return the state words in the order of ``docs/machine.md`` §11."""
    words: list[int] = []
    for vcpu in vm.vcpus:
        words += _vcpu_words(vcpu)
    words.append(len(vm.books.live))
    for _, page in sorted(vm.books.live.items()):
        words += _page_words(page)
    words.append(vm.books.indirect_shadow_pages)
    words += (sum(vcpu.counters[name] for vcpu in vm.vcpus) for name in COUNTERS)
    words += (sum(vcpu.locks[reason] for vcpu in vm.vcpus) for reason in LOCK_REASONS)
    return struct.pack(f"<{len(words)}Q", *words)


def _vcpu_words(vcpu: Vcpu) -> list[int]:
    registers = vcpu.registers
    words = [registers.cr0, registers.cr3, registers.cr4, registers.efer, registers.pkru]
    words += (vcpu.requests, int(vcpu.shut_down), *vcpu.pdptrs, len(vcpu.previous))
    for root in (vcpu.root, *vcpu.previous):
        words += (root.pgd, root.hpa, *root.entries, *root.pdptrs)
    words.append(vcpu.tlb.sets)
    for index in range(vcpu.tlb.sets):
        words += vcpu.tlb.set_words(index)
    return words


def _page_words(page: ShadowPage) -> list[int]:
    words = [page.id, page.gfn, page.role, int(page.unsync), page.unsync_children, page.flooding, page.root_count]
    words.append(len(page.parents))
    for parent, index in page.parents:
        words += (parent.id, index)
    words += (page.unsync_bitmap >> shift & WORD for shift in range(0, ENTRIES, 64))
    words.append(len(page.sptes))
    for index, spte in sorted(page.sptes.items()):
        words += (index, spte, *page.translations.get(index, (0, 0)))
    return words


def shadow_pages(vm: SharedState) -> list[dict[str, Any]]:
    """Return every live shadow page as a dictionary, by ascending id."""
    return [
        {
            "id": page.id,
            "gfn": page.gfn,
            "hpa": page.hpa,
            "role": page.role,
            "level": page.level,
            "direct": page.direct,
            "access": page.access,
            "invalid": page.invalid,
            "unsync": page.unsync,
            "unsync_children": page.unsync_children,
            "root_count": page.root_count,
            "flooding": page.flooding,
            "parents": [(parent.id, index) for parent, index in page.parents],
            "sptes": dict(sorted(page.sptes.items())),
        }
        for _, page in sorted(vm.books.live.items())
    ]
