//! A whole machine, and the way to its vCPUs.

mod cpu;
mod translate;

pub use self::{cpu::Cpu, translate::Translator};
use shadow_mmu_sys::lock::Mutex;

use crate::{
    addr::{ENTRIES, Gfn, Gpa, PAGE_SIZE, SpId, SpteRef},
    config::{MemoryRegion, VmConfig},
    error::{Error, Result},
    memory::GuestMemory,
    mmu::{MmuCx, Shared, Violation},
    role::PageRole,
    run::Control,
    shadow::{arena::ShadowArena, page::SpLocked},
    stats::{LockReason, LockUser, Stats, VcpuStats},
    trace::TraceRecord,
    vcpu::Vcpu,
};

/// A page of words, as [`OpKind::HostPage`](crate::op::OpKind::HostPage) takes it.
pub type PageWords = [u64; ENTRIES];

/// Bytes that one acquisition of the `mmu_lock` writes on behalf of the host.
pub const HOST_PIECE: usize = 1 << 20;
/// About what a vCPU allocates beside itself and its TLB.
const VCPU_EXTRA: usize = 2048;

/// A virtual machine: guest memory, shadow MMU, vCPUs.
#[derive(Debug)]
pub struct Vm {
    pub(crate) shared: Shared,
    vcpus: Box<[Mutex<Vcpu>]>,
    host: Mutex<MmuCx>,
}

/// One shadow page, for people to look at.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ShadowPageInfo {
    /// Its number.
    pub id: u32,
    /// Gfn of the guest table, or the first gfn mapped.
    pub gfn: Gfn,
    /// Its role.
    pub role: PageRole,
    /// Whether it is unsync.
    pub unsync: bool,
    /// Entries that are, or lead to, unsync pages.
    pub unsync_children: u32,
    /// Emulated writes since it was last used.
    pub flooding: u32,
    /// References as a root.
    pub root_count: u32,
    /// Links that lead here: (page, index).
    pub parents: Vec<(u32, u16)>,
    /// Present entries: (index, SPTE).
    pub sptes: Vec<(u16, u64)>,
}

impl Vm {
    /// Makes a machine.
    ///
    /// # Errors
    /// [`Error::Config`] for a value out of range, [`Error::OutOfMemory`].
    pub fn new(config: VmConfig) -> Result<Vm> {
        let shared = Shared::new(config)?;
        let count = shared.config.vcpus;
        // Small allocations abort where there is no memory; so ask for what they come to, and give it back.
        let bytes = count * (size_of::<Mutex<Vcpu>>() + VCPU_EXTRA);
        bytemuck::try_zeroed_slice_box::<u8>(bytes)
            .map_err(|()| Error::OutOfMemory { what: "vCPUs", bytes: bytes as u64 })?;
        let vcpus = (0..count).map(|index| Vcpu::new(index, &shared.config).map(Mutex::new)).collect::<Result<_>>()?;
        let host = Mutex::new(MmuCx::new(None, &shared.config));
        Ok(Vm { shared, vcpus, host })
    }

    /// What the machine is made of.
    pub fn config(&self) -> &VmConfig {
        &self.shared.config
    }

    /// Guest memory, for reading. Writes go through [`host_write`](Self::host_write).
    pub fn memory(&self) -> &GuestMemory {
        &self.shared.memory
    }

    /// Takes one vCPU.
    ///
    /// # Errors
    /// [`Error::NoVcpu`]; [`Error::Busy`] while another thread has it; [`Error::Broken`].
    #[inline]
    pub fn cpu(&self, index: usize) -> Result<Cpu<'_>> {
        let cpu = self.cpu_at_rest(index)?;
        self.shared.health.check()?;
        Ok(cpu)
    }

    /// Whether a thread panicked while it worked on this machine. It can be looked at then, and nothing else.
    pub fn is_broken(&self) -> bool {
        self.shared.health.is_broken()
    }

    /// Refuses a machine that is broken.
    pub(crate) fn check_health(&self) -> Result<()> {
        self.shared.health.check()
    }

    /// Takes one vCPU, of a broken machine too.
    #[inline]
    fn cpu_at_rest(&self, index: usize) -> Result<Cpu<'_>> {
        let vcpu = self.vcpus.get(index).ok_or(Error::NoVcpu { vcpu: index, count: self.vcpus.len() })?;
        let vcpu = vcpu.try_lock().ok_or(Error::Busy { vcpu: index })?;
        Ok(Cpu { shared: &self.shared, vcpu, _watch: self.shared.health.watch() })
    }

    /// Takes one vCPU, waiting for the thread that has it.
    pub(crate) fn cpu_blocking(&self, index: usize) -> Cpu<'_> {
        Cpu { shared: &self.shared, vcpu: self.vcpus[index].lock(), _watch: self.shared.health.watch() }
    }

    /// Reads guest memory from the host's side.
    ///
    /// # Errors
    /// [`Error::NoSlot`] if any byte is outside the memslots.
    pub fn host_read(&self, gpa: Gpa, out: &mut [u8]) -> Result<()> {
        self.shared.memory.read(gpa, out)
    }

    /// Writes guest memory from the host's side; shadow entries made from words that change are dropped. One
    /// acquisition of the `mmu_lock` for each [`HOST_PIECE`] bytes begun, so that no vCPU waits long.
    ///
    /// # Errors
    /// [`Error::NoSlot`] if any byte is outside the memslots, [`Error::Broken`]; nothing is written then.
    pub fn host_write(&self, gpa: Gpa, bytes: &[u8]) -> Result<()> {
        self.shared.health.check()?;
        self.shared.memory.require(gpa, bytes.len() as u64)?;
        let _watch = self.shared.health.watch();
        for (number, piece) in (0_u64..).zip(bytes.chunks(HOST_PIECE)) {
            let gpa = Gpa::new(gpa.get() + number * HOST_PIECE as u64);
            self.shared.host_write_bytes(&mut self.host.lock(), gpa, piece);
        }
        Ok(())
    }

    /// Adds a memslot (E016: a root that was outside memory works from the next access on).
    ///
    /// # Errors
    /// [`Error::Memslot`] for a misaligned, empty, too high or overlapping slot, [`Error::Config`] for the 513th one,
    /// [`Error::OutOfMemory`], [`Error::Broken`]; nothing is changed then.
    pub fn add_memslot(&self, region: MemoryRegion) -> Result<()> {
        self.shared.health.check()?;
        let _watch = self.shared.health.watch();
        let mut host = self.host.lock();
        let mut locked = self.shared.lock(&mut host, LockReason::Host);
        self.shared.memory.check(region)?;
        // What can fail comes first: the slot is visible to every vCPU as soon as it is added.
        locked.state.rmaps.add_slot(region.gpa.gfn(), region.bytes / PAGE_SIZE)?;
        self.shared.memory.add(region).map(|_| ()).inspect_err(|_| locked.state.rmaps.remove_last_slot())
    }

    /// Checks every invariant, all vCPUs at rest.
    ///
    /// # Errors
    /// [`Error::Busy`] while a vCPU is driven.
    pub fn audit(&self) -> Result<Vec<Violation>> {
        let cpus = self.all_cpus()?;
        Ok(self.audit_with(&cpus, &|| false))
    }

    /// As [`audit`](Self::audit); ends early, with what it has found so far, if `control` says so.
    ///
    /// # Errors
    /// As [`audit`](Self::audit).
    pub fn audit_until(&self, control: &Control) -> Result<Vec<Violation>> {
        let cpus = self.all_cpus()?;
        Ok(self.audit_with(&cpus, &|| control.stopped()))
    }

    /// Shadow pages in use (a moment ago).
    pub fn shadow_pages_live(&self) -> u64 {
        self.shared.peek().pages.live()
    }

    /// Takes every vCPU, of a broken machine too.
    ///
    /// # Errors
    /// [`Error::Busy`] while one is driven.
    pub(crate) fn all_cpus(&self) -> Result<Vec<Cpu<'_>>> {
        (0..self.vcpus.len()).map(|index| self.cpu_at_rest(index)).collect()
    }

    /// As [`audit`](Self::audit), waiting for vCPUs that are about to rest.
    pub(crate) fn audit_blocking(&self, control: &Control) -> Vec<Violation> {
        let cpus: Vec<_> = (0..self.vcpus.len()).map(|index| self.cpu_blocking(index)).collect();
        self.audit_with(&cpus, &|| control.stopped())
    }

    /// Checks every invariant, the caller having taken every vCPU; ends early if `stop` says so.
    pub(crate) fn audit_with(&self, cpus: &[Cpu<'_>], stop: &dyn Fn() -> bool) -> Vec<Violation> {
        let views: Vec<_> = cpus.iter().map(|cpu| cpu.vcpu.view(&self.shared)).collect();
        self.shared.lock_shared(&mut self.host.lock(), LockReason::Audit).view().audit(&views, stop)
    }

    /// Statistics, all vCPUs at rest.
    ///
    /// # Errors
    /// [`Error::Busy`] while a vCPU is driven.
    pub fn stats(&self) -> Result<Stats> {
        let mut cpus = self.all_cpus()?;
        let mut total = self.host.lock().stats.clone();
        let per_vcpu: Vec<VcpuStats> = cpus.iter_mut().map(|cpu| cpu.vcpu.statistics()).collect();
        for stats in &per_vcpu {
            total.add(stats);
        }
        let state = self.shared.peek();
        let page_bytes = ShadowArena::BYTES_PER_PAGE + size_of::<SpLocked>() as u64;
        Ok(Stats {
            total,
            per_vcpu,
            shadow_pages_live: state.pages.live(),
            shadow_pages_peak: state.pages.peak(),
            shadow_bytes_peak: state.pages.peak() * page_bytes + state.pages.recorded() * PAGE_SIZE,
        })
    }

    /// Who waits for the `mmu_lock` and who holds it at this moment: at any time, from any thread, without taking a lock.
    /// `None` unless the machine was made with [`lock_watch`](VmConfig::lock_watch) or [`lock_times`](VmConfig::lock_times).
    pub fn lock_users(&self) -> Option<Vec<LockUser>> {
        self.shared.lock_users()
    }

    /// Every shadow page in use.
    ///
    /// # Errors
    /// [`Error::Busy`] while a vCPU is driven.
    pub fn shadow_pages(&self) -> Result<Vec<ShadowPageInfo>> {
        let _cpus = self.all_cpus()?;
        let state = self.shared.peek();
        let info = |(id, page): (SpId, &SpLocked)| {
            let header = self.shared.arena.header(id);
            let sync = header.sync_state();
            ShadowPageInfo {
                id: id.get(),
                gfn: page.gfn,
                role: page.role,
                unsync: sync.is_unsync_locked(),
                unsync_children: sync.children_locked(),
                flooding: header.flooding(),
                root_count: page.root_refs.count(),
                parents: page.parents.iter().map(|parent| (parent.sp.get(), parent.index)).collect(),
                sptes: (0..ENTRIES)
                    .map(|index| (index as u16, self.shared.spte(SpteRef::new(id, index)).raw()))
                    .filter(|&(_, spte)| spte != 0)
                    .collect(),
            }
        };
        Ok(state.pages.iter().map(info).collect())
    }

    /// The state words of docs/machine.md, 11.
    ///
    /// # Errors
    /// [`Error::Busy`] while a vCPU is driven.
    pub fn state_words(&self) -> Result<Vec<u64>> {
        let mut cpus = self.all_cpus()?;
        let vcpus: Vec<&mut Vcpu> = cpus.iter_mut().map(|cpu| &mut *cpu.vcpu).collect();
        Ok(crate::state::words(&self.shared, &vcpus, &self.host.lock()))
    }

    /// The event stream since the last call, if it is recorded.
    ///
    /// # Errors
    /// [`Error::Busy`] while a vCPU is driven.
    pub fn take_trace(&self) -> Result<Vec<TraceRecord>> {
        let _cpus = self.all_cpus()?;
        Ok(self.shared.peek_mut().trace.as_mut().map(core::mem::take).unwrap_or_default())
    }
}
