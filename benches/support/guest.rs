//! Guests with their page tables in guest memory, written from the host's side before anything is measured.

use shadow_mmu::{
    AccessFlags, AccessKind, Cpu, Gpa, Gva, LockKind, MemoryRegion, Op, OpKind, Outcome, Policy, Vm, VmConfig,
};

const PAGE: u64 = 0x1000;
/// Present, writable, user, accessed, dirty: a page that the guest has used before.
const USED: u64 = 0x67;

/// Where every process has a page of user code, and of kernel code.
pub const USER_CODE: Gva = Gva::new(0x40_0000);
/// The kernel's own code: mapped by kernel roots only.
pub const KERNEL_CODE: Gva = Gva::new(0xffff_ffff_8100_0000);

/// Enters the guest without an access: pending requests are served and a root is loaded.
pub const ENTER: Op = Op::new(OpKind::SyncTlb, 0);

/// Hands out table pages and writes entries.
pub struct Tables<'a> {
    vm: &'a Vm,
    next: u64,
}

impl<'a> Tables<'a> {
    /// Tables from this gpa on.
    pub fn new(vm: &'a Vm, first: u64) -> Self {
        Self { vm, next: first }
    }

    /// A fresh page.
    pub fn page(&mut self) -> u64 {
        self.next += PAGE;
        self.next - PAGE
    }

    /// Writes one entry of the table at `table`.
    pub fn set(&self, table: u64, index: u64, target: u64) {
        let entry = (target | USED).to_le_bytes();
        self.vm.host_write(Gpa::new(table + index * 8), &entry).expect("tables are in memory");
    }

    /// The table that entry `index` of `table` leads to; made if there is none.
    fn below(&mut self, table: u64, index: u64) -> u64 {
        let mut word = [0; 8];
        self.vm.host_read(Gpa::new(table + index * 8), &mut word).expect("tables are in memory");
        let entry = u64::from_le_bytes(word);
        if entry != 0 {
            return entry & !0xfff;
        }
        let page = self.page();
        self.set(table, index, page);
        page
    }

    /// Maps a page under a 4-level root.
    pub fn map(&mut self, root: u64, gva: Gva, gpa: u64) {
        let mut table = root;
        for shift in [39, 30, 21] {
            table = self.below(table, gva.get() >> shift & 511);
        }
        self.set(table, gva.page() & 511, gpa);
    }

    /// The roots of a process.
    fn process(&mut self) -> Pair {
        let [kernel, user, user_page, kernel_page] = core::array::from_fn(|_| self.page());
        self.map(kernel, USER_CODE, user_page);
        self.map(user, USER_CODE, user_page);
        self.map(kernel, KERNEL_CODE, kernel_page);
        Pair { kernel, user, user_page, kernel_page }
    }
}

/// The two roots of a process under KPTI.
#[derive(Clone, Copy, Debug)]
struct Pair {
    /// Maps everything.
    kernel: u64,
    /// Maps user space only.
    user: u64,
    user_page: u64,
    kernel_page: u64,
}

/// What a vCPU runs: KPTI processes, the two roots of each in turn.
#[derive(Clone, Debug)]
pub struct Route {
    pairs: Vec<Pair>,
    /// User and kernel root of each process, in the order in which they are loaded.
    pub roots: Vec<u64>,
}

impl Route {
    fn new(pairs: Vec<Pair>) -> Self {
        let roots = pairs.iter().flat_map(|pair| [pair.user, pair.kernel]).collect();
        Self { pairs, roots }
    }

    /// Runs the guest under every root, twice, so that all are known and have their entries; ends at the last root.
    pub fn warm_up(&self, cpu: &mut Cpu<'_>) {
        for _ in 0..2 {
            for (n, &root) in self.roots.iter().enumerate() {
                switch(cpu, root);
                check_translations(cpu, &self.pairs[n / 2]);
            }
        }
    }

    /// Checks a vCPU after whole rounds: CR3, the shadow page of its root, translations under every root.
    ///
    /// The reads are left out of what has been counted: look at the statistics first.
    pub fn check_after(&self, vm: &Vm, index: usize) {
        let last = *self.roots.last().expect("a route has roots");
        let root = {
            let mut cpu = vm.cpu(index).expect("the run is over");
            enter(&mut cpu);
            assert_eq!(cpu.regs().cr3, last, "vCPU {index}: CR3 after whole rounds");
            cpu.roots()[0].1
        };
        let pages = vm.shadow_pages().expect("the run is over");
        let page = pages.iter().find(|page| shadow_mmu::SpId::new(page.id).hpa().get() == root);
        assert_eq!(page.map(|page| page.gfn.gpa().get()), Some(last), "vCPU {index}: the root shadows its CR3");
        self.warm_up(&mut vm.cpu(index).expect("the run is over"));
    }
}

/// A machine under KPTI.
#[derive(Clone, Copy, Debug)]
pub struct Kpti {
    /// What a CR3 write does.
    pub policy: Policy,
    /// What the `mmu_lock` is.
    pub lock: LockKind,
    /// vCPUs.
    pub vcpus: usize,
    /// Processes of each.
    pub processes: usize,
    /// Whether all vCPUs run the same processes.
    pub shared: bool,
    /// Whether waits and holds of the lock are timed.
    pub lock_times: bool,
}

impl Kpti {
    /// One process on one vCPU, the default lock, nothing timed.
    pub fn new(policy: Policy) -> Self {
        Self { policy, lock: LockKind::default(), vcpus: 1, processes: 1, shared: false, lock_times: false }
    }

    /// The machine with its guest, and what each vCPU runs.
    pub fn build(self) -> (Vm, Vec<Route>) {
        let Self { policy, lock, vcpus, lock_times, .. } = self;
        let slots = vec![MemoryRegion::ram(Gpa::new(0), 16 << 20)];
        let vm = Vm::new(VmConfig { slots, vcpus, policy, lock, lock_times, ..VmConfig::default() });
        let vm = vm.expect("the configuration is valid");
        let mut tables = Tables::new(&vm, 0x10_0000);
        let mut routes: Vec<Route> = Vec::new();
        for _ in 0..vcpus {
            let first = routes.first().filter(|_| self.shared).cloned();
            routes.push(first.unwrap_or_else(|| Route::new((0..self.processes).map(|_| tables.process()).collect())));
        }
        (vm, routes)
    }
}

/// A CR3 write that must go well.
#[inline]
pub fn switch(cpu: &mut Cpu<'_>, cr3: u64) {
    let outcome = cpu.write_cr3(cr3);
    debug_assert_eq!(outcome, Ok(Outcome::Ok(0)));
}

/// A guest entry without an access.
#[inline]
pub fn enter(cpu: &mut Cpu<'_>) {
    let outcome = cpu.execute(&ENTER, &[]);
    debug_assert_eq!(outcome, Ok(Outcome::Ok(0)));
}

/// Checks what the current root translates against the tables as they were built.
fn check_translations(cpu: &mut Cpu<'_>, pair: &Pair) {
    let fetch = |cpu: &mut Cpu<'_>, gva, flags| cpu.access(gva, AccessKind::Fetch, flags).expect("paging is on");
    assert_eq!(fetch(cpu, USER_CODE, AccessFlags::USER), Outcome::Ok(pair.user_page));
    let kernel = fetch(cpu, KERNEL_CODE, AccessFlags::empty());
    if cpu.regs().cr3 == pair.kernel {
        assert_eq!(kernel, Outcome::Ok(pair.kernel_page));
    } else {
        assert!(matches!(kernel, Outcome::PageFault { .. }), "the user root maps no kernel code, got {kernel:?}");
    }
}

/// A machine whose root maps `pages` consecutive pages from gva 0 on to as many consecutive frames.
pub struct Flat {
    /// The machine, one vCPU, policy `lru:3`.
    pub vm: Vm,
    /// Its root.
    pub cr3: u64,
    /// Bytes of memory from gpa 0 on that hold the tables.
    pub table_bytes: u64,
    /// The gpa that gva 0 maps to.
    pub data: u64,
}

impl Flat {
    /// Builds it; nothing is shadowed yet.
    pub fn new(pages: u64) -> Self {
        Self::with_tlb(pages, VmConfig::default().tlb_entries)
    }

    /// The same with a TLB of this size.
    pub fn with_tlb(pages: u64, tlb_entries: usize) -> Self {
        let leaf_tables = pages.div_ceil(512);
        // Roots and inner tables below 1 MiB of them would do for any size here; then the leaf tables, then the data.
        let first_leaf_table = 0x10_0000;
        let data = first_leaf_table + leaf_tables * PAGE;
        let slots = vec![MemoryRegion::ram(Gpa::new(0), data + pages * PAGE)];
        let config = VmConfig { slots, tlb_entries, ..VmConfig::default() };
        let vm = Vm::new(config).expect("the configuration is valid");
        let mut tables = Tables::new(&vm, PAGE);
        let cr3 = tables.page();
        for table in 0..leaf_tables {
            let gva = table << 21;
            let pdpt = tables.below(cr3, gva >> 39 & 511);
            let directory = tables.below(pdpt, gva >> 30 & 511);
            let leaf_table = first_leaf_table + table * PAGE;
            tables.set(directory, gva >> 21 & 511, leaf_table);
            let entries = (table * 512..pages.min(table * 512 + 512)).map(|page| (data + page * PAGE) | USED);
            let bytes: Vec<u8> = entries.flat_map(u64::to_le_bytes).collect();
            vm.host_write(Gpa::new(leaf_table), &bytes).expect("tables are in memory");
        }
        Self { vm, cr3, table_bytes: data, data }
    }

    /// The gpa of a page.
    #[inline]
    pub const fn gpa(&self, page: u64) -> u64 {
        self.data + page * PAGE
    }
}

/// `k` roots that share everything below them.
pub fn many_roots(policy: Policy, k: u64) -> (Vm, Vec<u64>) {
    let (vm, routes) = Kpti::new(policy).build();
    let mut tables = Tables::new(&vm, 0x80_0000);
    let roots: Vec<u64> = (0..k).map(|_| tables.page()).collect();
    let mut word = [0; 8];
    vm.host_read(Gpa::new(routes[0].roots[1]), &mut word).expect("tables are in memory");
    for &root in &roots {
        vm.host_write(Gpa::new(root), &word).expect("tables are in memory");
    }
    (vm, roots)
}
