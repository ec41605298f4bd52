//! A thread for each vCPU, and the places where all of them rest.

use std::time::{Duration, Instant};

use super::{
    Rig, StressReport,
    actor::Actor,
    config::{Limit, StressConfig},
    history::Clock,
    watchdog,
};
use crate::{
    error::{Error, Result},
    mmu::Violation,
    run::Control,
    sync::{AtomicBool, AtomicU64, Backoff, Ordering},
    team::together,
    vm::{Cpu, Vm},
};

/// Steps between two looks at the clock.
const STRIDE: u64 = 64;

/// What the threads of a run share.
#[derive(Debug)]
pub(super) struct Floor<'a> {
    pub(super) vm: &'a Vm,
    pub(super) clock: &'a Clock,
    pub(super) patience: Duration,
    config: &'a StressConfig,
    control: &'a Control,
    /// Odd while vCPU 0 wants everybody to rest.
    pause: AtomicU64,
    resting: AtomicU64,
    /// vCPUs that begin nothing more and wait for nobody.
    finished: AtomicU64,
    halt: AtomicBool,
}

impl Floor<'_> {
    /// Whether every thread is to stop where it is.
    pub(super) fn is_over(&self) -> bool {
        // ORDERING(stop-flag): a wish; joining the threads hands over what was done.
        self.control.stopped() || self.halt.load(Ordering::Relaxed)
    }

    /// Asks every thread to stop where it is.
    pub(super) fn halt(&self) {
        // ORDERING(stop-flag): as above.
        self.halt.store(true, Ordering::Relaxed);
    }

    /// Whether everybody is asked to rest for an audit.
    pub(super) fn wants_rest(&self) -> bool {
        !self.pause().is_multiple_of(2)
    }

    fn pause(&self) -> u64 {
        // ORDERING(stress-rest): Acquire: who goes on sees what was done while all rested.
        self.pause.load(Ordering::Acquire)
    }

    /// Waits until `ready`; false if the run is over.
    fn wait_until(&self, ready: impl Fn() -> bool) -> bool {
        let mut backoff = Backoff::new();
        while !ready() {
            if self.is_over() {
                return false;
            }
            backoff.wait();
        }
        true
    }

    /// Rests until vCPU 0 has audited.
    fn rest(&self, pause: u64) {
        // ORDERING(stress-rest): Release: the auditor sees what this vCPU did.
        self.resting.fetch_add(1, Ordering::Release);
        self.wait_until(|| self.pause() != pause);
    }

    /// Makes everybody else rest and audits.
    fn audit(&self) -> Vec<Violation> {
        let others = self.vm.config().vcpus as u64 - 1;
        // ORDERING(stress-rest): Relaxed: nobody rests now; the store below hands it over.
        self.resting.store(0, Ordering::Relaxed);
        // ORDERING(stress-rest): Release: pairs with the load in `pause`.
        self.pause.store(self.pause() + 1, Ordering::Release);
        // ORDERING(stress-rest): Acquire: pairs with `rest`.
        let all_rest = self.wait_until(|| self.resting.load(Ordering::Acquire) == others);
        let violations = if all_rest { self.vm.audit_blocking(self.control) } else { Vec::new() };
        // ORDERING(stress-rest): Release: as above.
        self.pause.store(self.pause() + 1, Ordering::Release);
        violations
    }
}

/// One thread's part.
struct Runner<'a, 'f> {
    floor: &'f Floor<'a>,
    actor: Actor<'a>,
    steps: u64,
    until: Option<Instant>,
    audits: Vec<Vec<Violation>>,
}

impl<'a> Runner<'a, '_> {
    fn run(&mut self, cpu: Cpu<'a>, rig: &impl Rig) -> Result<()> {
        let floor = self.floor;
        let mut cpu = cpu;
        self.actor.begin(&mut cpu)?;
        let (mut over, mut counted) = (false, false);
        while !floor.is_over() {
            cpu = self.rest_if_asked(cpu, over);
            rig.before_step(self.actor.vcpu, floor);
            if over {
                let drained = match self.actor.drain(&mut cpu) {
                    Ok(drained) => drained,
                    given_up => {
                        self.actor.note_no_progress(given_up.map(drop))?;
                        true
                    }
                };
                if drained && !counted {
                    counted = true;
                    // ORDERING(stress-rest): Relaxed: a count; joining the threads hands over what was done.
                    floor.finished.fetch_add(1, Ordering::Relaxed);
                }
                // ORDERING(stress-rest): Relaxed: as above.
                if floor.finished.load(Ordering::Relaxed) == floor.vm.config().vcpus as u64 {
                    return Ok(());
                }
            } else {
                let progress = self.actor.step(&mut cpu);
                self.actor.note_no_progress(progress)?;
                self.steps += 1;
                over = self.is_done();
            }
            if self.actor.figures.violations != 0 && !floor.config.keep_going {
                floor.halt();
            }
        }
        Ok(())
    }

    /// Gives the vCPU up while all rest; vCPU 0 is the one who asks.
    fn rest_if_asked(&mut self, cpu: Cpu<'a>, over: bool) -> Cpu<'a> {
        let (floor, every) = (self.floor, self.floor.config.audit_every);
        let pause = floor.pause();
        if self.actor.vcpu != 0 {
            if pause.is_multiple_of(2) {
                return cpu;
            }
            drop(cpu);
            floor.rest(pause);
        } else {
            if over || every == 0 || self.steps % every != every - 1 {
                return cpu;
            }
            self.steps += 1;
            drop(cpu);
            self.audits.push(floor.audit());
        }
        floor.vm.cpu_blocking(self.actor.vcpu)
    }

    fn is_done(&self) -> bool {
        if self.steps.is_multiple_of(STRIDE) {
            self.floor.control.advance(STRIDE);
        }
        match self.floor.config.limit {
            Limit::Steps(steps) => self.steps >= steps,
            Limit::Seconds(_) => {
                self.steps.is_multiple_of(STRIDE) && self.until.is_some_and(|until| Instant::now() >= until)
            }
        }
    }
}

#[expect(clippy::too_many_arguments, reason = "the pieces of a run, called in one place")]
pub(super) fn run<'a>(
    vm: &'a Vm,
    config: &'a StressConfig,
    actors: Vec<Actor<'a>>,
    cpus: Vec<Cpu<'a>>,
    clock: &'a Clock,
    report: &mut StressReport,
    control: &'a Control,
    rig: &impl Rig,
) -> Result<Vec<Actor<'a>>> {
    let floor = Floor {
        vm,
        clock,
        patience: config.patience,
        config,
        control,
        pause: AtomicU64::new(0),
        resting: AtomicU64::new(0),
        finished: AtomicU64::new(0),
        halt: AtomicBool::new(false),
    };
    let began = Instant::now();
    let until = match config.limit {
        Limit::Seconds(seconds) => Some(began + Duration::from_secs_f64(seconds)),
        Limit::Steps(_) => None,
    };
    let floor = &floor;
    let bodies = actors.into_iter().zip(cpus).map(|(actor, cpu)| {
        move || {
            let _stay = rig.enter(actor.vcpu);
            let mut runner = Runner { floor, actor, steps: 0, until, audits: Vec::new() };
            let result = runner.run(cpu, rig);
            if result.is_err() {
                // Nobody is to wait for this vCPU.
                floor.halt();
            }
            result.map(|()| (runner.actor, runner.audits))
        }
    });
    let (results, stuck) = watchdog::beside(floor, || together(bodies.collect(), control))?;
    if let Some(report) = stuck {
        return Err(Error::Stuck { report });
    }
    let parts = results?.into_iter().collect::<Result<Vec<_>>>()?;
    report.seconds = began.elapsed().as_secs_f64();
    let mut actors = Vec::with_capacity(parts.len());
    for (actor, audits) in parts {
        for violations in audits {
            report.audits += 1;
            for violation in violations {
                report.find("audit", violation.to_string());
            }
        }
        actors.push(actor);
    }
    Ok(actors)
}
