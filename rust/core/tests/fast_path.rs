//! What a clean fast switch touches, counted by the sync facade (`cargo test --features count-sync`).
//!
//! The atomics of the core are those that other vCPUs can reach; a vCPU's own state has none. So no store and no
//! read-modify-write of the facade means none to a line that another vCPU reads.
#![cfg(feature = "count-sync")]

use shadow_mmu::{
    AccessFlags, AccessKind, Cpu, Gpa, Gva, LockKind, MemoryRegion, Op, OpKind, Outcome, PaeRootPolicy, Policy, Vm,
    VmConfig,
};
use shadow_mmu_sync::count::{self, Counts};

const KERNEL: u64 = 0x10_0000;
const USER: u64 = 0x10_8000;

fn vm(policy: Policy, lock: LockKind) -> Vm {
    let config = VmConfig {
        slots: vec![MemoryRegion::ram(Gpa::new(0), 4 << 20)],
        vcpus: 2,
        policy,
        lock,
        ..VmConfig::default()
    };
    let vm = Vm::new(config).unwrap();
    for root in [KERNEL, USER] {
        for level in 0..4 {
            let entry = (root + (level + 1) * 0x1000) | 0x67;
            vm.host_write(Gpa::new(root + level * 0x1000), &entry.to_le_bytes()).unwrap();
        }
    }
    vm
}

fn switch_and_fetch(cpu: &mut Cpu<'_>, cr3: u64) {
    assert_eq!(cpu.write_cr3(cr3), Ok(Outcome::Ok(0)));
    assert!(matches!(cpu.access(Gva::new(0), AccessKind::Fetch, AccessFlags::empty()), Ok(Outcome::Ok(_))));
}

/// The counts of one CR3 write once both roots are known.
fn counted_switch(policy: Policy, lock: LockKind) -> Counts {
    let vm = vm(policy, lock);
    let mut cpu = vm.cpu(0).unwrap();
    for cr3 in [KERNEL, USER, KERNEL, USER] {
        switch_and_fetch(&mut cpu, cr3);
    }
    count::reset();
    let outcome = cpu.write_cr3(KERNEL);
    let counts = count::snapshot();
    assert_eq!(outcome, Ok(Outcome::Ok(0)));
    counts
}

#[test]
fn e001_a_clean_fast_switch_has_no_lock_no_rmw_and_no_store() {
    for policy in [Policy::Seed, Policy::Lru(1), Policy::Lru(3), Policy::Lru(16)] {
        for (_, lock) in LockKind::ALL {
            let counts = counted_switch(policy, lock);
            assert_eq!((counts.locks, counts.rmws, counts.stores), (0, 0, 0), "{policy}, {lock}: {counts:?}");
            assert!(counts.loads >= 1, "{policy}, {lock}: the root was looked at: {counts:?}");
        }
    }
}

/// A guest without long mode: a page directory at `root + 0x1000` and a table behind it; `root` holds one PDPTR. Of 32-bit paging
/// the same words are two tables of a directory at `root + 0x1000`.
fn narrow_vm(policy: Policy, pae_roots: PaeRootPolicy, cr4: u64) -> Vm {
    let slots = vec![MemoryRegion::ram(Gpa::new(0), 4 << 20)];
    let vm = Vm::new(VmConfig { slots, vcpus: 2, policy, pae_roots, ..VmConfig::default() }).unwrap();
    for root in [KERNEL, USER] {
        for (at, entry) in [(root, root + 0x1001), (root + 0x1000, root + 0x2067), (root + 0x2000, 0x3067)] {
            vm.host_write(Gpa::new(at), &entry.to_le_bytes()).unwrap();
        }
    }
    for (kind, addr) in [(OpKind::WriteCr4, cr4), (OpKind::WriteEfer, 0x800)] {
        let op = Op { flags: Op::HOST, ..Op::new(kind, addr) };
        assert_eq!(vm.cpu(0).unwrap().execute(&op, &[]), Ok(Outcome::Ok(0)));
    }
    vm
}

/// The counts of one CR3 write, and of the guest entry after it, once both roots are known.
fn counted_narrow_switch(policy: Policy, pae_roots: PaeRootPolicy, cr4: u64) -> [Counts; 2] {
    let vm = narrow_vm(policy, pae_roots, cr4);
    let mut cpu = vm.cpu(0).unwrap();
    let directory = if cr4 & 0x20 == 0 { 0x1000 } else { 0 };
    for cr3 in [KERNEL, USER, KERNEL, USER] {
        switch_and_fetch(&mut cpu, cr3 + directory);
    }
    count::reset();
    assert_eq!(cpu.write_cr3(KERNEL + directory), Ok(Outcome::Ok(0)));
    let switch = count::snapshot();
    count::reset();
    let enter = Op::new(OpKind::SyncTlb, 0);
    assert_eq!(cpu.execute(&enter, &[]), Ok(Outcome::Ok(0)));
    [switch, count::snapshot()]
}

#[test]
fn e017_with_cached_roots_a_clean_switch_of_a_pae_or_32_bit_guest_has_no_lock_no_rmw_and_no_store() {
    for policy in [Policy::Seed, Policy::Lru(1), Policy::Lru(3), Policy::Lru(16)] {
        for cr4 in [0x20, 0x10] {
            let [switch, entry] = counted_narrow_switch(policy, PaeRootPolicy::Cached, cr4);
            assert_eq!((switch.locks, switch.rmws, switch.stores), (0, 0, 0), "{policy}, CR4 {cr4:#x}: {switch:?}");
            assert!(switch.loads >= 1, "{policy}, CR4 {cr4:#x}: the pages of the root were looked at: {switch:?}");
            assert_eq!(entry.locks, 0, "{policy}, CR4 {cr4:#x}: {entry:?}");
            let [switch, entry] = counted_narrow_switch(policy, PaeRootPolicy::Uncached, cr4);
            assert_eq!((switch.locks, entry.locks), (1, 2), "{policy}, CR4 {cr4:#x}: free, load and sync");
        }
    }
}

#[test]
fn the_counting_build_sees_the_locks_of_a_slow_switch() {
    for (_, lock) in LockKind::ALL {
        let counts = counted_switch(Policy::Locked, lock);
        // The atomics of parking_lot are not the facade's.
        let own = !matches!(lock, LockKind::Mutex | LockKind::RwLock);
        assert!(counts.locks >= 1 && (counts.rmws >= 1) == own, "{lock}: {counts:?}");
    }
}

#[test]
fn e057_the_requests_of_a_clean_switch_take_no_lock_either() {
    let vm = vm(Policy::Lru(3), LockKind::Queued);
    let mut cpu = vm.cpu(0).unwrap();
    for cr3 in [KERNEL, USER, KERNEL] {
        switch_and_fetch(&mut cpu, cr3);
    }
    count::reset();
    switch_and_fetch(&mut cpu, USER);
    assert_eq!(count::snapshot().locks, 0);
}
