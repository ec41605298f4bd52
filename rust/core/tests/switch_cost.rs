//! What a fast CR3 switch costs beside the locked one, as counts and a generous ratio: never a time.
//!
//! The figures themselves come from `make bench` (docs/performance.md).

use std::time::Duration;

use nix::time::{ClockId, clock_gettime};
use shadow_mmu::{AccessFlags, AccessKind, Gpa, Gva, MemoryRegion, Op, OpKind, Outcome, Policy, Vm, VmConfig};

const KERNEL: u64 = 0x10_0000;
const USER: u64 = 0x10_8000;
const SWITCHES: u64 = 10_000;
const ROUNDS: u64 = 9;

fn vm(policy: Policy) -> Vm {
    let vm = Vm::new(VmConfig { slots: vec![MemoryRegion::ram(Gpa::new(0), 4 << 20)], policy, ..VmConfig::default() })
        .unwrap();
    for root in [KERNEL, USER] {
        for level in 0..4 {
            let entry = (root + (level + 1) * 0x1000) | 0x67;
            vm.host_write(Gpa::new(root + level * 0x1000), &entry.to_le_bytes()).unwrap();
        }
    }
    let mut cpu = vm.cpu(0).unwrap();
    for cr3 in [USER, KERNEL, USER, KERNEL] {
        assert_eq!(cpu.write_cr3(cr3), Ok(Outcome::Ok(0)));
        let fetched = cpu.access(Gva::new(0), AccessKind::Fetch, AccessFlags::empty());
        assert_eq!(fetched, Ok(Outcome::Ok(cr3 + 0x4000)));
    }
    drop(cpu);
    vm
}

/// CPU time of the calling thread.
fn thread_cpu() -> Duration {
    clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).unwrap().into()
}

/// Switches to and fro, each write followed by a guest entry; the CPU time of it.
fn ping_pong(vm: &Vm) -> Duration {
    let mut cpu = vm.cpu(0).unwrap();
    let began = thread_cpu();
    for n in 0..SWITCHES {
        assert_eq!(cpu.write_cr3(if n % 2 == 0 { USER } else { KERNEL }), Ok(Outcome::Ok(0)));
        assert_eq!(cpu.execute(&Op::new(OpKind::SyncTlb, 0), &[]), Ok(Outcome::Ok(0)));
    }
    thread_cpu().saturating_sub(began)
}

/// Acquisitions of the `mmu_lock` and lock-free CR3 writes so far.
fn counted(vm: &Vm) -> [u64; 2] {
    let total = vm.stats().unwrap().total;
    [total.lock.total(), total.cr3.lockless]
}

#[test]
fn e001_fast_switches_take_no_lock_and_locked_ones_cost_twice_as_much_at_least() {
    let machines: Vec<Vm> = [Policy::Seed, Policy::Locked].into_iter().map(vm).collect();
    let before = [0, 1].map(|at| counted(&machines[at]));
    let mut best = [Duration::MAX; 2];
    for _ in 0..ROUNDS {
        for (vm, best) in machines.iter().zip(&mut best) {
            *best = ping_pong(vm).min(*best);
        }
    }
    let after = [0, 1].map(|at| counted(&machines[at]));
    let [fast, locked] = [0, 1].map(|at| [0, 1].map(|what| after[at][what] - before[at][what]));
    assert_eq!(fast, [0, ROUNDS * SWITCHES], "acquisitions and lock-free writes under `seed`");
    // free_roots, alloc_root, sync_roots (A.1).
    assert_eq!(locked, [3 * ROUNDS * SWITCHES, 0], "acquisitions and lock-free writes under `locked`");
    assert!(best[1] >= 2 * best[0], "fast and locked: {best:?} for {SWITCHES} switches");
}
