//! Reports of the core as dictionaries; the Python package gives them types.

use pyo3::{
    prelude::*,
    types::{PyBytes, PyDict, PyList},
};
use shadow_mmu::{
    Hpa, ReplayReport, RunReport, ShadowPath, SpId, Stats,
    stats::{Counters, Cr3Stats, LockReason, LockStats, LockUser, Longest, Nanos, Quantiles, VcpuStats},
    vm::ShadowPageInfo,
};

/// `{name: value}` of two parallel sequences.
pub(crate) fn named<'py>(py: Python<'py>, names: &[&str], values: &[u64]) -> PyResult<Bound<'py, PyDict>> {
    let dict = PyDict::new(py);
    for (name, value) in names.iter().zip(values) {
        dict.set_item(*name, *value)?;
    }
    Ok(dict)
}

fn quantiles(py: Python<'_>, Quantiles { p50, p99, max, total }: Quantiles) -> PyResult<Bound<'_, PyDict>> {
    named(py, &["p50", "p99", "max", "total"], &[p50, p99, max, total])
}

fn durations<'py>(py: Python<'py>, nanos: Option<&Nanos>) -> PyResult<Option<Bound<'py, PyDict>>> {
    nanos.map(|nanos| quantiles(py, nanos.quantiles())).transpose()
}

fn lock<'py>(py: Python<'py>, lock: &LockStats) -> PyResult<Bound<'py, PyDict>> {
    let dict = PyDict::new(py);
    dict.set_item("acquisitions", named(py, &LockReason::NAMES, &lock.acquisitions)?)?;
    dict.set_item("shared", lock.shared)?;
    dict.set_item("contended", lock.contended)?;
    dict.set_item("wait_ns", durations(py, lock.times.as_ref().map(|times| &times.wait))?)?;
    dict.set_item("hold_ns", durations(py, lock.times.as_ref().map(|times| &times.hold))?)?;
    dict.set_item("longest_wait", longest(py, lock.times.as_ref().and_then(|times| times.longest_wait))?)?;
    dict.set_item("longest_hold", longest(py, lock.times.as_ref().and_then(|times| times.longest_hold))?)?;
    Ok(dict)
}

fn longest(py: Python<'_>, longest: Option<Longest>) -> PyResult<Option<Bound<'_, PyDict>>> {
    let dict = |Longest { nanos, vcpu, reason }: Longest| {
        let dict = PyDict::new(py);
        dict.set_item("ns", nanos)?;
        dict.set_item("vcpu", vcpu)?;
        dict.set_item("reason", reason.name())?;
        Ok(dict)
    };
    longest.map(dict).transpose()
}

/// One who waits for or holds the lock: vCPU or None, phase, reason, nanoseconds.
pub(crate) type LockUse = (Option<usize>, &'static str, &'static str, u64);

/// Who waits for and who holds the lock.
pub(crate) fn lock_users(users: &[LockUser]) -> Vec<LockUse> {
    users.iter().map(|user| (user.vcpu, user.phase.name(), user.reason.name(), user.nanos)).collect()
}

fn cr3<'py>(py: Python<'py>, cr3: &Cr3Stats) -> PyResult<Bound<'py, PyDict>> {
    let names = ["writes", "same", "same_locked", "lockless", "locked", "locked_miss", "locked_unsync"];
    let locked = cr3.locked();
    let values = [cr3.writes, cr3.same, cr3.same_locked, cr3.lockless, locked, cr3.locked_miss, cr3.locked_unsync];
    named(py, &names, &values)
}

/// What one vCPU and a whole machine have in common.
fn counted<'py>(py: Python<'py>, stats: &VcpuStats) -> PyResult<Bound<'py, PyDict>> {
    let dict = PyDict::new(py);
    dict.set_item("counters", named(py, Counters::NAMES, &stats.counters.values())?)?;
    dict.set_item("lock", lock(py, &stats.lock)?)?;
    dict.set_item("cr3", cr3(py, &stats.cr3)?)?;
    dict.set_item("cr3_write_ns", durations(py, stats.cr3_write.as_deref())?)?;
    dict.set_item("tlb_full_flushes", stats.tlb_full_flushes)?;
    dict.set_item("unsync_marks", stats.unsync_marks)?;
    dict.set_item("sync_pages", stats.sync_pages)?;
    dict.set_item("sync_pages_unchanged", stats.sync_pages_unchanged)?;
    Ok(dict)
}

/// Statistics of a machine.
pub(crate) fn stats<'py>(py: Python<'py>, stats: &Stats) -> PyResult<Bound<'py, PyDict>> {
    let dict = counted(py, &stats.total)?;
    dict.set_item("shadow_pages_live", stats.shadow_pages_live)?;
    dict.set_item("shadow_pages_peak", stats.shadow_pages_peak)?;
    dict.set_item("shadow_bytes_peak", stats.shadow_bytes_peak)?;
    let per_vcpu = stats.per_vcpu.iter().map(|vcpu| counted(py, vcpu)).collect::<PyResult<Vec<_>>>()?;
    dict.set_item("per_vcpu", per_vcpu)?;
    Ok(dict)
}

/// One shadow page.
pub(crate) fn shadow_page<'py>(py: Python<'py>, page: &ShadowPageInfo) -> PyResult<Bound<'py, PyDict>> {
    let role = page.role;
    let dict = PyDict::new(py);
    dict.set_item("id", page.id)?;
    dict.set_item("gfn", page.gfn.get())?;
    dict.set_item("hpa", SpId::new(page.id).hpa().get())?;
    dict.set_item("role", role.word())?;
    dict.set_item("level", role.level().get())?;
    dict.set_item("direct", role.is_direct())?;
    dict.set_item("access", role.access().bits())?;
    dict.set_item("invalid", role.is_invalid())?;
    dict.set_item("unsync", page.unsync)?;
    dict.set_item("unsync_children", page.unsync_children)?;
    dict.set_item("root_count", page.root_count)?;
    dict.set_item("flooding", page.flooding)?;
    dict.set_item("parents", &page.parents)?;
    let sptes = PyDict::new(py);
    for (index, spte) in &page.sptes {
        sptes.set_item(index, spte)?;
    }
    dict.set_item("sptes", sptes)?;
    Ok(dict)
}

/// The way of one translation.
pub(crate) fn shadow_path<'py>(py: Python<'py>, path: &ShadowPath) -> PyResult<Bound<'py, PyDict>> {
    let (regs, dict) = (&path.regs, PyDict::new(py));
    dict.set_item("registers", (regs.cr0, regs.cr3, regs.cr4, regs.efer, regs.pkru))?;
    dict.set_item("pdptrs", path.pdptrs)?;
    dict.set_item("two_dimensions", path.two_dimensions)?;
    dict.set_item("root", path.root.get())?;
    dict.set_item("entries", path.entries.map(|entries| entries.map(Hpa::get)))?;
    let steps = path.steps.iter().map(|step| {
        (
            step.id,
            step.gfn.get(),
            step.role.word(),
            step.index,
            step.spte,
            step.unsync,
            step.unsync_children,
            step.marked,
        )
    });
    dict.set_item("steps", PyList::new(py, steps.collect::<Vec<_>>())?)?;
    dict.set_item("tlb", path.tlb)?;
    dict.set_item("requests", path.requests)?;
    dict.set_item("shut_down", path.shut_down)?;
    Ok(dict)
}

/// What a run did.
pub(crate) fn run<'py>(py: Python<'py>, report: &RunReport, interrupted: bool) -> PyResult<Bound<'py, PyDict>> {
    let dict = PyDict::new(py);
    dict.set_item("seconds", report.seconds)?;
    dict.set_item("overlap", report.overlap)?;
    dict.set_item("starved", report.starved)?;
    dict.set_item("ops_done", &report.ops_done)?;
    dict.set_item("interrupted", interrupted)?;
    dict.set_item("faults", report.faults)?;
    let outcomes = report.outcomes.as_ref().map(|programs| {
        PyList::new(py, programs.iter().map(|outcomes| PyBytes::new(py, bytemuck::cast_slice(outcomes))))
    });
    dict.set_item("outcomes", outcomes.transpose()?)?;
    Ok(dict)
}

/// What a replay did and found.
pub(crate) fn replay<'py>(py: Python<'py>, report: &ReplayReport, interrupted: bool) -> PyResult<Bound<'py, PyDict>> {
    let dict = PyDict::new(py);
    dict.set_item("seconds", report.seconds)?;
    dict.set_item("events_done", report.ops_done)?;
    dict.set_item("interrupted", interrupted)?;
    dict.set_item("accesses_checked", report.accesses_checked)?;
    dict.set_item("stores_checked", report.stores_checked)?;
    dict.set_item("guest_faults", report.guest_faults)?;
    let mismatches = report.mismatches.iter().map(|m| (m.index, m.outcome.code, m.outcome.value, m.expected));
    dict.set_item("mismatches", PyList::new(py, mismatches.collect::<Vec<_>>())?)?;
    dict.set_item("mismatch_count", report.mismatch_count)?;
    let violations = report.violations.iter().map(|(index, violation)| (index, violation.to_string()));
    dict.set_item("violations", PyList::new(py, violations.collect::<Vec<_>>())?)?;
    dict.set_item("max_parallel", report.max_parallel)?;
    dict.set_item("audits", report.audits)?;
    Ok(dict)
}
