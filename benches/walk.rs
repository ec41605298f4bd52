//! Rows 7 and 11: looks at translations in every mode, one at a time and together, beside a walk of the same tables that checks
//! nothing but the P bits; and accesses through shadow tables, without a TLB and with one that has them all.
//!
//! Random addresses, each walk independent of the last, gpas into an array. Every gpa is checked before anything is timed.

mod support;

use core::hint::black_box;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use shadow_mmu::{AccessFlags, AccessKind, Gva, Outcome, Translation};
use support::{
    guest::Flat,
    measure::{Random, ThreadCpu, criterion},
    paged::{MODES, Mode, Paged},
};

/// Addresses of a sample.
const WALKS: usize = 1 << 18;
/// Pages of the 4-level guests: 148 KiB, 8 MiB, 64 MiB of tables.
const PAGES: [u64; 3] = [1 << 14, 1 << 20, 1 << 23];

fn gpa(translation: Translation) -> u64 {
    translation.map_or(u64::MAX, shadow_mmu::Gpa::get)
}

/// A contender: translates all addresses into the array.
type Walk<'a> = &'a dyn Fn(&mut [u64]);

/// The three contenders over one guest.
fn contest(c: &mut Criterion<ThreadCpu>, name: &str, guest: &Paged) {
    let gvas: Vec<Gva> = guest.addresses(WALKS);
    let expected: Vec<u64> = gvas.iter().map(|&gva| guest.expected(gva)).collect();
    let cpu = guest.vm.cpu(0).expect("nobody else drives the vCPU");
    let mut out = vec![0; WALKS];
    let naive = |out: &mut [u64]| {
        for (gva, out) in black_box(&gvas).iter().zip(out) {
            *out = guest.naive(*gva).unwrap_or(u64::MAX);
        }
    };
    let scalar = |out: &mut [u64]| {
        let translator = cpu.translator(AccessKind::Write, AccessFlags::USER);
        for (gva, out) in black_box(&gvas).iter().zip(out) {
            *out = gpa(translator.at(*gva));
        }
    };
    let batch = |out: &mut [u64]| {
        cpu.translator(AccessKind::Write, AccessFlags::USER)
            .each(black_box(&gvas).iter().copied(), |number, found| out[number] = gpa(found));
    };
    let contenders: [(&str, Walk<'_>); 3] = [("naive", &naive), ("scalar", &scalar), ("batch", &batch)];
    let mut group = c.benchmark_group(format!("walk/{name}"));
    group.throughput(Throughput::Elements(WALKS as u64));
    for (contender, walk) in contenders {
        out.fill(0);
        walk(&mut out);
        assert_eq!(out, expected, "{contender}: gpas");
        group.bench_function(BenchmarkId::from_parameter(contender), |b| b.iter(|| walk(&mut out)));
    }
    group.finish();
}

fn row_7(c: &mut Criterion<ThreadCpu>) {
    for mode in MODES {
        contest(c, mode.name, &Paged::new(mode, PAGES[0]));
    }
    for pages in &PAGES[1..] {
        let guest = Paged::new(Mode::named("4-level"), *pages);
        contest(c, &format!("4-level-{}MiB", guest.table_bytes() >> 20), &guest);
    }
}

/// Accesses to pages that were touched before: no exits, and the tables in cache.
fn row_11(c: &mut Criterion<ThreadCpu>) {
    const PAGES: u64 = 512;
    let mut group = c.benchmark_group("access");
    group.throughput(Throughput::Elements(WALKS as u64));
    for (name, entries) in [("tlb off", 0), ("tlb on", 1536)] {
        let guest = Flat::with_tlb(PAGES, entries);
        let mut random = Random(PAGES);
        let pages: Vec<u64> = (0..WALKS).map(|_| random.below(PAGES)).collect();
        let mut cpu = guest.vm.cpu(0).expect("nobody else drives the vCPU");
        assert_eq!(cpu.write_cr3(guest.cr3), Ok(Outcome::Ok(0)));
        let mut all = || {
            let mut wrong = 0;
            for &page in black_box(&pages) {
                let outcome = cpu.access(Gva::new(page << 12), AccessKind::Read, AccessFlags::USER);
                wrong += usize::from(outcome != Ok(Outcome::Ok(guest.gpa(page))));
            }
            wrong
        };
        assert_eq!(all(), 0, "pages that reached another gpa");
        group.bench_function(BenchmarkId::from_parameter(name), |b| b.iter(|| assert_eq!(all(), 0)));
        drop(cpu);
        let counted = guest.vm.stats().expect("nobody drives the vCPU").total.counters;
        assert_eq!(counted.pf_fixed, PAGES, "one fault a page, before anything was timed");
    }
    group.finish();
}

criterion_group! { name = looks; config = criterion(100, 400); targets = row_7, row_11 }
criterion_main!(looks);
