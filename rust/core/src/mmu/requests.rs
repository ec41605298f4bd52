//! Requests that a vCPU services before it enters the guest.
//!
//! KVM: `KVM_REQ_*`, in the order of A.5.

use bitflags::bitflags;

bitflags! {
    /// Pending requests of a vCPU.
    #[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
    #[repr(transparent)]
    pub struct Requests: u32 {
        /// Release roots whose page was zapped.
        const FREE_OBSOLETE_ROOTS = 1;
        /// Sync the current root.
        const MMU_SYNC = 2;
        /// Load the root into the hardware CR3 (E022).
        const LOAD_MMU_PGD = 4;
        /// Flush every tag of this vCPU's TLB.
        const TLB_FLUSH = 8;
        /// Flush the current tag.
        const TLB_FLUSH_CURRENT = 16;
        /// Flush what the guest sees as its TLB: sync the current root, free unsync previous ones.
        const TLB_FLUSH_GUEST = 32;
        /// Shut the vCPU down.
        const TRIPLE_FAULT = 64;
    }
}
