//! Row 12: first touch of 10^3 to 10^6 pages, in order and at random, beside its floor over the same tables.
//!
//! A touch is a whole guest access: TLB miss, shadow walk, exit, guest walk, fault under the `mmu_lock`, and the access
//! again, which fills the TLB. The floor does a guest walk, takes the same kind of lock, walks its shadow tables and stores
//! an entry and a reverse mapping. Each sample starts from nothing; building the guest is not measured.

mod support;

use core::hint::black_box;
use std::time::Duration;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use shadow_mmu::{AccessFlags, AccessKind, Gva, Outcome};
use support::{
    floor::FaultFloor,
    guest::Flat,
    measure::{Random, ThreadCpu, criterion, thread_cpu, thread_cpu_since},
};

const PAGES: [u64; 4] = [1_000, 10_000, 100_000, 1_000_000];

/// Page numbers in the order in which they are touched.
fn order(pages: u64, random: bool) -> Vec<u32> {
    let mut order: Vec<u32> = (0..pages as u32).collect();
    if random {
        let mut source = Random(pages);
        for last in (1..order.len()).rev() {
            order.swap(last, source.below(last as u64 + 1) as usize);
        }
    }
    order
}

/// First touch through the machine, checked: each page reaches its gpa, by one fault each.
fn ours(order: &[u32]) -> Duration {
    let guest = Flat::new(order.len() as u64);
    let mut cpu = guest.vm.cpu(0).expect("nobody else drives the vCPU");
    assert_eq!(cpu.write_cr3(guest.cr3), Ok(Outcome::Ok(0)));
    let mut wrong = 0;
    let began = thread_cpu();
    for &page in order {
        let page = u64::from(page);
        let outcome = cpu.access(Gva::new(page << 12), AccessKind::Read, AccessFlags::USER);
        wrong += u64::from(outcome != Ok(Outcome::Ok(guest.gpa(page))));
    }
    let took = thread_cpu_since(began);
    drop(cpu);
    assert_eq!(wrong, 0, "pages that reached another gpa");
    let stats = guest.vm.stats().expect("nobody drives the vCPU");
    assert_eq!(stats.total.counters.pf_fixed, order.len() as u64, "one fault a page");
    took
}

/// The floor, checked in the same way.
fn floor(guest: &Flat, order: &[u32]) -> Duration {
    let floor = FaultFloor::new(guest, order.len() as u64);
    let mut wrong = 0;
    let began = thread_cpu();
    for &page in order {
        let page = u64::from(page);
        wrong += u64::from(black_box(&floor).fault(page << 12) != Some(guest.gpa(page)));
    }
    let took = thread_cpu_since(began);
    assert_eq!((wrong, floor.mapped()), (0, order.len()), "pages that reached another gpa; pages mapped");
    took
}

fn row_12(c: &mut Criterion<ThreadCpu>) {
    let mut group = c.benchmark_group("fault");
    for pages in PAGES {
        group.throughput(Throughput::Elements(pages));
        for (name, random) in [("sequential", false), ("random", true)] {
            let order = order(pages, random);
            let guest = Flat::new(pages);
            group.bench_function(BenchmarkId::new(format!("floor-{name}"), pages), |b| {
                b.iter_custom(|times| (0..times).map(|_| floor(&guest, &order)).sum());
            });
            group.bench_function(BenchmarkId::new(name, pages), |b| {
                b.iter_custom(|times| (0..times).map(|_| ours(&order)).sum());
            });
        }
    }
    group.finish();
}

criterion_group! { name = first_touch; config = criterion(100, 500); targets = row_12 }
criterion_main!(first_touch);
