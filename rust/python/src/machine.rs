//! The core's machine behind the Python objects: open until it is closed, never closed under a call, and of one process.
#![expect(
    clippy::disallowed_types,
    reason = "this lock guards a Python object's lifetime; it is no part of the machine"
)]

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Arc, RwLock},
};

use pyo3::prelude::*;
use shadow_mmu::{Control, Vm as CoreVm, error::Result as CoreResult};

use crate::{
    errors,
    process::Process,
    run::{Driven, drive},
};

/// The core's machine while it is open; shared by `Vm`, its `Vcpu`s, and the threads of long calls.
pub(crate) struct Machine {
    vm: RwLock<Option<CoreVm>>,
    home: Process,
}

impl Machine {
    pub(crate) fn new(vm: CoreVm) -> Self {
        Self { vm: RwLock::new(Some(vm)), home: Process::current() }
    }

    /// Refuses a process that has only a copy of the machine.
    #[inline]
    pub(crate) fn check_home(&self, py: Python<'_>) -> PyResult<()> {
        if self.home.is_current() { Ok(()) } else { Err(errors::forked(py, self.home)) }
    }

    /// Does something with the open machine, which cannot be closed meanwhile.
    ///
    /// # Errors
    /// `ClosedError` once it was closed, `ForkedError` in a process that has only a copy of it, and what `body` raises.
    #[inline]
    pub(crate) fn with<R>(&self, py: Python<'_>, body: impl FnOnce(&CoreVm) -> PyResult<R>) -> PyResult<R> {
        self.check_home(py)?;
        // Only `close` ever writes, and never waits: a failed `try_read` is a machine that is going.
        match self.vm.try_read().as_deref() {
            Ok(Some(vm)) => body(vm),
            Ok(None) | Err(_) => Err(errors::closed(py)),
        }
    }

    /// The same for a body of the core alone. A panic of it is an error, and the core has marked the machine.
    #[inline]
    pub(crate) fn core<R>(&self, py: Python<'_>, body: impl FnOnce(&CoreVm) -> CoreResult<R>) -> PyResult<R> {
        self.with(py, |vm| match catch_unwind(AssertUnwindSafe(|| body(vm))) {
            Ok(result) => result.map_err(|error| errors::from_core(py, &error)),
            Err(payload) => Err(errors::panicked(py, payload.as_ref())),
        })
    }

    /// The same with the interpreter released.
    pub(crate) fn detached<R: Send>(
        &self,
        py: Python<'_>,
        body: impl FnOnce(&CoreVm) -> CoreResult<R> + Send,
    ) -> PyResult<R> {
        self.core(py, |vm| py.detach(|| body(vm)))
    }

    /// The same as a long call: on a thread of its own, Ctrl-C and `poll` heeded.
    ///
    /// # Errors
    /// As [`with`](Self::with) and [`drive`].
    pub(crate) fn driven<R: Send + 'static>(
        self: &Arc<Self>,
        py: Python<'_>,
        control: &Control,
        poll: Option<&Bound<'_, PyAny>>,
        body: impl FnOnce(&CoreVm) -> CoreResult<R> + Send + 'static,
    ) -> PyResult<Driven<R>> {
        self.with(py, |_| Ok(()))?;
        let machine = Arc::clone(self);
        let driven = drive(py, control, poll, move || machine.vm.try_read().ok()?.as_ref().map(body))?;
        match driven.result {
            Some(Ok(result)) => Ok(Driven { result, interrupted: driven.interrupted }),
            Some(Err(error)) => Err(errors::of_long_call(py, &error, driven.interrupted)),
            // Closed by another thread before this one's began.
            None => Err(errors::closed(py)),
        }
    }

    /// Gives the machine's memory back. Closing twice is no error, nor is closing the copy that a fork made.
    ///
    /// # Errors
    /// `VcpuBusyError` while another thread does something with it.
    pub(crate) fn close(&self, py: Python<'_>) -> PyResult<()> {
        match self.vm.try_write() {
            Ok(mut vm) => {
                let vm = vm.take();
                py.detach(|| drop(vm));
                Ok(())
            }
            // Held by a thread that is not in this process: the memory stays until the process ends.
            Err(_) if !self.home.is_current() => Ok(()),
            Err(_) => Err(errors::in_use(py)),
        }
    }
}
