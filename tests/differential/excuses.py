"""Where an access on shadow tables may do what the guest's tables refuse: what roles and entries of KVM cannot tell (docs/machine.md, 16)."""

from shadow_mmu.cpu import CpuModel
from shadow_mmu.model.constants import CR0_WP, CR4_PAE, CR4_SMAP, EFER_LMA, EFER_NXE, PF_RSVD


def shadow_may_give_more(cpu: CpuModel, cr0: int, cr4: int, efer: int, error: int) -> bool:
    """Say whether shadow entries may let through what the guest's tables end with this error code.

    EFER.NX is not in the role, so an entry with bit 63 stays when that bit becomes reserved; a supervisor's write under CR0.WP=0
    makes a supervisor page, which SMAP lets through (B.5); and PAE finds pages that long mode has shadowed, where bits 62:52 are no
    reserved ones. ``efer`` has LMA where it is active.
    """
    wp = cpu.wp and cr0 & CR0_WP
    pae = cr4 & CR4_PAE and not efer & EFER_LMA
    return bool(not efer & EFER_NXE or (not wp and cr4 & CR4_SMAP) or (error & PF_RSVD and pae))
