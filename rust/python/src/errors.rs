//! Core errors and guest events as the exceptions of `shadow_mmu.errors`.
//!
//! The classes are Python's, so that they can be read, subclassed and documented there; they are looked up by name once.

use core::any::Any;
use std::process;

use pyo3::{PyTypeInfo, prelude::*, sync::PyOnceLock, types::PyType};
use shadow_mmu::{Error, Outcome};

use crate::process::Process;

/// An exception class of `shadow_mmu.errors`, imported when it is first raised.
struct Class {
    name: &'static str,
    cell: PyOnceLock<Py<PyType>>,
}

impl Class {
    const fn new(name: &'static str) -> Self {
        Self { name, cell: PyOnceLock::new() }
    }

    /// The exception made of these arguments; the import's own error if the class cannot be had.
    fn raise<A>(&self, py: Python<'_>, args: A) -> PyErr
    where
        A: pyo3::PyErrArguments + Send + Sync + 'static,
    {
        match self.cell.import(py, "shadow_mmu.errors", self.name) {
            Ok(class) => PyErr::from_type(class.clone(), args),
            Err(error) => error,
        }
    }
}

static BROKEN: Class = Class::new("BrokenError");
static BASE: Class = Class::new("ShadowMmuError");
static CLOSED: Class = Class::new("ClosedError");
static CONFIG: Class = Class::new("ConfigError");
static FORKED: Class = Class::new("ForkedError");
static GENERAL_PROTECTION: Class = Class::new("GeneralProtection");
static INVALID_OPCODE: Class = Class::new("InvalidOpcode");
static GUEST_MEMORY: Class = Class::new("GuestMemoryError");
static MEMORY_RANGE: Class = Class::new("MemoryRangeError");
static PAGE_FAULT: Class = Class::new("PageFault");
static PROGRAM: Class = Class::new("ProgramError");
static SHADOW_MEMORY: Class = Class::new("ShadowMemoryError");
static STUCK: Class = Class::new("StuckError");
static THREAD: Class = Class::new("ThreadError");
static TRIPLE_FAULT: Class = Class::new("TripleFault");
static VCPU_BUSY: Class = Class::new("VcpuBusyError");

/// A misuse of the core, as the exception of its family.
pub(crate) fn from_core(py: Python<'_>, error: &Error) -> PyErr {
    let class = match error {
        Error::Config { .. } | Error::NoVcpu { .. } => &CONFIG,
        Error::NoSlot { .. } | Error::Memslot { .. } => &MEMORY_RANGE,
        Error::OutOfShadowPages { .. } | Error::OutOfMemory { what: "shadow pages", .. } => &SHADOW_MEMORY,
        Error::OutOfMemory { .. } => &GUEST_MEMORY,
        Error::Busy { .. } => &VCPU_BUSY,
        Error::BadOp { .. } | Error::PageCrossing { .. } | Error::Program { .. } => &PROGRAM,
        Error::Broken | Error::Panic { .. } => &BROKEN,
        Error::Threads { .. } => &THREAD,
        Error::Stuck { .. } => &STUCK,
        // A bug of the library (no progress), or a variant that these bindings do not know yet.
        _ => &BASE,
    };
    class.raise(py, error.to_string())
}

/// The error of a long call. Ctrl-C comes first, with what the core said as its cause.
pub(crate) fn of_long_call(py: Python<'_>, error: &Error, interrupted: bool) -> PyErr {
    let error = from_core(py, error);
    if !interrupted {
        return error;
    }
    let interrupt = pyo3::exceptions::PyKeyboardInterrupt::new_err(());
    interrupt.set_cause(py, Some(error));
    interrupt
}

/// What the guest ran into, as the exception that stands for it; an MMIO exit is none and comes back as its gpa.
pub(crate) fn from_outcome(py: Python<'_>, outcome: Outcome) -> PyResult<Reached> {
    match outcome {
        Outcome::Ok(value) => Ok(Reached::Value(value)),
        Outcome::Mmio(gpa) => Ok(Reached::Mmio(gpa.get())),
        Outcome::PageFault { address, code } => Err(PAGE_FAULT.raise(py, (address.get(), code.bits()))),
        Outcome::GeneralProtection => Err(GENERAL_PROTECTION.raise(py, (0_u32,))),
        Outcome::InvalidOpcode => Err(INVALID_OPCODE.raise(py, ())),
        Outcome::TripleFault => Err(TRIPLE_FAULT.raise(py, ())),
    }
}

/// Where an access that did not fault ended.
pub(crate) enum Reached {
    /// In a memslot: the gpa, or the value loaded.
    Value(u64),
    /// At the device model: a gpa in no memslot, or for a write in a read-only one.
    Mmio(u64),
}

/// The machine was closed.
pub(crate) fn closed(py: Python<'_>) -> PyErr {
    CLOSED.raise(py, "this Vm is closed")
}

/// The machine cannot be closed now.
pub(crate) fn in_use(py: Python<'_>) -> PyErr {
    VCPU_BUSY.raise(py, "another thread is running this Vm: it cannot be closed before that ends")
}

/// A parameter is not what the machine takes.
pub(crate) fn config(py: Python<'_>, text: String) -> PyErr {
    CONFIG.raise(py, text)
}

/// An array has the wrong layout.
pub(crate) fn layout(py: Python<'_>, text: String) -> PyErr {
    PROGRAM.raise(py, text)
}

/// A thread of the host could not be started.
pub(crate) fn no_thread(py: Python<'_>, cause: &std::io::Error) -> PyErr {
    THREAD.raise(py, format!("cannot start a thread: {cause}"))
}

/// The core panicked: a bug of this library, told instead of hidden.
pub(crate) fn panicked(py: Python<'_>, payload: &(dyn Any + Send)) -> PyErr {
    let text = payload.downcast_ref::<&str>().copied();
    let text = text.or_else(|| payload.downcast_ref::<String>().map(String::as_str)).unwrap_or("no message");
    BROKEN.raise(py, format!("the core panicked, which is a bug of shadow-mmu: {text}"))
}

/// The machine was made in another process.
pub(crate) fn forked(py: Python<'_>, home: Process) -> PyErr {
    let text = "a fork does not take a machine along: make a new one here";
    FORKED.raise(py, format!("this Vm is of process {}, and this is process {}; {text}", home.pid(), process::id()))
}

/// Whether this is Ctrl-C.
pub(crate) fn is_interrupt(py: Python<'_>, error: &PyErr) -> bool {
    error.get_type(py).is(pyo3::exceptions::PyKeyboardInterrupt::type_object(py))
}
