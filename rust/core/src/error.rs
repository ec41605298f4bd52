//! Host misuse. What a guest does wrong is a value ([`Outcome`](crate::Outcome)), never an error.

use crate::addr::{Gpa, Gva};

/// A misuse of the library by the host; nothing was changed unless the variant says so.
#[derive(Debug, thiserror::Error, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Error {
    /// A configuration value is out of range.
    #[error("{what}: got {got}, expected {expected}")]
    Config {
        /// The parameter.
        what: &'static str,
        /// The value given.
        got: String,
        /// What would have been accepted.
        expected: String,
    },
    /// A memslot cannot be had.
    #[error("memslot: got {bytes:#x} bytes at gpa {gpa}, expected {expected}")]
    Memslot {
        /// Its first gpa.
        gpa: Gpa,
        /// Its size.
        bytes: u64,
        /// What would have been accepted.
        expected: String,
    },
    /// A host-side access to guest memory leaves the memslots.
    #[error("guest memory has no slot for {len} bytes at gpa {gpa}")]
    NoSlot {
        /// First byte asked for.
        gpa: Gpa,
        /// Bytes asked for.
        len: u64,
    },
    /// Memory for guest RAM, vCPUs, shadow pages or results could not be had.
    #[error("cannot allocate {bytes} bytes for {what}")]
    OutOfMemory {
        /// What it was for.
        what: &'static str,
        /// Bytes asked for.
        bytes: u64,
    },
    /// The arena of shadow pages is full.
    #[error("no shadow page is left: all {limit} are in use")]
    OutOfShadowPages {
        /// The limit.
        limit: u32,
    },
    /// Another thread drives this vCPU (or the machine needs all of them at rest).
    #[error("vCPU {vcpu} is being driven by another thread")]
    Busy {
        /// The vCPU.
        vcpu: usize,
    },
    /// No such vCPU.
    #[error("there is no vCPU {vcpu}: this machine has {count}")]
    NoVcpu {
        /// The index asked for.
        vcpu: usize,
        /// How many there are.
        count: usize,
    },
    /// An operation record makes no sense.
    #[error("operation: {what}: got {got}, expected {expected}")]
    BadOp {
        /// The field.
        what: &'static str,
        /// The value.
        got: String,
        /// What would have been accepted.
        expected: String,
    },
    /// A load or store crosses a 4 KiB page.
    #[error("an access of {size} bytes at gva {gva} crosses a page: make two accesses of it")]
    PageCrossing {
        /// The first byte.
        gva: Gva,
        /// Bytes asked for.
        size: u8,
    },
    /// The same access faulted again and again without progress: a bug of this library, reported instead of a hang.
    #[error("the access to gva {gva} made no progress in {tries} tries")]
    NoProgress {
        /// The address.
        gva: Gva,
        /// Times it was tried.
        tries: u32,
    },
    /// A program stopped at an operation that is host misuse. What came before it is done.
    #[error("vCPU {vcpu}, operation {index}: {cause}")]
    Program {
        /// The vCPU.
        vcpu: usize,
        /// The operation's index in its program.
        index: u64,
        /// What was wrong with it.
        cause: Box<Error>,
    },
    /// A vCPU of a stress run made no step for too long: a bug of this library, reported instead of a hang.
    #[error("{report}")]
    Stuck {
        /// Which, and what every vCPU was at.
        report: String,
    },
    /// The threads of a run cannot be had; nothing was run.
    #[error("cannot start {wanted} threads: {cause}")]
    Threads {
        /// Threads asked for.
        wanted: usize,
        /// What the system said.
        cause: String,
    },
    /// A thread panicked while it worked on this machine, which is half changed since and can only be looked at.
    #[error("this machine is broken: a thread panicked in it, so its state is not to be trusted; make a new one")]
    Broken,
    /// A thread of a run panicked: a bug of this library, reported instead of poisoning. The machine is
    /// [broken](Error::Broken) from then on.
    #[error("the thread of vCPU {vcpu} panicked: {message}")]
    Panic {
        /// The vCPU.
        vcpu: usize,
        /// The panic's message.
        message: String,
    },
}

/// Shorthand for results of this crate.
pub type Result<T, E = Error> = core::result::Result<T, E>;
