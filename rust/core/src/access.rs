//! Rights of a mapping, kinds of guest access, and the page-fault error code.
//!
//! KVM: `ACC_*_MASK`, `PFERR_*_MASK`.

use bitflags::bitflags;

use crate::addr::Gpa;

bitflags! {
    /// Rights of an entry or of a path, as KVM's `ACC_*`: accumulated by AND from the root down (E114).
    #[derive(Clone, Copy, PartialEq, Eq, Debug)]
    #[repr(transparent)]
    pub struct Access: u8 {
        /// Instructions may be fetched (NX is clear).
        const EXEC = 1;
        /// Data may be written.
        const WRITE = 2;
        /// User mode may use it.
        const USER = 4;
    }

    /// Error code of a page fault (SDM vol. 3A, 4.7).
    #[derive(Clone, Copy, PartialEq, Eq, Debug)]
    #[repr(transparent)]
    pub struct FaultCode: u32 {
        /// The fault was a protection violation; clear: a not-present entry.
        const PRESENT = 1;
        /// The access was a write.
        const WRITE = 2;
        /// The access was made in user mode.
        const USER = 4;
        /// A reserved bit was set in an entry.
        const RSVD = 8;
        /// The access was an instruction fetch.
        const FETCH = 16;
        /// PKRU denies the access by the page's protection key.
        const PK = 32;
    }

    /// Qualifiers of a guest access.
    #[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
    #[repr(transparent)]
    pub struct AccessFlags: u8 {
        /// Made at CPL 3.
        const USER = 1;
        /// EFLAGS.AC is set (overrides SMAP for explicit supervisor data accesses).
        const AC = 2;
        /// An implicit supervisor access (descriptor tables and the like): AC does not help it (E110).
        const IMPLICIT = 4;
    }
}

/// Why a look at a translation finds none: what the access would raise.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum TranslateError {
    /// The address is not canonical: #GP.
    #[error("not canonical")]
    NotCanonical,
    /// The guest's tables do not permit the access: a page fault with this code.
    #[error("page fault, error code {:#x}", .0.bits())]
    PageFault(FaultCode),
}

/// The gpa that an address translates to, whether or not a memslot has it.
pub type Translation = Result<Gpa, TranslateError>;

/// The protection key of a user page: bits 62:59 of its leaf entry (SDM vol. 3A, 4.6.2).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[repr(transparent)]
pub struct ProtectionKey(u8);

impl ProtectionKey {
    /// Key 0, that of everything where there are no keys.
    pub const NONE: ProtectionKey = ProtectionKey(0);
    const SHIFT: u32 = 59;

    /// The key of a 64-bit leaf entry, the guest's or a shadow entry.
    #[inline]
    pub const fn of_entry(entry: u64) -> Self {
        Self((entry >> Self::SHIFT & 15) as u8)
    }

    /// The key with this number; of a larger one the low four bits.
    #[inline]
    pub const fn new(number: u8) -> Self {
        Self(number & 15)
    }

    /// Its number, 0..=15.
    #[inline]
    pub const fn number(self) -> u8 {
        self.0
    }

    /// Its bits in a 64-bit entry.
    #[inline]
    pub const fn entry_bits(self) -> u64 {
        (self.0 as u64) << Self::SHIFT
    }
}

/// What a guest access does with the page.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum AccessKind {
    /// Data read.
    Read,
    /// Data write.
    Write,
    /// Instruction fetch.
    Fetch,
}

impl AccessKind {
    /// Whether the access writes.
    #[inline]
    pub const fn is_write(self) -> bool {
        matches!(self, AccessKind::Write)
    }

    /// Whether the access fetches an instruction.
    #[inline]
    pub const fn is_fetch(self) -> bool {
        matches!(self, AccessKind::Fetch)
    }
}

impl AccessFlags {
    /// Whether the access is made in user mode.
    #[inline]
    pub const fn is_user(self) -> bool {
        self.contains(AccessFlags::USER)
    }
}

impl FaultCode {
    /// The W, U and F bits that the access itself gives (P is added by whoever found an entry).
    #[inline]
    pub fn of(kind: AccessKind, flags: AccessFlags) -> FaultCode {
        let mut code = FaultCode::empty();
        code.set(FaultCode::WRITE, kind.is_write());
        code.set(FaultCode::USER, flags.is_user());
        code.set(FaultCode::FETCH, kind.is_fetch());
        code
    }
}
