"""The statistics report: the same keys as the native machine's, times as ``None`` (E164)."""

from dataclasses import fields, replace
from typing import Any

from .constants import COUNTERS, LOCK_REASONS, PAGE_SIZE
from .vcpu import Cr3Stats, Vcpu
from .vm import SharedState


def stats(vm: SharedState) -> dict[str, Any]:
    """Return what happened so far, summed and by vCPU."""
    cr3 = [_cr3_stats(vcpu) for vcpu in vm.vcpus]
    total = Cr3Stats(*(sum(getattr(one, field.name) for one in cr3) for field in fields(Cr3Stats)))
    return {
        "counters": {name: sum(vcpu.counters[name] for vcpu in vm.vcpus) for name in COUNTERS},
        "lock": {
            "acquisitions": {reason: sum(vcpu.locks[reason] for vcpu in vm.vcpus) for reason in LOCK_REASONS},
            "shared": sum(vcpu.shared_locks for vcpu in vm.vcpus),
            "contended": 0,
            "wait_ns": None,
            "hold_ns": None,
            "longest_wait": None,
            "longest_hold": None,
        },
        "cr3": total.as_dict(),
        "cr3_write_ns": None,
        "tlb_full_flushes": sum(vcpu.tlb.full_flushes for vcpu in vm.vcpus),
        "shadow_pages_live": len(vm.books.live),
        "shadow_pages_peak": vm.books.peak,
        "shadow_bytes_peak": vm.books.peak * PAGE_SIZE,
        "unsync_marks": sum(vcpu.unsync_marks for vcpu in vm.vcpus),
        "sync_pages": sum(vcpu.sync_pages for vcpu in vm.vcpus),
        "sync_pages_unchanged": sum(vcpu.sync_pages_unchanged for vcpu in vm.vcpus),
        "per_vcpu": [
            {"counters": dict(vcpu.counters), "cr3": one.as_dict()} for vcpu, one in zip(vm.vcpus, cr3, strict=True)
        ],
    }


def _cr3_stats(vcpu: Vcpu) -> Cr3Stats:
    """Return a vCPU's classes; a write that is not settled yet counts by what it took so far."""
    settled = replace(vcpu.cr3_stats)
    if vcpu.cr3_unsettled is not None:
        vcpu.cr3_unsettled.settle(settled)
    return settled
