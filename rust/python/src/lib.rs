//! The compiled half of the Python package: marshalling between Python objects and the core, and nothing else.
//!
//! Every rule of the machine is the core's. Here live only: arguments to core types (`convert`), core errors and guest
//! events to the exceptions of `shadow_mmu.errors` (`errors`), reports to dictionaries (`report`), the loop that keeps
//! Ctrl-C and the progress callback alive while the core's threads run (`run`), and what a fork or the end of the
//! interpreter does to them (`process`).
#![deny(unsafe_code)]

mod convert;
mod errors;
mod machine;
mod process;
mod report;
mod run;
mod stress;
mod translate;
mod vcpu;
mod vm;

use pyo3::prelude::*;

/// The compiled core: marshalling only. Use the classes of `shadow_mmu` instead.
#[pymodule(gil_used = false)]
mod _native {
    use core::mem::size_of;

    use pyo3::{prelude::*, types::PyTuple};
    use shadow_mmu::{
        op::{Op, OutcomeRecord},
        stats::{Counters, LockReason},
        stress::{Figures, MAX_STRESS_VCPUS, Rates},
        trace::TraceRecord,
    };

    #[pymodule_export]
    use crate::vcpu::Vcpu;
    #[pymodule_export]
    use crate::vm::Vm;

    /// Bytes of memory that a machine of so many vCPUs needs to be stressed.
    #[pyfunction]
    #[pyo3(signature = (vcpus, /))]
    fn stress_bytes(vcpus: usize) -> u64 {
        shadow_mmu::stress::bytes_needed(vcpus)
    }

    #[pymodule_init]
    fn init(module: &Bound<'_, PyModule>) -> PyResult<()> {
        let py = module.py();
        crate::process::watch(py)?;
        module.add("__version__", env!("CARGO_PKG_VERSION"))?;
        module.add("OP_BYTES", size_of::<Op>())?;
        module.add("OUTCOME_BYTES", size_of::<OutcomeRecord>())?;
        module.add("TRACE_BYTES", size_of::<TraceRecord>())?;
        module.add("STRESS_FIGURES", PyTuple::new(py, Figures::NAMES)?)?;
        module.add("STRESS_RATES", PyTuple::new(py, Rates::NAMES)?)?;
        module.add("MAX_STRESS_VCPUS", MAX_STRESS_VCPUS)?;
        module.add("COUNTER_NAMES", PyTuple::new(py, Counters::NAMES)?)?;
        module.add("LOCK_REASONS", PyTuple::new(py, LockReason::NAMES)?)
    }
}
