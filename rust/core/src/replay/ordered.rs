//! Replay on one thread, in the recorded order: deterministic.

use std::time::Instant;

use super::{Checker, Input, ReplayReport, misuse};
use crate::{error::Result, run::STRIDE, vm::Cpu};

pub(super) fn replay(input: &Input<'_>, mut cpus: Vec<Cpu<'_>>) -> Result<ReplayReport> {
    let began = Instant::now();
    let mut checker = Checker::default();
    checker.report.max_parallel = 1;
    let mut index = 0;
    while index < input.ops.len() && !input.control.stopped() {
        if input.audit_due(index) {
            checker.audited(Some(index), input.vm.audit_with(&cpus, &|| input.control.stopped()), input.control);
        }
        let end = stretch_end(input, index);
        replay_stretch(input, index, end, &mut cpus, &mut checker)?;
        input.control.advance((end - index) as u64);
        index = end;
    }
    checker.report.seconds = began.elapsed().as_secs_f64();
    checker.audited(None, input.vm.audit_with(&cpus, &|| input.control.stopped()), input.control);
    Ok(checker.report)
}

/// End of the stretch that begins at `start`: the next audit, or so many operations that the control is looked at often.
fn stretch_end(input: &Input<'_>, start: usize) -> usize {
    let limit = input.ops.len().min(start + STRIDE * 16);
    (start + 1..limit).find(|&index| input.audit_due(index)).unwrap_or(limit)
}

fn replay_stretch(
    input: &Input<'_>,
    start: usize,
    end: usize,
    cpus: &mut [Cpu<'_>],
    checker: &mut Checker,
) -> Result<()> {
    for (index, op) in input.ops.iter().enumerate().take(end).skip(start) {
        let kind = op.kind().map_err(|error| misuse(op, index, error))?;
        let outcome = cpus[usize::from(op.vcpu)].execute(op, input.pages).map_err(|error| misuse(op, index, error))?;
        checker.note(index, op, kind, outcome, input.check);
    }
    Ok(())
}
