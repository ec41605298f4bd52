"""The state words of a machine, read back (docs/machine.md, 11): registers, requests, roots and TLB of each vCPU."""

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice


@dataclass(frozen=True)
class VcpuState:
    """One vCPU. ``roots``: (pgd, hpa) of the current and of each previous root; ``tlb``: leaf entry of each page number."""

    cr0: int
    cr3: int
    cr4: int
    efer: int
    pkru: int
    requests: int
    shut_down: bool
    roots: tuple[tuple[int, int], ...]
    tlb: dict[int, int]
    pae: tuple[tuple[int, ...], ...]
    """For each root the four entries of a PAE root, zeroes for another."""
    made_of: tuple[tuple[int, ...], ...]
    """For each root the PDPTRs that a PAE root was made of."""
    pdptrs: tuple[int, ...]
    """Those loaded."""

    @property
    def registers(self) -> tuple[int, int, int, int]:
        """CR0, CR3, CR4 and EFER."""
        return self.cr0, self.cr3, self.cr4, self.efer


def _vcpu(words: Iterator[int], ways: int) -> VcpuState:
    cr0, cr3, cr4, efer, pkru, requests, shut_down = islice(words, 7)
    pdptrs = tuple(islice(words, 4))
    records = [tuple(islice(words, 10)) for _ in range(next(words) + 1)]
    roots = tuple((pgd, hpa) for pgd, hpa, *_ in records)
    pae, made_of = tuple(one[2:6] for one in records), tuple(one[6:] for one in records)
    tlb: dict[int, int] = {}
    for _ in range(next(words)):
        next(words)  # the pointer of the set
        slots = [(next(words), next(words)) for _ in range(ways)]
        tlb.update({page - 1: value for page, value in slots if page})
    return VcpuState(cr0, cr3, cr4, efer, pkru, requests, bool(shut_down), roots, tlb, pae, made_of, pdptrs)


def vcpu_states(state: bytes, vcpus: int, tlb_entries: int) -> list[VcpuState]:
    """Return the state of each vCPU of a machine with so many vCPUs and TLB entries."""
    words = iter(struct.unpack(f"<{len(state) // 8}Q", state))
    ways = next((ways for ways in range(12, 0, -1) if tlb_entries and tlb_entries % ways == 0), 1)
    return [_vcpu(words, ways) for _ in range(vcpus)]
