//! Programs of operations, each vCPU on an OS thread of its own.

use std::time::{Duration, Instant};

use crate::{
    error::{Error, Result},
    op::{Op, OpKind, Outcome, OutcomeRecord},
    sync::{AtomicBool, AtomicU64, Ordering, spin_loop},
    team::together,
    vm::{Cpu, PageWords, Vm},
};

/// Operations between two looks at [`Control`].
pub(crate) const STRIDE: usize = 256;

/// A running program's strings: stop it, and see how far it is.
#[derive(Debug, Default)]
pub struct Control {
    stop: AtomicBool,
    done: AtomicU64,
}

impl Control {
    /// A fresh one.
    pub fn new() -> Self {
        Self { stop: AtomicBool::new(false), done: AtomicU64::new(0) }
    }

    /// Asks every thread to stop after the operation at hand.
    pub fn stop(&self) {
        // ORDERING(stop-flag): a wish; what was done is handed over by joining the threads.
        self.stop.store(true, Ordering::Relaxed);
    }

    /// Whether a stop was asked for.
    #[inline]
    pub fn stopped(&self) -> bool {
        // ORDERING(stop-flag): as above.
        self.stop.load(Ordering::Relaxed)
    }

    /// Operations done so far, in steps.
    pub fn done(&self) -> u64 {
        // ORDERING(stop-flag): a figure for a progress bar.
        self.done.load(Ordering::Relaxed)
    }

    pub(crate) fn advance(&self, by: u64) {
        // ORDERING(stop-flag): as above.
        self.done.fetch_add(by, Ordering::Relaxed);
    }
}

/// How programs are run.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct RunOptions {
    /// Keep the outcome of every operation.
    pub outcomes: bool,
    /// Pin each vCPU's thread to a core.
    pub pin: bool,
}

/// What a run did.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct RunReport {
    /// Wall time from the common start to the last end.
    pub seconds: f64,
    /// Wall time in which every program was under way: from the last start to the first end.
    pub overlap: f64,
    /// Longest time that a program was ready to go on and had no processor; `None` where the system does not tell.
    pub starved: Option<f64>,
    /// Operations done by each program.
    pub ops_done: Vec<u64>,
    /// A stop was asked for.
    pub interrupted: bool,
    /// Outcomes of each program, if asked for.
    pub outcomes: Option<Vec<Vec<OutcomeRecord>>>,
    /// Outcomes that are not [`Outcome::Ok`].
    pub faults: u64,
}

struct Part {
    done: u64,
    faults: u64,
    outcomes: Option<Vec<OutcomeRecord>>,
    began: Instant,
    ended: Instant,
    /// Up to the start while it runs, then from there to the end.
    starved: Option<Duration>,
    error: Option<Error>,
}

/// Runs program i on vCPU i, each on its own thread, all started together.
///
/// # Errors
/// [`Error::NoVcpu`] for more programs than vCPUs, [`Error::Busy`], [`Error::Broken`], [`Error::OutOfMemory`] for the
/// outcomes, and [`Error::Threads`], before anything is run;
/// [`Error::Program`] for an operation that is host misuse and [`Error::Panic`], after every thread has stopped. What was
/// done stays done.
pub fn run(
    vm: &Vm,
    programs: &[&[Op]],
    pages: &[PageWords],
    options: RunOptions,
    control: &Control,
) -> Result<RunReport> {
    // Every vCPU is taken before anything is run, and kept until its program ends.
    let cpus = (0..programs.len()).map(|index| vm.cpu(index)).collect::<Result<Vec<_>>>()?;
    let mut room = Vec::with_capacity(programs.len());
    for program in programs {
        room.push(if options.outcomes { Some(room_for_outcomes(program.len())?) } else { None });
    }
    let bodies = cpus.into_iter().zip(programs).zip(room).enumerate().map(|(index, ((cpu, program), outcomes))| {
        move || {
            if options.pin {
                pin(index);
            }
            Ok(run_one(cpu, index, program, pages, outcomes, control))
        }
    });
    let parts = together(bodies.collect(), control)?;
    let parts = parts.into_iter().collect::<Result<Vec<Part>>>()?;
    if let Some(error) = parts.iter().find_map(|part| part.error.clone()) {
        return Err(error);
    }
    let mut report = RunReport { interrupted: control.stopped(), ..RunReport::default() };
    let began = parts.iter().map(|part| part.began).min();
    let ended = parts.iter().map(|part| part.ended).max();
    report.seconds = began.zip(ended).map_or(0.0, |(began, ended)| (ended - began).as_secs_f64());
    let last_began = parts.iter().map(|part| part.began).max();
    let first_ended = parts.iter().map(|part| part.ended).min();
    let together = last_began.zip(first_ended).map(|(began, ended)| ended.saturating_duration_since(began));
    report.overlap = together.map_or(0.0, |together| together.as_secs_f64());
    let starved = parts.iter().map(|part| part.starved).collect::<Option<Vec<_>>>();
    report.starved = starved.and_then(|all| all.into_iter().max()).map(|longest| longest.as_secs_f64());
    let mut outcomes = Vec::new();
    for part in parts {
        report.ops_done.push(part.done);
        report.faults += part.faults;
        outcomes.extend(part.outcomes);
    }
    report.outcomes = options.outcomes.then_some(outcomes);
    Ok(report)
}

/// Room for the outcomes of a program, before it is begun.
fn room_for_outcomes(count: usize) -> Result<Vec<OutcomeRecord>> {
    let mut room = Vec::new();
    let bytes = (count * size_of::<OutcomeRecord>()) as u64;
    room.try_reserve_exact(count).map_err(|_| Error::OutOfMemory { what: "outcomes", bytes })?;
    Ok(room)
}

fn run_one(
    mut cpu: Cpu<'_>,
    index: usize,
    program: &[Op],
    pages: &[PageWords],
    outcomes: Option<Vec<OutcomeRecord>>,
    control: &Control,
) -> Part {
    let starved = starved();
    let began = Instant::now();
    let mut part = Part { done: 0, faults: 0, outcomes, began, ended: began, starved, error: None };
    for chunk in program.chunks(STRIDE) {
        if control.stopped() {
            break;
        }
        for op in chunk {
            // Guest work is the one operation that may be long. One that is too long is refused below.
            let done = if op.kind == OpKind::Work as u8 && op.value <= MAX_WORK {
                if !work(op.value, || control.stopped()) {
                    return part.end();
                }
                Ok(Outcome::Ok(0))
            } else {
                cpu.execute(op, pages)
            };
            match done {
                Ok(outcome) => {
                    part.faults += u64::from(!matches!(outcome, Outcome::Ok(_)));
                    if let Some(outcomes) = &mut part.outcomes {
                        outcomes.push(outcome.into());
                    }
                }
                Err(cause) => {
                    control.stop();
                    part.error = Some(Error::Program { vcpu: index, index: part.done, cause: Box::new(cause) });
                    return part;
                }
            }
            part.done += 1;
        }
        control.advance(chunk.len() as u64);
    }
    part.end()
}

impl Part {
    fn end(mut self) -> Self {
        self.ended = Instant::now();
        self.starved = starved().zip(self.starved).map(|(now, before)| now.saturating_sub(before));
        self
    }
}

/// How long the calling thread was ready to run and had no processor so far, by Linux' `schedstat`.
fn starved() -> Option<Duration> {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").ok()?;
    text.split_whitespace().nth(1)?.parse().ok().map(Duration::from_nanos)
}

/// Pins the calling thread to a core, round robin; a machine that refuses is left alone.
pub(crate) fn pin(index: usize) {
    if let Some(cores) = core_affinity::get_core_ids().filter(|cores| !cores.is_empty()) {
        core_affinity::set_for_current(cores[index % cores.len()]);
    }
}

/// Most nanoseconds of one [`OpKind::Work`], so that a stop is never far.
pub const MAX_WORK: u64 = 100_000_000;

/// Guest work: keeps the core busy for about `nanos` nanoseconds, outside guest mode; false if `stop` ended it.
pub(crate) fn work(nanos: u64, stop: impl Fn() -> bool) -> bool {
    let since = Instant::now();
    while (since.elapsed().as_nanos() as u64) < nanos {
        if stop() {
            return false;
        }
        spin_loop();
    }
    true
}
