//! The process around a machine: forks, and the end of the interpreter.
//!
//! A child of `fork` has a copy of the memory and one thread. The threads that drove vCPUs are not there, and what they
//! held they hold for ever: so a machine belongs to the process that made it, and is refused in any other. Python tells
//! of a fork by `os.register_at_fork`; counting them is all that is done in the child, where little else is safe.
//!
//! At the end of the interpreter only daemon threads can be inside a long call. Python would let them run until the
//! process is gone; here `atexit` makes them stop first.

use core::time::Duration;
use std::{process, thread, time::Instant};

use pyo3::{
    prelude::*,
    types::{PyCFunction, PyDict},
};
use shadow_mmu_sync::{AtomicU32, Ordering};

/// Forks between this process and the one that loaded the module.
static FORKS: AtomicU32 = AtomicU32::new(0);
/// Times that everything was asked to stop.
static ENDINGS: AtomicU32 = AtomicU32::new(0);
/// Long calls under way in this process.
static LONG_CALLS: AtomicU32 = AtomicU32::new(0);

/// Longest wait for long calls at the end: an operation is short, so this is for a machine that is overloaded.
const PATIENCE: Duration = Duration::from_secs(2);

/// The process that something was made in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Process {
    pid: u32,
    forks: u32,
}

impl Process {
    /// The process that runs this.
    pub(crate) fn current() -> Self {
        Self { pid: process::id(), forks: FORKS.load(Ordering::Relaxed) }
    }

    /// Whether it still is this one. Costs a load: a system call for the pid would cost more than a vCPU's operation.
    #[inline]
    pub(crate) fn is_current(self) -> bool {
        self.forks == FORKS.load(Ordering::Relaxed)
    }

    /// Its number.
    pub(crate) fn pid(self) -> u32 {
        self.pid
    }
}

/// A long call, counted while it lasts.
pub(crate) struct LongCall {
    endings: u32,
}

impl LongCall {
    /// Begins one.
    pub(crate) fn begin() -> Self {
        LONG_CALLS.fetch_add(1, Ordering::Relaxed);
        Self { endings: ENDINGS.load(Ordering::Relaxed) }
    }

    /// Whether the interpreter is going since this call began.
    pub(crate) fn must_end(&self) -> bool {
        self.endings != ENDINGS.load(Ordering::Relaxed)
    }
}

impl Drop for LongCall {
    fn drop(&mut self) {
        LONG_CALLS.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Asks Python to tell of forks and of its end.
pub(crate) fn watch(py: Python<'_>) -> PyResult<()> {
    let forked = PyCFunction::new_closure(py, None, None, |_args, _kwargs| {
        FORKS.fetch_add(1, Ordering::Relaxed);
        // The threads that were in long calls are not in this process.
        LONG_CALLS.swap(0, Ordering::Relaxed);
    })?;
    let callbacks = PyDict::new(py);
    callbacks.set_item("after_in_child", forked)?;
    py.import("os")?.call_method("register_at_fork", (), Some(&callbacks))?;
    let ending = PyCFunction::new_closure(py, None, None, |args, _kwargs| end_long_calls(args.py()))?;
    py.import("atexit")?.call_method1("register", (ending,)).map(drop)
}

/// Stops the long calls that are under way, and waits until they have.
fn end_long_calls(py: Python<'_>) {
    ENDINGS.fetch_add(1, Ordering::Relaxed);
    py.detach(|| {
        let asked = Instant::now();
        while LONG_CALLS.load(Ordering::Relaxed) != 0 && asked.elapsed() < PATIENCE {
            thread::sleep(Duration::from_millis(1));
        }
    });
}
