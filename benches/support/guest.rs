//! Guests with their page tables in guest memory, written from the host's side before anything is measured.

use shadow_mmu::{AccessFlags, AccessKind, Cpu, Gpa, Gva, Op, OpKind, Outcome, Policy, Vm, VmConfig};

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
}

/// The two roots of a process under KPTI.
#[derive(Clone, Copy, Debug)]
pub struct Pair {
    /// Maps everything.
    pub kernel: u64,
    /// Maps user space only.
    pub user: u64,
    user_page: u64,
    kernel_page: u64,
}

impl Pair {
    /// The root for switch number `n`; even numbers end in the kernel.
    #[inline]
    pub const fn root(&self, n: u64) -> u64 {
        if n & 1 == 0 { self.user } else { self.kernel }
    }
}

/// A machine whose vCPUs each have a pair, their own or one for all.
pub fn kpti(policy: Policy, vcpus: usize, shared: bool, lock_times: bool) -> (Vm, Vec<Pair>) {
    let config = VmConfig { slots: vec![(Gpa::new(0), 16 << 20)], vcpus, policy, lock_times, ..VmConfig::default() };
    let vm = Vm::new(config).expect("the configuration is valid");
    let mut tables = Tables::new(&vm, 0x10_0000);
    let mut pairs: Vec<Pair> = Vec::new();
    for _ in 0..vcpus {
        if let Some(&pair) = pairs.first().filter(|_| shared) {
            pairs.push(pair);
            continue;
        }
        let [kernel, user, user_page, kernel_page] = core::array::from_fn(|_| tables.page());
        tables.map(kernel, USER_CODE, user_page);
        tables.map(user, USER_CODE, user_page);
        tables.map(kernel, KERNEL_CODE, kernel_page);
        pairs.push(Pair { kernel, user, user_page, kernel_page });
    }
    (vm, pairs)
}

/// Runs the guest under both roots, so that both are known and have their entries; ends in the kernel.
pub fn warm_up(cpu: &mut Cpu<'_>, pair: &Pair) {
    for n in 0..4 {
        switch(cpu, pair.root(n));
        check_translations(cpu, pair);
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
pub fn check_translations(cpu: &mut Cpu<'_>, pair: &Pair) {
    let fetch = |cpu: &mut Cpu<'_>, gva, flags| cpu.access(gva, AccessKind::Fetch, flags).expect("paging is on");
    assert_eq!(fetch(cpu, USER_CODE, AccessFlags::USER), Outcome::Ok(pair.user_page));
    let kernel = fetch(cpu, KERNEL_CODE, AccessFlags::empty());
    if cpu.regs().cr3 == pair.kernel {
        assert_eq!(kernel, Outcome::Ok(pair.kernel_page));
    } else {
        assert!(matches!(kernel, Outcome::PageFault { .. }), "the user root maps no kernel code, got {kernel:?}");
    }
}

/// Checks a vCPU after a run that ended in the kernel: CR3, the shadow page of its root, translations under both.
///
/// `read` is left out of what has been counted: look at the statistics first.
pub fn check_after(vm: &Vm, index: usize, pair: &Pair) {
    let root = {
        let mut cpu = vm.cpu(index).expect("the run is over");
        enter(&mut cpu);
        assert_eq!(cpu.regs().cr3, pair.kernel, "vCPU {index}: CR3 after an even number of switches");
        cpu.roots()[0].1
    };
    let pages = vm.shadow_pages().expect("the run is over");
    let page = pages.iter().find(|page| shadow_mmu::SpId::new(page.id).hpa().get() == root);
    assert_eq!(page.map(|page| page.gfn.gpa().get()), Some(pair.kernel), "vCPU {index}: the root shadows its CR3");
    let mut cpu = vm.cpu(index).expect("the run is over");
    check_translations(&mut cpu, pair);
    switch(&mut cpu, pair.user);
    check_translations(&mut cpu, pair);
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
        let leaf_tables = pages.div_ceil(512);
        // Roots and inner tables below 1 MiB of them would do for any size here; then the leaf tables, then the data.
        let first_leaf_table = 0x10_0000;
        let data = first_leaf_table + leaf_tables * PAGE;
        let config = VmConfig { slots: vec![(Gpa::new(0), data + pages * PAGE)], ..VmConfig::default() };
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
    let (vm, pairs) = kpti(policy, 1, false, false);
    let mut tables = Tables::new(&vm, 0x80_0000);
    let roots: Vec<u64> = (0..k).map(|_| tables.page()).collect();
    let mut word = [0; 8];
    vm.host_read(Gpa::new(pairs[0].kernel), &mut word).expect("tables are in memory");
    for &root in &roots {
        vm.host_write(Gpa::new(root), &word).expect("tables are in memory");
    }
    (vm, roots)
}
