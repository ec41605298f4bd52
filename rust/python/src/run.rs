//! Long calls: the core works on threads of its own while the calling thread keeps Ctrl-C and the progress callback alive.

use core::time::Duration;
use std::{
    sync::mpsc::{self, RecvTimeoutError},
    thread,
};

use pyo3::prelude::*;
use shadow_mmu::Control;

use crate::errors;

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
pub(crate) fn drive<R: Send>(
    py: Python<'_>,
    control: &Control,
    poll: Option<&Bound<'_, PyAny>>,
    work: impl FnOnce() -> R + Send,
) -> PyResult<Driven<R>> {
    thread::scope(|scope| {
        let (end, mut ended) = mpsc::sync_channel::<()>(1);
        let worker = thread::Builder::new()
            .name("shadow-mmu".into())
            .spawn_scoped(scope, move || {
                let result = work();
                // The receiver outlives this thread; were it gone, nobody would be waiting.
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
            if raised.is_none() {
                raised = look_up(py, control, poll.filter(|_| tick % POLL_TICKS == 0)).err();
                if raised.is_some() {
                    control.stop();
                }
            }
        }
        let result = worker.join().map_err(|_| errors::panicked(py))?;
        match raised {
            Some(error) if !errors::is_interrupt(py, &error) => Err(error),
            other => Ok(Driven { result, interrupted: other.is_some() }),
        }
    })
}

/// Lets Python handle its signals, then tells the callback how far the work is.
fn look_up(py: Python<'_>, control: &Control, poll: Option<&Bound<'_, PyAny>>) -> PyResult<()> {
    py.check_signals()?;
    match poll {
        Some(callback) => callback.call1((control.done(),)).map(drop),
        None => Ok(()),
    }
}
