//! Replay on one pinned thread a vCPU.
//!
//! Each vCPU publishes the index of its next operation. A writer of page tables waits until every other vCPU's next
//! operation comes after it; everybody else waits until the last writer recorded before their operation is past it. A
//! waiting vCPU is outside guest mode, so no remote flush waits for it. An audit stops everybody at one index, and each
//! gives up its vCPU meanwhile.

use std::time::Instant;

use super::{Checker, Input, ReplayReport, misuse};
use crate::{
    error::Result,
    run::{STRIDE, pin},
    sync::{AtomicU32, AtomicU64, Backoff, Ordering},
    team::together,
    vm::Cpu,
};

/// One vCPU's progress, on a line of its own.
#[derive(Debug)]
#[repr(align(128))]
struct Progress(AtomicU64);

/// How many operations are under way, on a line of its own.
#[derive(Debug)]
#[repr(align(128))]
struct UnderWay(AtomicU32);

/// What orders the threads.
struct Gates {
    next: Box<[Progress]>,
    audits_done: Progress,
    under_way: UnderWay,
    /// For each operation: one more than the index of the last writer before it, 0 if there is none.
    writer_before: Vec<u32>,
    /// For each operation: audits due up to it, its own included.
    audits_due: Vec<u32>,
}

impl Gates {
    fn new(input: &Input<'_>) -> Self {
        let mut writer = 0;
        let mut audits = 0;
        let mut writer_before = Vec::with_capacity(input.ops.len());
        let mut audits_due = Vec::with_capacity(input.ops.len());
        for (index, op) in input.ops.iter().enumerate() {
            writer_before.push(writer);
            audits += u32::from(input.audit_due(index));
            audits_due.push(audits);
            if op.kind().is_ok_and(crate::op::OpKind::orders_replay) {
                writer = index as u32 + 1;
            }
        }
        Self {
            next: (0..input.vm.config().vcpus).map(|_| Progress(AtomicU64::new(0))).collect(),
            audits_done: Progress(AtomicU64::new(0)),
            under_way: UnderWay(AtomicU32::new(0)),
            writer_before,
            audits_due,
        }
    }

    /// The next operation of `vcpu` is `index`; everything of it before is done.
    fn publish(&self, vcpu: usize, index: u64) {
        // ORDERING(replay-gate): who sees the progress sees what the operations before it did.
        self.next[vcpu].0.store(index, Ordering::Release);
    }

    fn next(&self, vcpu: usize) -> u64 {
        // ORDERING(replay-gate): as above.
        self.next[vcpu].0.load(Ordering::Acquire)
    }
}

pub(super) fn replay(input: &Input<'_>, cpus: Vec<Cpu<'_>>) -> Result<ReplayReport> {
    let gates = Gates::new(input);
    let mut own = vec![Vec::new(); cpus.len()];
    for (index, op) in input.ops.iter().enumerate() {
        own[usize::from(op.vcpu)].push(index);
    }
    for (vcpu, indices) in own.iter().enumerate() {
        gates.publish(vcpu, indices.first().map_or(u64::MAX, |&index| index as u64));
    }
    let bodies = cpus.into_iter().zip(&own).enumerate().map(|(vcpu, (cpu, indices))| {
        let gates = &gates;
        move || {
            pin(vcpu);
            let began = Instant::now();
            let guard = Leaving { gates, vcpu, input };
            let result = Runner::new(input, gates, vcpu, cpu).run(indices);
            if result.is_ok() {
                guard.done();
            }
            result.map(|checker| (checker, began, Instant::now()))
        }
    });
    let results = together(bodies.collect(), input.control)?.into_iter().collect::<Result<Vec<_>>>()?;
    let began = results.iter().map(|&(_, began, _)| began).min();
    let ended = results.iter().map(|&(_, _, ended)| ended).max();
    let mut checkers: Vec<Checker> = results.into_iter().map(|(checker, _, _)| checker).collect();
    if let Some(checker) = checkers.last_mut() {
        checker.audited(None, input.vm.audit_blocking(input.control), input.control);
    }
    let mut report = Checker::join(checkers);
    report.seconds = began.zip(ended).map_or(0.0, |(began, ended)| (ended - began).as_secs_f64());
    Ok(report)
}

/// However a thread ends, nobody waits for its vCPU any more; unless it ended well, everybody stops first.
struct Leaving<'a> {
    gates: &'a Gates,
    vcpu: usize,
    input: &'a Input<'a>,
}

impl Leaving<'_> {
    fn done(self) {
        self.gates.publish(self.vcpu, u64::MAX);
        core::mem::forget(self);
    }
}

impl Drop for Leaving<'_> {
    fn drop(&mut self) {
        self.input.control.stop();
        self.gates.publish(self.vcpu, u64::MAX);
    }
}

/// One vCPU's thread.
struct Runner<'a> {
    input: &'a Input<'a>,
    gates: &'a Gates,
    vcpu: usize,
    cpu: Option<Cpu<'a>>,
    checker: Checker,
}

impl<'a> Runner<'a> {
    fn new(input: &'a Input<'a>, gates: &'a Gates, vcpu: usize, cpu: Cpu<'a>) -> Self {
        Self { input, gates, vcpu, cpu: Some(cpu), checker: Checker::default() }
    }

    fn run(mut self, indices: &[usize]) -> Result<Checker> {
        for (number, &index) in indices.iter().enumerate() {
            if !self.wait_for_turn(index) {
                break;
            }
            self.step(index)?;
            let next = indices.get(number + 1).map_or(u64::MAX, |&next| next as u64);
            self.gates.publish(self.vcpu, next);
            if number % STRIDE == STRIDE - 1 {
                self.input.control.advance(STRIDE as u64);
                if self.input.control.stopped() {
                    break;
                }
            }
        }
        Ok(self.checker)
    }

    fn step(&mut self, index: usize) -> Result<()> {
        let op = &self.input.ops[index];
        let kind = op.kind().map_err(|error| misuse(op, index, error))?;
        let cpu = match &mut self.cpu {
            Some(cpu) => cpu,
            empty => empty.insert(self.input.vm.cpu_blocking(self.vcpu)),
        };
        // ORDERING(replay-gate): a figure for the report.
        let under_way = self.gates.under_way.0.fetch_add(1, Ordering::Relaxed) + 1;
        let outcome = cpu.execute(op, self.input.pages);
        // ORDERING(replay-gate): as above.
        self.gates.under_way.0.fetch_sub(1, Ordering::Relaxed);
        self.checker.report.max_parallel = self.checker.report.max_parallel.max(under_way);
        self.checker.note(index, op, kind, outcome.map_err(|error| misuse(op, index, error))?, self.input.check);
        Ok(())
    }

    /// Waits until operation `index` may start; false if a stop was asked for.
    fn wait_for_turn(&mut self, index: usize) -> bool {
        let due = u64::from(self.gates.audits_due[index]);
        if self.gates.audits_done() < due {
            // An audit comes first, this one's or an earlier one of another vCPU: give up the vCPU, so that it can be
            // looked at. Whoever waits here must not keep it, or two audits due one after the other wait for each other.
            self.cpu = None;
        }
        if self.input.audit_due(index) {
            if !self.wait_until(|gates| gates.others_are_past(self.vcpu, index)) {
                return false;
            }
            self.audit(index, due);
        } else if !self.wait_until(|gates| gates.audits_done() >= due) {
            return false;
        }
        let writer = self.gates.writer_before[index] as usize;
        if writer > 0 {
            let owner = usize::from(self.input.ops[writer - 1].vcpu);
            if owner != self.vcpu && !self.wait_until(|gates| gates.next(owner) >= writer as u64) {
                return false;
            }
        }
        let orders = self.input.ops[index].kind().is_ok_and(crate::op::OpKind::orders_replay);
        !orders || self.wait_until(|gates| gates.others_are_past(self.vcpu, index))
    }

    fn audit(&mut self, index: usize, number: u64) {
        let control = self.input.control;
        self.checker.audited(Some(index), self.input.vm.audit_blocking(control), control);
        // ORDERING(replay-gate): who goes on after the audit comes after what it read.
        self.gates.audits_done.0.store(number, Ordering::Release);
    }

    /// Spins, then yields, until `ready`; false if a stop was asked for.
    fn wait_until(&self, ready: impl Fn(&Gates) -> bool) -> bool {
        let mut backoff = Backoff::new();
        while !ready(self.gates) {
            if self.input.control.stopped() {
                return false;
            }
            backoff.wait();
        }
        !self.input.control.stopped()
    }
}

impl Gates {
    fn audits_done(&self) -> u64 {
        // ORDERING(replay-gate): pairs with the store after an audit.
        self.audits_done.0.load(Ordering::Acquire)
    }

    /// Whether every other vCPU has done what was recorded before `index`.
    fn others_are_past(&self, vcpu: usize, index: usize) -> bool {
        (0..self.next.len()).all(|other| other == vcpu || self.next(other) > index as u64)
    }
}
