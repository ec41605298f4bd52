//! Rows 1 and 6: the CR3 switch on one vCPU, and the root cache when there are more roots than it holds.
//!
//! Every sample is checked: no acquisition of the `mmu_lock` where none may be, at least one a switch where one must be,
//! and as many writes counted as were made. A wrong count ends the run, and the table has no such row then.

mod support;

use core::hint::black_box;
use std::time::Duration;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use shadow_mmu::{Policy, Vm};
use support::{
    floor::{RootFlags, Switcher},
    guest::{self, enter, switch},
    measure::{ThreadCpu, criterion, thread_cpu, thread_cpu_since},
};

/// What a sample must have cost.
#[derive(Clone, Copy)]
enum Locks {
    None,
    OneOrMore,
}

/// Makes `writes` CR3 writes over `roots` in turn on vCPU 0, each followed by a guest entry if `entering`, and checks them.
fn timed(vm: &Vm, roots: &[u64], writes: u64, entering: bool, locks: Locks) -> Duration {
    let before = vm.stats().expect("nobody else drives the vCPU").total;
    let mut cpu = vm.cpu(0).expect("nobody else drives the vCPU");
    // Goes on where the last sample ended.
    let mut at = roots.iter().position(|&root| root == cpu.regs().cr3).map_or(0, |at| (at + 1) % roots.len());
    let began = thread_cpu();
    for _ in 0..writes {
        switch(&mut cpu, black_box(roots[at]));
        if entering {
            enter(&mut cpu);
        }
        at = if at + 1 == roots.len() { 0 } else { at + 1 };
    }
    let took = thread_cpu_since(began);
    drop(cpu);
    let after = vm.stats().expect("nobody else drives the vCPU").total;
    let taken = after.lock.total() - before.lock.total();
    assert_eq!(after.cr3.writes - before.cr3.writes, writes, "writes counted and made");
    assert!(after.tlb_full_flushes - before.tlb_full_flushes >= writes, "each write flushes the TLB");
    match locks {
        Locks::None => {
            assert_eq!(taken, 0, "acquisitions of the mmu_lock on the fast path");
            assert_eq!(after.cr3.lockless - before.cr3.lockless, writes, "every write was a hit");
        }
        Locks::OneOrMore => assert!(taken >= writes, "{taken} acquisitions of the mmu_lock in {writes} slow switches"),
    }
    took
}

fn row_1(c: &mut Criterion<ThreadCpu>) {
    let mut group = c.benchmark_group("switch");
    group.throughput(Throughput::Elements(1));
    let roots: [RootFlags; 2] = core::array::from_fn(|_| RootFlags::default());
    let mut vcpu = Switcher::new(0x1000, 0x2000);
    let mut next = 1;
    group.bench_function("floor", |b| {
        b.iter(|| {
            next ^= 1;
            assert!(vcpu.switch(black_box(&roots), black_box(0x2000 - 0x1000 * next)));
        });
    });
    let cases = [
        ("seed", Policy::Seed, false, Locks::None),
        ("seed+enter", Policy::Seed, true, Locks::None),
        ("lru3+enter", Policy::Lru(3), true, Locks::None),
        ("locked+enter", Policy::Locked, true, Locks::OneOrMore),
    ];
    for (name, policy, entering, locks) in cases {
        let (vm, routes) = guest::Kpti::new(policy).build();
        routes[0].warm_up(&mut vm.cpu(0).expect("nobody else drives the vCPU"));
        let roots = &routes[0].roots;
        group.bench_function(name, |b| b.iter_custom(|writes| timed(&vm, roots, writes, entering, locks)));
        routes[0].warm_up(&mut vm.cpu(0).expect("nobody else drives the vCPU"));
        assert_eq!(vm.audit().map(|found| found.len()), Ok(0));
    }
    group.finish();
}

fn row_6(c: &mut Criterion<ThreadCpu>) {
    let mut group = c.benchmark_group("roots");
    group.throughput(Throughput::Elements(1));
    for previous in [3, 11] {
        for k in 2..=12 {
            let (vm, roots) = guest::many_roots(Policy::Lru(previous), k);
            {
                let mut cpu = vm.cpu(0).expect("nobody else drives the vCPU");
                for &root in roots.iter().chain(&roots) {
                    switch(&mut cpu, root);
                    enter(&mut cpu);
                }
            }
            let locks = if k <= u64::from(previous) + 1 { Locks::None } else { Locks::OneOrMore };
            let id = BenchmarkId::new(format!("lru{previous}"), k);
            group.bench_function(id, |b| b.iter_custom(|writes| timed(&vm, &roots, writes, true, locks)));
            assert_eq!(vm.audit().map(|found| found.len()), Ok(0));
        }
    }
    group.finish();
}

criterion_group! { name = one; config = criterion(200, 600); targets = row_1 }
criterion_group! { name = many; config = criterion(50, 150); targets = row_6 }
criterion_main!(one, many);
