//! The operation language: everything that can happen to a machine, as 32-byte records (docs/machine.md, 2).
//!
//! Recordings, workloads, fuzzers and benches all become these, for this crate and for the Python model alike.

use bytemuck::{Pod, Zeroable};

use crate::{
    access::{AccessFlags, FaultCode},
    addr::{Gpa, Gva},
    error::{Error, Result},
};

/// One operation as it is stored and exchanged.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Pod, Zeroable)]
#[repr(C)]
pub struct Op {
    /// An [`OpKind`].
    pub kind: u8,
    /// [`AccessFlags`] in bits 2:0, then [`Op::HOST`], [`Op::CHECK`], [`Op::FUSED`].
    pub flags: u8,
    /// The vCPU.
    pub vcpu: u16,
    /// Size of a load or store; row of a page.
    pub aux: u32,
    /// Address, or the value of a register.
    pub addr: u64,
    /// Value stored; nanoseconds of work.
    pub value: u64,
    /// The gpa that a checked access must reach.
    pub expect: u64,
}

impl Op {
    /// The register *now holds* this: no ordering rules of the instruction.
    pub const HOST: u8 = 8;
    /// Compare the gpa with `expect`.
    pub const CHECK: u8 = 16;
    /// A recorded write access and the store after it are this one instruction.
    pub const FUSED: u8 = 32;
    /// All flags there are.
    pub const KNOWN_FLAGS: u8 = 63;

    /// An operation without expectation.
    pub const fn new(kind: OpKind, addr: u64) -> Self {
        Self { kind: kind as u8, flags: 0, vcpu: 0, aux: 0, addr, value: 0, expect: 0 }
    }

    /// The same with these flags.
    #[must_use]
    pub const fn with_flags(mut self, flags: u8) -> Self {
        self.flags = flags;
        self
    }

    /// The kind.
    ///
    /// # Errors
    /// [`Error::BadOp`] for a number that is no kind, or flags that are none.
    #[inline]
    pub fn kind(&self) -> Result<OpKind> {
        if self.flags & !Self::KNOWN_FLAGS != 0 {
            let expected = format!("bits of {:#x} only", Self::KNOWN_FLAGS);
            return Err(Error::BadOp { what: "flags", got: format!("{:#x}", self.flags), expected });
        }
        OpKind::from_number(self.kind).ok_or_else(|| Error::BadOp {
            what: "kind",
            got: self.kind.to_string(),
            expected: format!("0..={}", OpKind::LAST as u8),
        })
    }

    /// The qualifiers of the access.
    #[inline]
    pub const fn access_flags(&self) -> AccessFlags {
        AccessFlags::from_bits_truncate(self.flags)
    }

    /// Whether all of these flag bits are set.
    #[inline]
    pub const fn has(&self, flags: u8) -> bool {
        self.flags & flags == flags
    }
}

macro_rules! kinds {
    ($($(#[$doc:meta])* $name:ident = $number:literal,)*) => {
        /// What an operation does.
        #[derive(Clone, Copy, PartialEq, Eq, Debug)]
        #[repr(u8)]
        pub enum OpKind {
            $($(#[$doc])* $name = $number,)*
        }

        impl OpKind {
            /// The highest number.
            pub const LAST: OpKind = OpKind::WritePkru;

            /// The kind with this number.
            #[inline]
            pub const fn from_number(number: u8) -> Option<OpKind> {
                match number {
                    $($number => Some(OpKind::$name),)*
                    _ => None,
                }
            }
        }
    };
}

kinds! {
    /// Nothing.
    Nop = 0,
    /// MOV to CR0.
    WriteCr0 = 1,
    /// MOV to CR3.
    WriteCr3 = 2,
    /// MOV to CR4.
    WriteCr4 = 3,
    /// WRMSR to EFER.
    WriteEfer = 4,
    /// INVLPG.
    Invlpg = 5,
    /// Translate for a data read.
    Read = 6,
    /// Translate for a data write; nothing is stored.
    Write = 7,
    /// Translate for an instruction fetch.
    Fetch = 8,
    /// Guest load.
    Load = 9,
    /// Guest store.
    Store = 10,
    /// Hypervisor-side write of one word.
    HostStore = 11,
    /// Hypervisor-side write of a page.
    HostPage = 12,
    /// Enter the guest once without an access.
    SyncTlb = 13,
    /// Guest work of about `value` nanoseconds.
    Work = 14,
    /// The host zaps the shadow pages of a gfn.
    ZapGfn = 15,
    /// WRPKRU.
    WritePkru = 16,
}

impl OpKind {
    /// Whether this changes guest memory that other vCPUs may be reading as tables: a recorded store or page.
    #[inline]
    pub const fn orders_replay(self) -> bool {
        matches!(self, OpKind::Store | OpKind::HostStore | OpKind::HostPage | OpKind::ZapGfn)
    }
}

/// What came of an operation. A guest fault is a value, not an error.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[must_use]
pub enum Outcome {
    /// Done; the gpa of an access or store, the value of a load, else 0.
    Ok(u64),
    /// #PF was injected.
    PageFault {
        /// CR2.
        address: Gva,
        /// The error code.
        code: FaultCode,
    },
    /// #GP(0) was injected; nothing changed.
    GeneralProtection,
    /// #UD was injected: the processor does not have the instruction as its registers are.
    InvalidOpcode,
    /// The gpa is in no memslot, or a write is to a read-only one: an exit to the device model. Nothing was stored.
    Mmio(Gpa),
    /// The vCPU is shut down.
    TripleFault,
}

/// An [`Outcome`] as it is stored and exchanged, 16 bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Pod, Zeroable)]
#[repr(C)]
pub struct OutcomeRecord {
    /// 0 ok, 1 #PF, 2 #GP, 3 MMIO, 4 triple fault, 5 #UD.
    pub code: u8,
    /// Zero.
    pub pad: [u8; 3],
    /// Error code of a #PF.
    pub error: u32,
    /// Result, fault address or gpa.
    pub value: u64,
}

impl From<Outcome> for OutcomeRecord {
    fn from(outcome: Outcome) -> Self {
        let (code, error, value) = match outcome {
            Outcome::Ok(value) => (0, 0, value),
            Outcome::PageFault { address, code } => (1, code.bits(), address.get()),
            Outcome::GeneralProtection => (2, 0, 0),
            Outcome::Mmio(gpa) => (3, 0, gpa.get()),
            Outcome::TripleFault => (4, 0, 0),
            Outcome::InvalidOpcode => (5, 0, 0),
        };
        Self { code, pad: [0; 3], error, value }
    }
}
