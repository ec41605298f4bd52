//! `Vm`: the machine, its memory, whole programs and reports.

use core::mem::size_of;
use std::sync::Arc;

use pyo3::{
    exceptions::PyKeyboardInterrupt,
    prelude::*,
    types::{PyBytes, PyDict},
};
use shadow_mmu::{
    Control, Gpa, Gva, MemoryRegion, Op, OpKind, ReplayMode, ReplayOptions, RunOptions, Vm as CoreVm, VmConfig,
    memory::Memslot, op::OutcomeRecord,
};

use crate::{
    convert::{Processor, Records, Word, plain_bytes},
    errors,
    machine::Machine,
    report, stress,
    vcpu::Vcpu,
};

/// Calls on less memory than this keep the interpreter: releasing it would cost more than they take.
const DETACH_BYTES: u64 = 64 << 10;
/// An audit of more shadow pages, or of more frames, is a long call.
const MANY_SHADOW_PAGES: u64 = 1 << 10;
const MANY_FRAMES: u64 = 1 << 20;
/// A page of guest memory as words.
pub(crate) type PageWords = [u64; 512];

/// The native machine; `shadow_mmu.Vm` is its public face.
#[pyclass(frozen, weakref, module = "shadow_mmu._native")]
pub(crate) struct Vm {
    machine: Arc<Machine>,
    vcpus: Vec<Py<Vcpu>>,
}

#[pymethods]
impl Vm {
    #[new]
    #[pyo3(signature = (*, slots, vcpus, policy, tlb_entries, cpu, trace, lock_times, cr3_times, lock="queued", link="mark-first", pae_roots="uncached", mmu="shadow", host="64", lock_watch=false, mutant=None))]
    #[expect(
        clippy::too_many_arguments,
        clippy::needless_pass_by_value,
        clippy::fn_params_excessive_bools,
        reason = "keyword arguments of a Python constructor"
    )]
    fn new(
        py: Python<'_>,
        slots: Vec<(Word, Word, bool)>,
        vcpus: Word,
        policy: &str,
        tlb_entries: Word,
        cpu: Processor,
        trace: bool,
        lock_times: bool,
        cr3_times: bool,
        lock: &str,
        link: &str,
        pae_roots: &str,
        mmu: &str,
        host: &str,
        lock_watch: bool,
        mutant: Option<&str>,
    ) -> PyResult<Self> {
        let refuse = |error| errors::from_core(py, &error);
        let config = VmConfig {
            slots: slots.iter().map(|&(gpa, bytes, read_only)| region(gpa, bytes, read_only)).collect(),
            // Saturating keeps a value that is out of range out of range: the core says what it accepts.
            vcpus: usize::try_from(vcpus.0).unwrap_or(usize::MAX),
            policy: policy.parse().map_err(refuse)?,
            lock: lock.parse().map_err(refuse)?,
            link: link.parse().map_err(refuse)?,
            pae_roots: pae_roots.parse().map_err(refuse)?,
            mmu: mmu.parse().map_err(refuse)?,
            host: host.parse().map_err(refuse)?,
            tlb_entries: usize::try_from(tlb_entries.0).unwrap_or(usize::MAX),
            cpu: cpu.model(),
            trace,
            lock_times,
            lock_watch,
            cr3_times,
            mutant: mutant.unwrap_or("none").parse().map_err(refuse)?,
        };
        let count = config.vcpus;
        let vm = py.detach(|| CoreVm::new(config)).map_err(refuse)?;
        let machine = Arc::new(Machine::new(vm));
        let vcpus = (0..count).map(|index| Py::new(py, Vcpu::new(Arc::clone(&machine), index)));
        let vcpus = vcpus.collect::<PyResult<_>>()?;
        Ok(Self { machine, vcpus })
    }

    /// The virtual CPUs, in order.
    #[getter]
    fn vcpus(&self, py: Python<'_>) -> Vec<Py<Vcpu>> {
        self.vcpus.iter().map(|vcpu| vcpu.clone_ref(py)).collect()
    }

    /// Hypervisor-side read of guest memory.
    #[pyo3(signature = (gpa, length, /))]
    fn memory_read<'py>(&self, py: Python<'py>, gpa: Word, length: Word) -> PyResult<Bound<'py, PyBytes>> {
        let (gpa, length) = (Gpa::new(gpa.0), length.0);
        self.machine.core(py, |vm| vm.memory().require(gpa, length))?;
        // It lies in memory, so it is far below `usize::MAX`, but may still be more than the host has: no panic, MemoryError.
        PyBytes::new_with(py, usize::try_from(length)?, |target| {
            let read = move |vm: &CoreVm| vm.host_read(gpa, target);
            if length < DETACH_BYTES { self.machine.core(py, read) } else { self.machine.detached(py, read) }
        })
    }

    /// Refuse a range that is not all in memslots.
    #[pyo3(signature = (gpa, length, /))]
    fn memory_require(&self, py: Python<'_>, gpa: Word, length: Word) -> PyResult<()> {
        self.machine.core(py, |vm| vm.memory().require(Gpa::new(gpa.0), length.0))
    }

    /// Hypervisor-side write of guest memory: one acquisition of the `mmu_lock` for each MiB begun, changed table words are
    /// unshadowed.
    #[pyo3(signature = (gpa, data, /))]
    fn memory_write(&self, py: Python<'_>, gpa: Word, data: &Bound<'_, PyAny>) -> PyResult<()> {
        let bytes = plain_bytes("data", data)?;
        let (gpa, source) = (Gpa::new(gpa.0), bytes.as_bytes());
        let write = |vm: &CoreVm| vm.host_write(gpa, source);
        if (source.len() as u64) < DETACH_BYTES {
            self.machine.core(py, write)
        } else {
            self.machine.detached(py, write)
        }
    }

    /// Add a memslot.
    #[pyo3(signature = (gpa, length, read_only=false, /))]
    fn add_memslot(&self, py: Python<'_>, gpa: Word, length: Word, read_only: bool) -> PyResult<()> {
        self.machine.detached(py, |vm| vm.add_memslot(region(gpa, length, read_only)))
    }

    /// Run one operation record (32 bytes): (outcome code, value or address or gpa, error code).
    #[pyo3(signature = (op, pages=None, /))]
    fn execute(
        &self,
        py: Python<'_>,
        op: &Bound<'_, PyAny>,
        pages: Option<&Bound<'_, PyAny>>,
    ) -> PyResult<(u8, u64, u32)> {
        let records = Records::<Op>::copy("op", op, size_of::<Op>())?;
        let [op] = records.as_slice() else {
            let text =
                format!("op: got {} records, expected one of {} bytes", records.as_slice().len(), size_of::<Op>());
            return Err(errors::layout(py, text));
        };
        // Rows are copied, so only the one kind that reads them gets them.
        let pages = page_records(pages.filter(|_| op.kind == OpKind::HostPage as u8))?;
        let outcome = self.machine.core(py, |vm| vm.cpu(op.vcpu.into())?.execute(op, page_slice(pages.as_ref())))?;
        let OutcomeRecord { code, value, error, .. } = outcome.into();
        Ok((code, value, error))
    }

    /// Run program i on vCPU i, each on its own OS thread, the GIL released.
    #[pyo3(signature = (programs, *, pages=None, outcomes=false, pin=false, poll=None))]
    #[expect(clippy::needless_pass_by_value, reason = "arguments of a Python method are owned")]
    fn run<'py>(
        &self,
        py: Python<'py>,
        programs: Vec<Bound<'py, PyAny>>,
        pages: Option<&Bound<'py, PyAny>>,
        outcomes: bool,
        pin: bool,
        poll: Option<&Bound<'py, PyAny>>,
    ) -> PyResult<Bound<'py, PyDict>> {
        let programs = programs.iter().enumerate();
        let programs =
            programs.map(|(i, program)| Records::<Op>::copy(&format!("program {i}"), program, size_of::<Op>()));
        let programs = programs.collect::<PyResult<Vec<_>>>()?;
        let input = Arc::new((programs, page_records(pages)?));
        let options = RunOptions { outcomes, pin };
        let control = Arc::new(Control::new());
        let (shared, stop) = (Arc::clone(&input), Arc::clone(&control));
        let driven = self.machine.driven(py, &control, poll, move |vm| {
            let programs: Vec<&[Op]> = shared.0.iter().map(Records::as_slice).collect();
            shadow_mmu::run(vm, &programs, page_slice(shared.1.as_ref()), options, &stop)
        })?;
        report::run(py, &driven.result, driven.interrupted)
    }

    /// Replay a recording's operations, checking the gpa that each access reaches.
    #[pyo3(signature = (ops, pages, *, threads, check, audit_every, events, poll=None))]
    #[expect(clippy::too_many_arguments, reason = "keyword arguments of a Python method")]
    fn replay<'py>(
        &self,
        py: Python<'py>,
        ops: &Bound<'py, PyAny>,
        pages: &Bound<'py, PyAny>,
        threads: bool,
        check: bool,
        audit_every: Word,
        events: &Bound<'py, PyAny>,
        poll: Option<&Bound<'py, PyAny>>,
    ) -> PyResult<Bound<'py, PyDict>> {
        let ops = Records::<Op>::copy("ops", ops, size_of::<Op>())?;
        let pages = page_records(Some(pages))?;
        let marks = Records::<u8>::copy("events", events, 1)?;
        // 0 means no audit on the way, whatever the marks say.
        let none = if audit_every.0 == 0 { vec![0; ops.as_slice().len()] } else { Vec::new() };
        let input = Arc::new((ops, pages, marks, none));
        let mode = if threads { ReplayMode::Threads } else { ReplayMode::Ordered };
        let options = ReplayOptions { mode, check };
        let control = Arc::new(Control::new());
        let (shared, stop) = (Arc::clone(&input), Arc::clone(&control));
        let driven = self.machine.driven(py, &control, poll, move |vm| {
            let (ops, pages, marks, none) = &*shared;
            let marks = if none.is_empty() { marks.as_slice() } else { none };
            shadow_mmu::replay(vm, ops.as_slice(), page_slice(pages.as_ref()), marks, options, &stop)
        })?;
        report::replay(py, &driven.result, driven.interrupted)
    }

    /// Let every vCPU do everything at once, and judge each access. The machine was just made; its memory is overwritten.
    #[pyo3(signature = (keywords, poll=None, /))]
    #[expect(clippy::needless_pass_by_value, reason = "arguments of a Python method are owned")]
    fn stress<'py>(
        &self,
        py: Python<'py>,
        keywords: stress::Keywords,
        poll: Option<&Bound<'py, PyAny>>,
    ) -> PyResult<Bound<'py, PyDict>> {
        let config = keywords.config().map_err(|error| errors::from_core(py, &error))?;
        let control = Arc::new(Control::new());
        let stop = Arc::clone(&control);
        let driven =
            self.machine.driven(py, &control, poll, move |vm| shadow_mmu::stress::stress(vm, &config, &stop))?;
        stress::report(py, &driven.result, driven.interrupted)
    }

    /// Counters and lock statistics of a machine at rest.
    fn stats<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        report::stats(py, &self.machine.core(py, CoreVm::stats)?)
    }

    /// Who waits for and who holds the `mmu_lock` now, from any thread; None if that is not watched.
    fn lock_users(&self, py: Python<'_>) -> PyResult<Option<Vec<report::LockUse>>> {
        self.machine.core(py, |vm| Ok(vm.lock_users().map(|users| report::lock_users(&users))))
    }

    /// Check every invariant that applies; the violations as text.
    fn audit(&self, py: Python<'_>) -> PyResult<Vec<String>> {
        let control = Arc::new(Control::new());
        let violations = if self.machine.core(py, |vm| Ok(is_large(vm)))? {
            let stop = Arc::clone(&control);
            let driven = self.machine.driven(py, &control, None, move |vm| vm.audit_until(&stop))?;
            if driven.interrupted {
                return Err(PyKeyboardInterrupt::new_err(()));
            }
            driven.result
        } else {
            self.machine.detached(py, CoreVm::audit)?
        };
        Ok(violations.iter().map(ToString::to_string).collect())
    }

    /// Every shadow page in use, as dictionaries.
    fn shadow_pages<'py>(&self, py: Python<'py>) -> PyResult<Vec<Bound<'py, PyDict>>> {
        let pages = self.machine.detached(py, CoreVm::shadow_pages)?;
        let copied = pages.iter().enumerate().map(|(number, page)| {
            // Hundreds of thousands of pages take seconds.
            if number % 256 == 0 {
                py.check_signals()?;
            }
            report::shadow_page(py, page)
        });
        copied.collect()
    }

    /// The shadow tables on the way to `gva`, as the hardware of a vCPU would walk them now; nothing is changed.
    #[pyo3(signature = (vcpu, gva, /))]
    fn shadow_path<'py>(&self, py: Python<'py>, vcpu: Word, gva: Word) -> PyResult<Bound<'py, PyDict>> {
        let vcpu = usize::try_from(vcpu.0).unwrap_or(usize::MAX);
        report::shadow_path(py, &self.machine.core(py, |vm| vm.shadow_path(vcpu, Gva::new(gva.0)))?)
    }

    /// The whole state as u64 words (docs/machine.md, 11).
    fn state_words<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyBytes>> {
        let words = self.machine.detached(py, CoreVm::state_words)?;
        Ok(PyBytes::new(py, bytemuck::cast_slice(&words)))
    }

    /// The events recorded since the last call, as 24-byte records.
    fn take_trace<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyBytes>> {
        let records = self.machine.core(py, CoreVm::take_trace)?;
        Ok(PyBytes::new(py, bytemuck::cast_slice(&records)))
    }

    /// Give the memory back; every later call raises `ClosedError`. Closing twice is no error.
    fn close(&self, py: Python<'_>) -> PyResult<()> {
        self.machine.close(py)
    }

    fn __repr__(&self) -> String {
        format!("<_native.Vm with {} vCPUs>", self.vcpus.len())
    }
}

/// A memslot as Python asks for it.
const fn region(gpa: Word, bytes: Word, read_only: bool) -> MemoryRegion {
    MemoryRegion { gpa: Gpa::new(gpa.0), bytes: bytes.0, read_only }
}

/// Whether an audit may take longer than Ctrl-C may wait.
fn is_large(vm: &CoreVm) -> bool {
    vm.shadow_pages_live() > MANY_SHADOW_PAGES || vm.memory().iter().map(Memslot::pages).sum::<u64>() > MANY_FRAMES
}

/// The page array of a program, if there is one.
fn page_records(pages: Option<&Bound<'_, PyAny>>) -> PyResult<Option<Records<PageWords>>> {
    pages.map(|pages| Records::copy("pages", pages, size_of::<u64>())).transpose()
}

/// The pages, none where there is no array.
fn page_slice(pages: Option<&Records<PageWords>>) -> &[PageWords] {
    pages.map_or(&[], Records::as_slice)
}
