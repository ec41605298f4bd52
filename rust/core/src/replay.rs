//! Replay of a recorded guest: every operation in its place, every access checked against the gpa that was recorded.
//!
//! In *ordered* mode everything happens in the recorded order on one thread. In *threads* mode each vCPU replays its
//! own operations on its own thread; an operation that writes page tables waits until every operation recorded before
//! it is done, and none recorded after it starts before it is done, so all between two such writes runs at once.

mod check;
mod ordered;
mod threads;

use self::check::Checker;
pub use self::check::Mismatch;
use crate::{
    error::{Error, Result},
    mmu::Violation,
    op::Op,
    run::Control,
    vm::{PageWords, Vm},
};

/// In which order a recording is replayed.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum ReplayMode {
    /// One thread, the recorded order.
    #[default]
    Ordered,
    /// One thread a vCPU, ordered by the writes to page tables.
    Threads,
}

/// How a recording is replayed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ReplayOptions {
    /// The order.
    pub mode: ReplayMode,
    /// Compare the gpas of operations that carry [`Op::CHECK`].
    pub check: bool,
}

/// What a replay did.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct ReplayReport {
    /// Wall time from the first to the last operation.
    pub seconds: f64,
    /// Operations done.
    pub ops_done: u64,
    /// A stop was asked for.
    pub interrupted: bool,
    /// Recorded accesses compared.
    pub accesses_checked: u64,
    /// Stores whose gpa was compared.
    pub stores_checked: u64,
    /// Operations that faulted, which none did on the guest's hardware.
    pub guest_faults: u64,
    /// Operations that did not come out as recorded; the first of them.
    pub mismatches: Vec<Mismatch>,
    /// How many there were.
    pub mismatch_count: u64,
    /// Broken invariants, each with the operation before which the audit was made (`None` at the end); the first of them.
    pub violations: Vec<(Option<u64>, Violation)>,
    /// How many there were.
    pub violation_count: u64,
    /// Audits made.
    pub audits: u64,
    /// Most operations that were under way at once.
    pub max_parallel: u32,
}

/// Bit of a mark: an audit is due before this operation.
pub const MARK_AUDIT: u8 = 1;

/// Replays `ops`, operation i on vCPU `ops[i].vcpu`. `marks[i]` has [`MARK_AUDIT`] where an audit is due before it; one
/// more audit follows the last operation.
///
/// # Errors
/// [`Error::BadOp`] for a wrong number of marks, [`Error::NoVcpu`], [`Error::Busy`], [`Error::Broken`],
/// [`Error::Threads`], all before anything is done;
/// [`Error::Program`] for an operation that is host misuse, [`Error::Panic`].
pub fn replay(
    vm: &Vm,
    ops: &[Op],
    pages: &[PageWords],
    marks: &[u8],
    options: ReplayOptions,
    control: &Control,
) -> Result<ReplayReport> {
    if marks.len() != ops.len() {
        return Err(Error::BadOp { what: "marks", got: marks.len().to_string(), expected: ops.len().to_string() });
    }
    let count = vm.config().vcpus;
    if let Some(op) = ops.iter().find(|op| usize::from(op.vcpu) >= count) {
        return Err(Error::NoVcpu { vcpu: usize::from(op.vcpu), count });
    }
    vm.check_health()?;
    // Taken before anything is done, and kept.
    let cpus = vm.all_cpus()?;
    let input = Input { vm, ops, pages, marks, check: options.check, control };
    let mut report = match options.mode {
        ReplayMode::Ordered => ordered::replay(&input, cpus)?,
        ReplayMode::Threads => threads::replay(&input, cpus)?,
    };
    report.interrupted = control.stopped();
    Ok(report)
}

/// What both modes work on.
struct Input<'a> {
    vm: &'a Vm,
    ops: &'a [Op],
    pages: &'a [PageWords],
    marks: &'a [u8],
    check: bool,
    control: &'a Control,
}

impl Input<'_> {
    fn audit_due(&self, index: usize) -> bool {
        self.marks[index] & MARK_AUDIT != 0
    }
}

/// Wraps the error of an operation with its place.
fn misuse(op: &Op, index: usize, cause: Error) -> Error {
    Error::Program { vcpu: usize::from(op.vcpu), index: index as u64, cause: Box::new(cause) }
}
