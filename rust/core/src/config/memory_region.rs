//! What a memslot is to be: where, how large, and whether the guest may write it.

use crate::{
    addr::{Gpa, PAGE_SIZE},
    error::{Error, Result},
};

/// A piece of guest-physical memory as the host asks for it. KVM: `struct kvm_userspace_memory_region`.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct MemoryRegion {
    /// First byte, page aligned.
    pub gpa: Gpa,
    /// Bytes, whole pages.
    pub bytes: u64,
    /// Read-only for the guest (KVM: `KVM_MEM_READONLY`; E107, E153): its writes leave for the device model, the host's do not.
    pub read_only: bool,
}

impl MemoryRegion {
    /// Memory that the guest reads and writes.
    pub const fn ram(gpa: Gpa, bytes: u64) -> Self {
        Self { gpa, bytes, read_only: false }
    }

    /// Memory that the guest reads; what it writes there goes to the device model.
    pub const fn rom(gpa: Gpa, bytes: u64) -> Self {
        Self { gpa, bytes, read_only: true }
    }

    /// Checks that it is page aligned, not empty, and ends at or below `limit`.
    pub(crate) fn check(self, limit: u64) -> Result<()> {
        let Self { gpa, bytes, .. } = self;
        if bytes == 0 || !gpa.get().is_multiple_of(PAGE_SIZE) || !bytes.is_multiple_of(PAGE_SIZE) {
            return Err(self.refused("a page-aligned start and a positive number of whole pages".into()));
        }
        match gpa.get().checked_add(bytes) {
            Some(end) if end <= limit => Ok(()),
            _ => Err(self.refused(format!("an end at or below {limit:#x}"))),
        }
    }

    pub(crate) const fn refused(self, expected: String) -> Error {
        Error::Memslot { gpa: self.gpa, bytes: self.bytes, expected }
    }
}
