//! Comparing what an operation came to with what was recorded.

use super::ReplayReport;
use crate::{
    mmu::Violation,
    op::{Op, OpKind, Outcome, OutcomeRecord},
    run::Control,
};

/// Mismatches and violations kept in a report; all are counted.
const KEPT: usize = 100_000;

/// An operation that did not come out as recorded.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Mismatch {
    /// The operation's index.
    pub index: u64,
    /// What it came to.
    pub outcome: OutcomeRecord,
    /// The gpa recorded.
    pub expected: u64,
}

/// Counts and compares, for one thread.
#[derive(Debug, Default)]
pub(super) struct Checker {
    pub(super) report: ReplayReport,
}

impl Checker {
    /// Takes note of one outcome.
    #[inline]
    pub(super) fn note(&mut self, index: usize, op: &Op, kind: OpKind, outcome: Outcome, check: bool) {
        let report = &mut self.report;
        report.ops_done += 1;
        let faulted = !matches!(outcome, Outcome::Ok(_));
        report.guest_faults += u64::from(faulted);
        let checked = check && op.has(Op::CHECK);
        if checked {
            let store = kind == OpKind::Store;
            report.stores_checked += u64::from(store);
            report.accesses_checked += u64::from(!store || op.has(Op::FUSED));
        }
        if (checked && outcome != Outcome::Ok(op.expect)) || (check && faulted) {
            report.mismatch_count += 1;
            if report.mismatches.len() < KEPT {
                let mismatch = Mismatch { index: index as u64, outcome: outcome.into(), expected: op.expect };
                report.mismatches.push(mismatch);
            }
        }
    }

    /// Takes note of an audit made before operation `at`, or at the end. One that a stop cut short does not count, but
    /// what it found does.
    pub(super) fn audited(&mut self, at: Option<usize>, violations: Vec<Violation>, control: &Control) {
        let report = &mut self.report;
        report.audits += u64::from(!control.stopped());
        report.violation_count += violations.len() as u64;
        let room = KEPT - report.violations.len().min(KEPT);
        let at = at.map(|index| index as u64);
        report.violations.extend(violations.into_iter().take(room).map(|violation| (at, violation)));
    }

    /// Joins the reports of several threads.
    pub(super) fn join(checkers: impl IntoIterator<Item = Checker>) -> ReplayReport {
        let mut sum = ReplayReport::default();
        for Checker { report } in checkers {
            sum.ops_done += report.ops_done;
            sum.accesses_checked += report.accesses_checked;
            sum.stores_checked += report.stores_checked;
            sum.guest_faults += report.guest_faults;
            sum.mismatch_count += report.mismatch_count;
            sum.mismatches.extend(report.mismatches);
            sum.violations.extend(report.violations);
            sum.violation_count += report.violation_count;
            sum.audits += report.audits;
            sum.max_parallel = sum.max_parallel.max(report.max_parallel);
        }
        sum.mismatches.sort_by_key(|mismatch| mismatch.index);
        sum.mismatches.truncate(KEPT);
        sum.violations.sort_by_key(|(at, _)| at.unwrap_or(u64::MAX));
        sum.violations.truncate(KEPT);
        sum
    }
}
