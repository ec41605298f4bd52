//! Programs of operations, each vCPU on an OS thread of its own.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Barrier,
    thread,
    time::Instant,
};

use crate::{
    error::{Error, Result},
    op::{Op, Outcome, OutcomeRecord},
    sync::{AtomicBool, AtomicU64, Ordering, spin_loop},
    vm::{PageWords, Vm},
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
    outcomes: Vec<OutcomeRecord>,
    began: Instant,
    ended: Instant,
    error: Option<Error>,
}

/// Runs program i on vCPU i, each on its own thread, all started together.
///
/// # Errors
/// [`Error::NoVcpu`] for more programs than vCPUs and [`Error::Busy`] before anything is run; [`Error::Program`] for an
/// operation that is host misuse and [`Error::Panic`], after every thread has stopped. What was done stays done.
pub fn run(
    vm: &Vm,
    programs: &[&[Op]],
    pages: &[PageWords],
    options: RunOptions,
    control: &Control,
) -> Result<RunReport> {
    for index in 0..programs.len() {
        drop(vm.cpu(index)?);
    }
    let barrier = Barrier::new(programs.len());
    let parts = thread::scope(|scope| {
        let threads: Vec<_> = programs
            .iter()
            .enumerate()
            .map(|(index, program)| {
                let barrier = &barrier;
                scope.spawn(move || {
                    if options.pin {
                        pin(index);
                    }
                    barrier.wait();
                    guarded(index, control, || run_one(vm, index, program, pages, options, control))
                })
            })
            .collect();
        let join = |thread: thread::ScopedJoinHandle<'_, Result<Part>>| thread.join().unwrap_or_else(lost_thread);
        threads.into_iter().map(join).collect::<Vec<Result<Part>>>()
    });
    let parts = parts.into_iter().collect::<Result<Vec<Part>>>()?;
    if let Some(error) = parts.iter().find_map(|part| part.error.clone()) {
        return Err(error);
    }
    let mut report = RunReport { interrupted: control.stopped(), ..RunReport::default() };
    let began = parts.iter().map(|part| part.began).min();
    let ended = parts.iter().map(|part| part.ended).max();
    report.seconds = began.zip(ended).map_or(0.0, |(began, ended)| (ended - began).as_secs_f64());
    let mut outcomes = Vec::new();
    for part in parts {
        report.ops_done.push(part.done);
        report.faults += part.faults;
        outcomes.push(part.outcomes);
    }
    report.outcomes = options.outcomes.then_some(outcomes);
    Ok(report)
}

fn run_one(
    vm: &Vm,
    index: usize,
    program: &[Op],
    pages: &[PageWords],
    options: RunOptions,
    control: &Control,
) -> Result<Part> {
    let mut cpu = vm.cpu(index)?;
    let outcomes = Vec::with_capacity(if options.outcomes { program.len() } else { 0 });
    let began = Instant::now();
    let mut part = Part { done: 0, faults: 0, outcomes, began, ended: began, error: None };
    for chunk in program.chunks(STRIDE) {
        if control.stopped() {
            break;
        }
        for op in chunk {
            match cpu.execute(op, pages) {
                Ok(outcome) => {
                    part.faults += u64::from(!matches!(outcome, Outcome::Ok(_)));
                    if options.outcomes {
                        part.outcomes.push(outcome.into());
                    }
                }
                Err(cause) => {
                    control.stop();
                    part.error = Some(Error::Program { vcpu: index, index: part.done, cause: Box::new(cause) });
                    return Ok(part);
                }
            }
            part.done += 1;
        }
        control.advance(chunk.len() as u64);
    }
    part.ended = Instant::now();
    Ok(part)
}

/// Runs a vCPU thread's body; a panic stops the others and becomes an error.
pub(crate) fn guarded<T>(vcpu: usize, control: &Control, body: impl FnOnce() -> Result<T>) -> Result<T> {
    catch_unwind(AssertUnwindSafe(body)).unwrap_or_else(|payload| {
        control.stop();
        let message = payload
            .downcast_ref::<&str>()
            .map(ToString::to_string)
            .or_else(|| payload.downcast_ref::<String>().cloned())
            .unwrap_or_else(|| "no message".into());
        Err(Error::Panic { vcpu, message })
    })
}

/// A thread that ended without a result: its panic was not caught where it should have been.
pub(crate) fn lost_thread<T>(_: Box<dyn core::any::Any + Send>) -> Result<T> {
    Err(Error::Panic { vcpu: usize::MAX, message: "the thread was lost".into() })
}

/// Pins the calling thread to a core, round robin; a machine that refuses is left alone.
pub(crate) fn pin(index: usize) {
    if let Some(cores) = core_affinity::get_core_ids().filter(|cores| !cores.is_empty()) {
        core_affinity::set_for_current(cores[index % cores.len()]);
    }
}

/// Guest work: keeps the core busy for about `nanos` nanoseconds, outside guest mode.
pub(crate) fn work(nanos: u64) {
    let since = Instant::now();
    while (since.elapsed().as_nanos() as u64) < nanos {
        spin_loop();
    }
}
