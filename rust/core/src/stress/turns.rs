//! All vCPUs on one thread, the next one drawn from the seed: the same every time, and written down.

use std::time::Instant;

use fastrand::Rng;

use super::{
    Record, StressReport,
    actor::Actor,
    config::{Limit, StressConfig},
};
use crate::{
    error::Result,
    run::Control,
    vm::{Cpu, Vm},
};

pub(super) fn run(
    vm: &Vm,
    config: &StressConfig,
    actors: &mut [Actor<'_>],
    cpus: &mut [Cpu<'_>],
    report: &mut StressReport,
    record: &mut Record,
    control: &Control,
) -> Result<()> {
    let Limit::Steps(steps) = config.limit else { return config.validate() };
    let began = Instant::now();
    let mut rng = Rng::with_seed(config.seed);
    let mut written = |actor: &mut Actor<'_>| {
        if let Some(own) = &mut actor.record {
            record.append(own);
        }
    };
    for (actor, cpu) in actors.iter_mut().zip(cpus.iter_mut()) {
        actor.begin(cpu)?;
        written(actor);
    }
    for step in 0..steps * actors.len() as u64 {
        let next = rng.usize(..actors.len());
        let actor = &mut actors[next];
        let progress = actor.step(&mut cpus[next]);
        actor.note_no_progress(progress)?;
        written(actor);
        control.advance(1);
        if control.stopped() || (actor.figures.violations != 0 && !config.keep_going) {
            break;
        }
        if config.audit_every != 0 && step % config.audit_every == config.audit_every - 1 {
            report.audited(vm, cpus, control);
        }
    }
    // Whoever waits for an acknowledgement gets it, unless the run was cut short.
    let mut busy = !control.stopped();
    while busy {
        busy = false;
        for (actor, cpu) in actors.iter_mut().zip(cpus.iter_mut()) {
            busy |= !actor.drain(cpu)?;
            written(actor);
        }
    }
    report.seconds = began.elapsed().as_secs_f64();
    Ok(())
}
