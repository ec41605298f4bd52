//! The event stream: what the MMU did, in the order in which it did it under the `mmu_lock`.
//!
//! KVM: tracepoints `kvmmmu:*` (docs/machine.md, 11).

use bytemuck::{Pod, Zeroable};

use crate::{addr::Gfn, role::PageRole};

/// What happened.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum TraceKind {
    /// `kvm_mmu_get_page`: a shadow page was found (value 0) or created (value 1).
    GetPage = 1,
    /// `kvm_mmu_unsync_page`: a shadow page became unsync.
    UnsyncPage = 2,
    /// `kvm_mmu_sync_page`: it stopped being unsync.
    SyncPage = 3,
    /// `kvm_mmu_prepare_zap_page`: a shadow page is being zapped.
    PrepareZapPage = 4,
    /// `kvm_mmu_set_spte`: a fault or a refill installed a leaf; value = the SPTE.
    SetSpte = 5,
}

/// One event, 24 bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Pod, Zeroable)]
#[repr(C)]
pub struct TraceRecord {
    /// A [`TraceKind`].
    pub kind: u8,
    /// The vCPU whose operation it was; 255 for the host's.
    pub vcpu: u8,
    /// Level of the shadow page.
    pub level: u16,
    /// Role word of the shadow page.
    pub role: u32,
    /// The shadow page's gfn; for [`TraceKind::SetSpte`] the gfn that was mapped.
    pub gfn: u64,
    /// See [`TraceKind`].
    pub value: u64,
}

impl TraceRecord {
    /// An event of a shadow page.
    pub fn new(kind: TraceKind, vcpu: u8, role: PageRole, gfn: Gfn, value: u64) -> Self {
        Self { kind: kind as u8, vcpu, level: u16::from(role.level().get()), role: role.word(), gfn: gfn.get(), value }
    }
}
