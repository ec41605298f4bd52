//! Long calls: the core works on threads of its own while the calling thread keeps Ctrl-C and the progress callback alive.

use core::{mem, time::Duration};
use std::{
    sync::mpsc::{self, RecvTimeoutError},
    thread,
};

use pyo3::{exceptions::PySystemExit, prelude::*};
use shadow_mmu::Control;

use crate::{
    errors,
    process::{LongCall, Process},
};

/// How often the calling thread looks for signals.
const TICK: Duration = Duration::from_millis(50);
/// The progress callback is called every so many ticks: about 10 times a second.
const POLL_TICKS: u32 = 2;

/// What came of a long call.
pub(crate) struct Driven<R> {
    /// The core's result.
    pub(crate) result: R,
    /// Whether Ctrl-C stopped it.
    pub(crate) interrupted: bool,
}

/// Does `work` on a thread of its own, the interpreter released, until it ends or is told to stop.
///
/// `poll` is called with the number of operations done. What it raises stops the work and comes back, as does what a signal
/// handler raises; `KeyboardInterrupt` alone is reported as [`Driven::interrupted`], so that the caller sees what was done.
///
/// The work owns what it works on, for it may be left behind: `poll` can fork, and come back in a child in which the
/// thread that works is not there.
///
/// # Errors
/// What `poll` or a signal handler raises; `ThreadError` if there is no thread, `ForkedError` in a child,
/// `BrokenError` if the work panicked outside every vCPU's thread, `SystemExit` at the end of the interpreter.
pub(crate) fn drive<R: Send + 'static>(
    py: Python<'_>,
    control: &Control,
    poll: Option<&Bound<'_, PyAny>>,
    work: impl FnOnce() -> R + Send + 'static,
) -> PyResult<Driven<R>> {
    let process = Process::current();
    let call = LongCall::begin();
    let (end, mut ended) = mpsc::sync_channel::<()>(1);
    let worker = thread::Builder::new()
        .name("shadow-mmu".into())
        .spawn(move || {
            let result = work();
            // The receiver is gone only if nobody waits.
            let _ = end.send(());
            result
        })
        .map_err(|cause| errors::no_thread(py, &cause))?;
    let mut raised = None;
    for tick in 1_u32.. {
        let (back, wait) = py.detach(move || {
            let wait = ended.recv_timeout(TICK);
            (ended, wait)
        });
        ended = back;
        // Disconnected without a message: the worker panicked, which `join` tells.
        if wait != Err(RecvTimeoutError::Timeout) {
            break;
        }
        if raised.is_some() {
            continue;
        }
        let seen = look_up(py, control, poll.filter(|_| tick % POLL_TICKS == 0));
        if !process.is_current() {
            // There is nobody to wait for, and what the two sides share may have been in the worker's hands.
            mem::forget((worker, ended, call));
            return seen.and(Err(errors::forked(py, process)));
        }
        raised = seen.err().or_else(|| call.must_end().then(|| PySystemExit::new_err(())));
        if raised.is_some() {
            control.stop();
        }
    }
    // It has sent its last word: this takes no time.
    let result = worker.join().map_err(|payload| errors::panicked(py, payload.as_ref()))?;
    match raised {
        Some(error) if !errors::is_interrupt(py, &error) => Err(error),
        other => Ok(Driven { result, interrupted: other.is_some() }),
    }
}

/// Lets Python handle its signals, then tells the callback how far the work is.
fn look_up(py: Python<'_>, control: &Control, poll: Option<&Bound<'_, PyAny>>) -> PyResult<()> {
    py.check_signals()?;
    match poll {
        Some(callback) => callback.call1((control.done(),)).map(drop),
        None => Ok(()),
    }
}
