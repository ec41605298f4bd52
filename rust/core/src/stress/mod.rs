//! Stress: every vCPU does everything at once, and every access is judged.
//!
//! Each vCPU runs a guest of its own making over one machine: CR3 switches between the roots of KPTI pairs, loads and stores,
//! edits of tables that all share (through windows that the MMU must write-protect and let go again), shoot-downs with the
//! guest's own signals, tables that become data and tables again, INVLPG, register writes, and the host's zaps and stores.
//! An oracle that knows no shadow pages judges each access by D.5 (see `judge`, `history`); now and then all vCPUs rest and the
//! machine is audited. At the end memory is compared with what each word's last writer stored, and every page of every root is
//! translated once more.
//!
//! On x86 this is no evidence for orders that are Release or Acquire alone: the hardware keeps them anyway
//! (docs/memory-ordering.md).

mod accesses;
mod actor;
mod config;
mod edits;
mod figures;
mod finale;
mod guest;
mod history;
mod judge;
mod record;
mod reuse;
mod shootdown;
mod threads;
mod turns;
mod watchdog;

use core::time::Duration;

pub use self::{
    actor::MAX_RETRIES,
    config::{Interleaving, Limit, Rates, StressConfig},
    figures::{Figures, Finding, Tail},
    guest::MAX_STRESS_VCPUS,
    record::Record,
};
use self::{
    actor::{Actor, Stage},
    guest::Guest,
    history::Clock,
};
#[cfg(feature = "scheduled")]
pub use crate::sync::schedule;
use crate::{
    addr::{ENTRIES, PAGE_SIZE},
    error::{Error, Result},
    op::{Op, OpKind, Outcome},
    run::Control,
    stats::{LockReason, Longest, Stats},
    vm::{Cpu, Vm},
};

/// Longest hold of the `mmu_lock` that is no violation (R11), where holds are timed.
pub const MAX_HOLD: Duration = Duration::from_millis(50);

/// What a run did and found.
#[derive(Clone, Debug, Default)]
pub struct StressReport {
    /// Wall time from the first step to the last.
    pub seconds: f64,
    /// A stop was asked for.
    pub interrupted: bool,
    /// All vCPUs together.
    pub figures: Figures,
    /// Each vCPU.
    pub per_vcpu: Vec<Figures>,
    /// Audits made.
    pub audits: u64,
    /// Violations; the first of them.
    pub findings: Vec<Finding>,
    /// How many there were.
    pub finding_count: u64,
    /// Longest hold of the `mmu_lock` by a vCPU, in nanoseconds; 0 where
    /// [`lock_times`](crate::VmConfig::lock_times) did not ask for it.
    pub longest_hold: u64,
    /// The machine's own statistics.
    pub stats: Stats,
    /// The last operations of each vCPU.
    pub tails: Vec<Tail>,
    /// The roots, kernel's and user's, with the pages that each has.
    pub roots: Vec<(u64, Vec<u64>)>,
    /// The whole run, if it was in turns.
    pub record: Option<Record>,
}

impl StressReport {
    /// Whether nothing was wrong.
    pub fn ok(&self) -> bool {
        self.finding_count == 0
    }

    fn find(&mut self, what: &'static str, text: String) {
        self.finding_count += 1;
        self.findings.push(Finding { vcpu: None, what, text });
    }
}

/// Bytes of memory, in one slot at gpa 0, that a machine of so many vCPUs needs to be stressed.
pub fn bytes_needed(vcpus: usize) -> u64 {
    Guest::bytes_needed(vcpus.min(MAX_STRESS_VCPUS))
}

/// Stresses a machine that was just made. Its guest memory is overwritten.
///
/// Running on threads, a seed fixes what each vCPU does but not how they meet; in turns it fixes everything.
///
/// # Errors
/// [`Error::Config`] for a value out of range, or a machine with another slot than one at gpa 0, or too little memory for its
/// vCPUs; [`Error::Busy`] and [`Error::Threads`] before anything is run; [`Error::Stuck`] if a vCPU made no step for
/// longer than the configuration's patience; [`Error::Panic`], [`Error::Broken`], and what the machine itself refuses.
///
/// ```
/// use shadow_mmu::{Control, Gpa, MemoryRegion, Vm, VmConfig, stress::{self, Limit, StressConfig}};
///
/// let slots = vec![MemoryRegion::ram(Gpa::new(0), stress::bytes_needed(2))];
/// let vm = Vm::new(VmConfig { slots, vcpus: 2, ..VmConfig::default() })?;
/// let config = StressConfig { limit: Limit::Steps(500), ..StressConfig::default() };
/// let report = stress::stress(&vm, &config, &Control::new())?;
/// assert!(report.ok(), "{:?}", report.findings);
/// # Ok::<(), shadow_mmu::Error>(())
/// ```
pub fn stress(vm: &Vm, config: &StressConfig, control: &Control) -> Result<StressReport> {
    stress_with(vm, config, control, &Bare)
}

/// The same with the vCPUs' threads under a scheduler: the whole run is a function of its strategy and the configuration's seed,
/// if the limit is one of steps and the kind of lock is one of this library's own.
///
/// # Errors
/// As [`stress`].
#[cfg(feature = "scheduled")]
pub fn stress_scheduled(
    vm: &Vm,
    config: &StressConfig,
    control: &Control,
    scheduler: &std::sync::Arc<schedule::Scheduler>,
) -> Result<StressReport> {
    stress_with(vm, config, control, &scheduled::Scheduled(scheduler))
}

/// What stands around the vCPUs' threads.
trait Rig: Sync {
    /// What a thread holds while it runs.
    type Stay;

    /// Called first on each vCPU's thread.
    fn enter(&self, vcpu: usize) -> Self::Stay;

    /// Called before each step.
    fn before_step(&self, _vcpu: usize, _floor: &threads::Floor<'_>) {}
}

/// Nothing stands around them.
struct Bare;

impl Rig for Bare {
    type Stay = ();

    fn enter(&self, _vcpu: usize) {}
}

/// A scheduler stands around them.
#[cfg(feature = "scheduled")]
mod scheduled {
    use std::sync::Arc;

    use super::Rig;
    use crate::sync::schedule::{Entered, Scheduler};

    pub(super) struct Scheduled<'a>(pub(super) &'a Arc<Scheduler>);

    impl Rig for Scheduled<'_> {
        type Stay = Entered;

        fn enter(&self, vcpu: usize) -> Entered {
            self.0.enter(vcpu)
        }
    }
}

fn stress_with(vm: &Vm, config: &StressConfig, control: &Control, rig: &impl Rig) -> Result<StressReport> {
    config.validate()?;
    vm.check_health()?;
    if !vm.config().cpu.long_mode {
        let got = "one without long mode".into();
        return Err(Error::Config {
            what: "processor",
            got,
            expected: "one with it: the guest has four levels".into(),
        });
    }
    let slots: Vec<_> = vm.memory().iter().collect();
    let [slot] = slots[..] else {
        return Err(Error::Config { what: "memslots", got: slots.len().to_string(), expected: "one, at gpa 0".into() });
    };
    if slot.base().get() != 0 || slot.is_read_only() {
        let kind = if slot.is_read_only() { " read-only" } else { "" };
        let got = format!("one{kind} at {}", slot.base().gpa());
        return Err(Error::Config {
            what: "memslots",
            got,
            expected: "one, at gpa 0, that the guest may write".into(),
        });
    }
    let (guest, memory) = Guest::new(vm.config().vcpus, slot.pages() * PAGE_SIZE)?;
    let clock = Clock::new(guest.vcpus);
    let stage = Stage { guest: &guest, clock: &clock, rates: &config.rates };
    let mut cpus = vm.all_cpus()?;
    let record = config.interleaving == Interleaving::Turns;
    let mut setup = Record::default();
    load(&guest, &memory, &mut cpus[0], record.then_some(&mut setup))?;
    let mut actors: Vec<Actor<'_>> =
        (0..guest.vcpus).map(|vcpu| Actor::new(stage, vcpu, config.seed, record)).collect();
    let roots = |process: &guest::Process| [process.kernel, process.user].map(|root| (root, process.pages.clone()));
    let roots = guest.processes.iter().flat_map(roots).collect();
    let mut report = StressReport { roots, ..StressReport::default() };
    let mut cpus = match config.interleaving {
        Interleaving::Turns => {
            turns::run(vm, config, &mut actors, &mut cpus, &mut report, &mut setup, control)?;
            cpus
        }
        Interleaving::Threads => {
            actors = threads::run(vm, config, actors, cpus, &clock, &mut report, control, rig)?;
            vm.all_cpus()?
        }
    };
    report.interrupted = control.stopped();
    finale::check(vm, &guest, &mut actors, &mut cpus, &mut report, record.then_some(&mut setup), control)?;
    drop(cpus);
    finish(vm, actors, &mut report)?;
    report.record = record.then_some(setup);
    Ok(report)
}

/// Puts the guest's tables and data into memory, page by page, by the hypervisor's side.
fn load(guest: &Guest, memory: &[(u64, u64)], cpu: &mut Cpu<'_>, mut record: Option<&mut Record>) -> Result<()> {
    let mut pages = vec![None; guest.pages as usize];
    for &(gpa, value) in memory {
        let page = pages[(gpa / PAGE_SIZE) as usize].get_or_insert_with(|| Box::new([0_u64; ENTRIES]));
        page[(gpa % PAGE_SIZE / 8) as usize] = value;
    }
    let nothing = Box::new([0_u64; ENTRIES]);
    for (number, page) in pages.iter().enumerate() {
        let row = core::slice::from_ref(&**page.as_ref().unwrap_or(&nothing));
        let op = Op::new(OpKind::HostPage, number as u64 * PAGE_SIZE);
        let outcome = cpu.execute(&op, row)?;
        debug_assert_eq!(outcome, Outcome::Ok(0), "a page of memory");
        // Memory of a new machine is zero: nothing to be told of.
        if let Some(record) = record.as_mut().filter(|_| page.is_some()) {
            record.push(op, outcome, row);
        }
    }
    Ok(())
}

/// Joins the actors' figures and findings, and looks at the machine's own.
fn finish(vm: &Vm, actors: Vec<Actor<'_>>, report: &mut StressReport) -> Result<()> {
    for mut actor in actors {
        report.figures.join(&actor.figures);
        report.per_vcpu.push(actor.figures);
        report.finding_count += actor.figures.violations;
        report.findings.append(&mut actor.findings);
        report.tails.push(actor.tail);
    }
    // What an access met tells more than what it left behind.
    report.findings.sort_by_key(|finding| finding.vcpu.is_none());
    report.stats = vm.stats()?;
    for (vcpu, stats) in report.stats.per_vcpu.iter().enumerate() {
        let Some(Longest { nanos: hold, reason, .. }) = stats.lock.times.as_ref().and_then(|times| times.longest_hold)
        else {
            continue;
        };
        report.longest_hold = report.longest_hold.max(hold);
        if u128::from(hold) > MAX_HOLD.as_nanos() {
            let reason = LockReason::NAMES[reason as usize];
            let text = format!("{hold} ns for {reason}, at most {} are allowed", MAX_HOLD.as_nanos());
            report.finding_count += 1;
            report.findings.push(Finding { vcpu: Some(vcpu), what: "lock hold", text });
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
