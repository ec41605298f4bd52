//! `Vcpu`: one call, one operation. The calls keep the interpreter: none of them waits for a Python thread.

use std::sync::Arc;

use pyo3::{prelude::*, sync::PyOnceLock, types::PyType};
use shadow_mmu::{AccessFlags, AccessKind, Cpu, Gva, Outcome, error::Result as CoreResult};

use crate::{
    convert::Word,
    errors::{self, Reached},
    machine::Machine,
    translate,
};

/// One virtual CPU. Methods raise `PageFault`, `GeneralProtection`, `InvalidOpcode`, `TripleFault`, `VcpuBusyError`, `ClosedError`.
#[pyclass(frozen, weakref, module = "shadow_mmu._native")]
pub(crate) struct Vcpu {
    machine: Arc<Machine>,
    index: usize,
}

/// `shadow_mmu.types.MmioExit(gpa)`.
fn mmio_exit(py: Python<'_>, gpa: u64) -> PyResult<Bound<'_, PyAny>> {
    static CLASS: PyOnceLock<Py<PyType>> = PyOnceLock::new();
    CLASS.import(py, "shadow_mmu.types", "MmioExit")?.call1((gpa,))
}

/// The qualifiers of an access.
fn flags(user: bool, ac: bool, implicit: bool) -> AccessFlags {
    let mut flags = AccessFlags::empty();
    flags.set(AccessFlags::USER, user);
    flags.set(AccessFlags::AC, ac);
    flags.set(AccessFlags::IMPLICIT, implicit);
    flags
}

/// The kind of access with this name.
fn access_kind(py: Python<'_>, name: &str) -> PyResult<AccessKind> {
    match name {
        "read" => Ok(AccessKind::Read),
        "write" => Ok(AccessKind::Write),
        "fetch" => Ok(AccessKind::Fetch),
        _ => Err(errors::config(py, format!("kind: got {name:?}, expected \"read\", \"write\" or \"fetch\""))),
    }
}

impl Vcpu {
    pub(crate) fn new(machine: Arc<Machine>, index: usize) -> Self {
        Self { machine, index }
    }

    /// Does something with this vCPU while no other thread can.
    #[inline]
    fn with<R>(&self, py: Python<'_>, body: impl FnOnce(&mut Cpu<'_>) -> CoreResult<R>) -> PyResult<R> {
        self.machine.core(py, |vm| body(&mut vm.cpu(self.index)?))
    }

    /// An instruction without a result.
    #[inline]
    fn instruction(&self, py: Python<'_>, body: impl FnOnce(&mut Cpu<'_>) -> CoreResult<Outcome>) -> PyResult<()> {
        errors::from_outcome(py, self.with(py, body)?).map(drop)
    }

    /// An access: the gpa or the value, or the exit where no memslot takes it.
    fn reach<'py>(
        &self,
        py: Python<'py>,
        body: impl FnOnce(&mut Cpu<'_>) -> CoreResult<Outcome>,
    ) -> PyResult<Bound<'py, PyAny>> {
        match errors::from_outcome(py, self.with(py, body)?)? {
            Reached::Value(value) => Ok(value.into_pyobject(py)?.into_any()),
            Reached::Mmio(gpa) => mmio_exit(py, gpa),
        }
    }
}

#[pymethods]
impl Vcpu {
    /// Place of this vCPU in its machine.
    #[getter]
    fn index(&self) -> usize {
        self.index
    }

    /// CR0 as the guest reads it.
    #[getter]
    fn cr0(&self, py: Python<'_>) -> PyResult<u64> {
        self.with(py, |cpu| Ok(cpu.regs().cr0))
    }

    /// CR3 as the guest reads it.
    #[getter]
    fn cr3(&self, py: Python<'_>) -> PyResult<u64> {
        self.with(py, |cpu| Ok(cpu.regs().cr3))
    }

    /// CR4 as the guest reads it.
    #[getter]
    fn cr4(&self, py: Python<'_>) -> PyResult<u64> {
        self.with(py, |cpu| Ok(cpu.regs().cr4))
    }

    /// EFER as the guest reads it.
    #[getter]
    fn efer(&self, py: Python<'_>) -> PyResult<u64> {
        self.with(py, |cpu| Ok(cpu.regs().efer))
    }

    /// PKRU as the guest reads it.
    #[getter]
    fn pkru(&self, py: Python<'_>) -> PyResult<u32> {
        self.with(py, |cpu| Ok(cpu.regs().pkru))
    }

    /// MOV to CR0. Raises `GeneralProtection` for a value that the processor refuses; nothing has changed then.
    #[pyo3(signature = (value, /))]
    fn write_cr0(&self, py: Python<'_>, value: Word) -> PyResult<()> {
        self.instruction(py, |cpu| cpu.write_cr0(value.0))
    }

    /// MOV to CR3, with the vCPU's policy. Raises `GeneralProtection` as `write_cr0` does.
    #[pyo3(signature = (value, /))]
    fn write_cr3(&self, py: Python<'_>, value: Word) -> PyResult<()> {
        self.instruction(py, |cpu| cpu.write_cr3(value.0))
    }

    /// MOV to CR4. Raises `GeneralProtection` as `write_cr0` does, for what the `CpuModel` lacks too.
    #[pyo3(signature = (value, /))]
    fn write_cr4(&self, py: Python<'_>, value: Word) -> PyResult<()> {
        self.instruction(py, |cpu| cpu.write_cr4(value.0))
    }

    /// WRMSR to EFER. Raises `GeneralProtection` as `write_cr4` does.
    #[pyo3(signature = (value, /))]
    fn write_efer(&self, py: Python<'_>, value: Word) -> PyResult<()> {
        self.instruction(py, |cpu| cpu.write_efer(value.0))
    }

    /// WRPKRU of EDX:EAX. Raises `InvalidOpcode` while CR4.PKE is clear, `GeneralProtection` if bits 63:32 are set.
    #[pyo3(signature = (value, /))]
    fn write_pkru(&self, py: Python<'_>, value: Word) -> PyResult<()> {
        self.instruction(py, |cpu| cpu.write_pkru(value.0))
    }

    /// INVLPG. An address that is not canonical does nothing.
    #[pyo3(signature = (gva, /))]
    fn invlpg(&self, py: Python<'_>, gva: Word) -> PyResult<()> {
        self.instruction(py, |cpu| cpu.invlpg(Gva::new(gva.0)))
    }

    /// Translate `gva` as the guest would for a "read", "write" or "fetch"; nothing is read or stored.
    ///
    /// Returns the gpa, or an `MmioExit` where no memslot is, or a read-only one for a write. Raises `PageFault`; `GeneralProtection` for an address that is not
    /// canonical; `ConfigError` for another kind.
    #[pyo3(signature = (gva, kind="read", /, *, user=false, ac=false, implicit=false))]
    fn access<'py>(
        &self,
        py: Python<'py>,
        gva: Word,
        kind: &str,
        user: bool,
        ac: bool,
        implicit: bool,
    ) -> PyResult<Bound<'py, PyAny>> {
        let kind = access_kind(py, kind)?;
        self.reach(py, |cpu| cpu.access(Gva::new(gva.0), kind, flags(user, ac, implicit)))
    }

    /// Where the guest's tables lead such an access now: the gpa, whether or not a memslot has it. Nothing changes by it, no A or D
    /// bit either. Raises what the access would raise.
    #[pyo3(signature = (gva, kind="read", /, *, user=false, ac=false, implicit=false))]
    fn translate(&self, py: Python<'_>, gva: Word, kind: &str, user: bool, ac: bool, implicit: bool) -> PyResult<u64> {
        let (gva, kind, flags) = (Gva::new(gva.0), access_kind(py, kind)?, flags(user, ac, implicit));
        let outcome = self.with(py, |cpu| Ok(translate::outcome(cpu, gva, cpu.translate(gva, kind, flags))))?;
        match errors::from_outcome(py, outcome)? {
            Reached::Value(gpa) | Reached::Mmio(gpa) => Ok(gpa),
        }
    }

    /// The same for every address of an array of unsigned integers, of any shape, or of a flat list of integers.
    ///
    /// Returns `Translations`: arrays `gpa` (uint64) and `error` (int32) of that shape. Raises `ProgramError` for other addresses.
    /// From 1,024 addresses on the interpreter is released, and Ctrl-C ends the call.
    #[pyo3(signature = (gvas, kind="read", /, *, user=false, ac=false, implicit=false))]
    fn translate_many<'py>(
        &self,
        py: Python<'py>,
        gvas: &Bound<'py, PyAny>,
        kind: &str,
        user: bool,
        ac: bool,
        implicit: bool,
    ) -> PyResult<Bound<'py, PyAny>> {
        let kind = access_kind(py, kind)?;
        translate::many(py, &self.machine, self.index, gvas, kind, flags(user, ac, implicit))
    }

    /// Guest load of 1, 2, 4 or 8 bytes.
    #[pyo3(
        signature = (gva, size=Word(8), /, *, user=false, ac=false),
        text_signature = "($self, gva, size=8, /, *, user=False, ac=False)"
    )]
    fn load<'py>(&self, py: Python<'py>, gva: Word, size: Word, user: bool, ac: bool) -> PyResult<Bound<'py, PyAny>> {
        self.reach(py, |cpu| cpu.load(Gva::new(gva.0), size.0, flags(user, ac, false)))
    }

    /// Guest store of the low 1, 2, 4 or 8 bytes of `value`.
    #[pyo3(
        signature = (gva, value, size=Word(8), /, *, user=false, ac=false),
        text_signature = "($self, gva, value, size=8, /, *, user=False, ac=False)"
    )]
    fn store<'py>(
        &self,
        py: Python<'py>,
        gva: Word,
        value: Word,
        size: Word,
        user: bool,
        ac: bool,
    ) -> PyResult<Option<Bound<'py, PyAny>>> {
        let outcome = self.with(py, |cpu| cpu.store(Gva::new(gva.0), value.0, size.0, flags(user, ac, false)))?;
        match errors::from_outcome(py, outcome)? {
            Reached::Value(_) => Ok(None),
            Reached::Mmio(gpa) => mmio_exit(py, gpa).map(Some),
        }
    }

    /// `(pgd, hpa)` of the current root, then of each previous root; hpa is `2**64 - 1` where invalid.
    fn roots(&self, py: Python<'_>) -> PyResult<Vec<(u64, u64)>> {
        self.with(py, |cpu| Ok(cpu.roots()))
    }

    fn __repr__(&self, py: Python<'_>) -> String {
        // A repr must not fail: a busy or closed vCPU shows its place alone.
        match self.with(py, |cpu| Ok(cpu.regs().cr3)) {
            Ok(cr3) => format!("<Vcpu {} cr3={cr3:#x}>", self.index),
            Err(_) => format!("<Vcpu {}>", self.index),
        }
    }
}
