//! Guest paging: geometry, reserved bits, permissions and the walk. Pure functions; no MMU state.
//!
//! One walk serves every mode: what differs is the decoding of one entry ([`EntryFormat`](format::EntryFormat)), geometry is data.
//! It is made of one [`step`](step::step): by the fault, which sets A and D; by a look, which changes nothing, at one address or
//! at many together.

mod batch;
pub(crate) mod format;
mod look;
mod permission;
mod plain;
mod reserved;
mod step;
mod walk;

pub(crate) use self::{
    format::{FrameMemory, TableMemory, Update},
    look::Look,
    permission::{LeafDemand, LeafDemands, PermissionRules},
    reserved::ReservedBits,
    step::{Asked, WalkContext},
    walk::{GuestWalk, walk},
};

use crate::access::Access;

/// Entry bit 0: present.
pub(crate) const PTE_PRESENT: u64 = 1;
/// Entry bit 5: accessed.
pub(crate) const PTE_ACCESSED: u64 = 1 << 5;
/// Entry bit 6: dirty.
pub(crate) const PTE_DIRTY: u64 = 1 << 6;
/// Entry bit 7 above level 1: a large leaf.
pub(crate) const PTE_LARGE: u64 = 1 << 7;
/// Entry bit 63: no execute.
pub(crate) const PTE_NX: u64 = 1 << 63;

/// The rights that one guest entry gives, without those of its ancestors.
#[inline]
pub(crate) const fn entry_access(pte: u64) -> Access {
    // NX counts inverted, so that rights accumulate by AND (B.2 step 3).
    let exec = (pte >> 63 & 1) ^ 1;
    let write = pte >> 1 & 1;
    let user = pte >> 2 & 1;
    Access::from_bits_truncate((exec | write << 1 | user << 2) as u8)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn b2_entry_access_inverts_nx() {
        assert_eq!(entry_access(PTE_PRESENT), Access::EXEC);
        assert_eq!(entry_access(PTE_PRESENT | PTE_NX), Access::empty());
        assert_eq!(entry_access(0b110), Access::all());
    }
}
