//! The core's machine behind the Python objects: open until it is closed, and never closed under a call.
#![expect(
    clippy::disallowed_types,
    reason = "this lock guards a Python object's lifetime; it is no part of the machine"
)]

use std::sync::RwLock;

use pyo3::prelude::*;
use shadow_mmu::{Vm as CoreVm, error::Result as CoreResult};

use crate::errors;

/// The core's machine while it is open; shared by `Vm` and its `Vcpu`s.
pub(crate) struct Machine {
    vm: RwLock<Option<CoreVm>>,
}

impl Machine {
    pub(crate) fn new(vm: CoreVm) -> Self {
        Self { vm: RwLock::new(Some(vm)) }
    }

    /// Does something with the open machine, which cannot be closed meanwhile.
    ///
    /// # Errors
    /// `ClosedError` once it was closed, and what `body` raises.
    #[inline]
    pub(crate) fn with<R>(&self, py: Python<'_>, body: impl FnOnce(&CoreVm) -> PyResult<R>) -> PyResult<R> {
        // Only `close` ever writes, and never waits: a failed `try_read` is a machine that is going.
        match self.vm.try_read().as_deref() {
            Ok(Some(vm)) => body(vm),
            Ok(None) | Err(_) => Err(errors::closed(py)),
        }
    }

    /// The same for a body of the core alone.
    #[inline]
    pub(crate) fn core<R>(&self, py: Python<'_>, body: impl FnOnce(&CoreVm) -> CoreResult<R>) -> PyResult<R> {
        self.with(py, |vm| body(vm).map_err(|error| errors::from_core(py, &error)))
    }

    /// The same with the interpreter released.
    pub(crate) fn detached<R: Send>(
        &self,
        py: Python<'_>,
        body: impl FnOnce(&CoreVm) -> CoreResult<R> + Send,
    ) -> PyResult<R> {
        self.core(py, |vm| py.detach(|| body(vm)))
    }

    /// Gives the machine's memory back. Closing twice is no error.
    ///
    /// # Errors
    /// `VcpuBusyError` while another thread does something with it.
    pub(crate) fn close(&self, py: Python<'_>) -> PyResult<()> {
        let Ok(mut vm) = self.vm.try_write() else { return Err(errors::in_use(py)) };
        let vm = vm.take();
        py.detach(|| drop(vm));
        Ok(())
    }
}
