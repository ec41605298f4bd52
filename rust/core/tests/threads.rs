//! vCPUs on threads of their own, through the public API: what each may see, and the audit when they rest.
//!
//! These run under ThreadSanitizer too (`make tsan`), each body on a thread of its own for the reason given at
//! [`apart`](shadow_mmu_planted::apart). They are short: the races are looked for again and again by `shadow-mmu stress`.

use std::thread;

use shadow_mmu::{
    AccessFlags, AccessKind, Control, Cpu, Gpa, Gva, LockKind, MemoryRegion, Op, OpKind, Outcome, Policy, RunOptions,
    Vm, VmConfig, run,
};
use shadow_mmu_planted::apart;

const VCPUS: usize = 3;
const ROUNDS: u64 = 300;
/// Present, writable, user, accessed, dirty.
const USED: u64 = 0x67;
/// Each policy, and each kind of lock.
const KINDS: [(Policy, LockKind); 9] = [
    (Policy::Locked, LockKind::Queued),
    (Policy::Seed, LockKind::Queued),
    (Policy::Lru(1), LockKind::Queued),
    (Policy::Lru(3), LockKind::Queued),
    (Policy::Lru(3), LockKind::Ticket),
    (Policy::Lru(3), LockKind::Ttas),
    (Policy::Seed, LockKind::Mutex),
    (Policy::Locked, LockKind::RwLock),
    (Policy::Lru(3), LockKind::RwLock),
];

/// Two roots over the same tables, so that what one vCPU changes is under the root of every other.
///
/// | gva | leads to |
/// |---|---|
/// | [`PAGES`] + n pages | [`FRAMES`] + n pages, by entry n of [`TABLE`] |
/// | [`WINDOW`] | [`TABLE`] itself, for the guest to write |
/// | [`WORDS`] | [`WORDS_AT`], for signals and results |
const ROOTS: [u64; 2] = [0x10_0000, 0x10_1000];
const TABLE: u64 = 0x10_4000;
const PAGES: u64 = 0;
const WINDOW: u64 = 0x20_0000;
const WORDS: u64 = 0x20_1000;
const WORDS_AT: u64 = 0x12_0000;
const FRAMES: u64 = 0x80_0000;
const SIGNAL: u64 = WORDS;

fn poke(vm: &Vm, gpa: u64, entry: u64) {
    vm.host_write(Gpa::new(gpa), &entry.to_le_bytes()).unwrap();
}

fn peek(vm: &Vm, gpa: u64) -> u64 {
    let mut word = [0; 8];
    vm.host_read(Gpa::new(gpa), &mut word).unwrap();
    u64::from_le_bytes(word)
}

fn machine((policy, lock): (Policy, LockKind), tlb_entries: usize) -> Vm {
    let slots = vec![MemoryRegion::ram(Gpa::new(0), 16 << 20)];
    let vm = Vm::new(VmConfig { slots, vcpus: VCPUS, policy, lock, tlb_entries, ..VmConfig::default() }).unwrap();
    let [pointers, directory, second] = [0x10_2000, 0x10_3000, 0x10_5000];
    for root in ROOTS {
        poke(&vm, root, pointers | USED);
    }
    poke(&vm, pointers, directory | USED);
    poke(&vm, directory, TABLE | USED);
    poke(&vm, directory + 8, second | USED);
    for page in 0..512 {
        poke(&vm, TABLE + page * 8, frame(page) | USED);
    }
    poke(&vm, second, TABLE | USED);
    poke(&vm, second + 8, WORDS_AT | USED);
    vm
}

const fn frame(page: u64) -> u64 {
    FRAMES + (page << 12)
}

fn read(cpu: &mut Cpu<'_>, gva: u64) -> u64 {
    match cpu.access(Gva::new(gva), AccessKind::Read, AccessFlags::USER) {
        Ok(Outcome::Ok(gpa)) => gpa,
        other => panic!("{gva:#x}: {other:?}"),
    }
}

fn load(cpu: &mut Cpu<'_>, gva: u64) -> u64 {
    match cpu.load(Gva::new(gva), 8, AccessFlags::USER) {
        Ok(Outcome::Ok(value)) => value,
        other => panic!("{gva:#x}: {other:?}"),
    }
}

fn store(cpu: &mut Cpu<'_>, gva: u64, value: u64) {
    let outcome = cpu.store(Gva::new(gva), value, 8, AccessFlags::USER);
    assert!(matches!(outcome, Ok(Outcome::Ok(_))), "{gva:#x}: {outcome:?}");
}

fn switch(cpu: &mut Cpu<'_>, round: u64) {
    assert_eq!(cpu.write_cr3(ROOTS[round as usize % 2]), Ok(Outcome::Ok(0)));
}

/// Drives every vCPU by `body(index, cpu)` on a thread of its own, all at once; then the audit must be clean.
fn on_every_vcpu(vm: &Vm, body: impl Fn(usize, &mut Cpu<'_>) + Sync) {
    thread::scope(|scope| {
        let body = &body;
        let threads: [_; VCPUS] = std::array::from_fn(|index| {
            scope.spawn(move || {
                let mut cpu = vm.cpu(index).unwrap();
                switch(&mut cpu, 0);
                body(index, &mut cpu);
            })
        });
        for thread in threads {
            thread.join().unwrap();
        }
    });
    assert_eq!(vm.audit(), Ok(Vec::new()));
}

#[test]
fn e001_vcpus_that_switch_at_once_reach_what_their_tables_say() {
    apart(|| {
        for kind in KINDS {
            let vm = machine(kind, 64);
            on_every_vcpu(&vm, |index, cpu| {
                for round in 0..ROUNDS {
                    switch(cpu, round + index as u64);
                    let page = (round * 7 + index as u64) % 512;
                    assert_eq!(read(cpu, PAGES + (page << 12)), frame(page), "{kind:?}");
                }
            });
        }
    });
}

/// What a vCPU does between the signal and the access.
#[derive(Clone, Copy, Debug)]
enum Flush {
    Invlpg,
    Switch,
}

/// One vCPU points a page to one frame after another and signals each; no other may find an older one once it has flushed.
fn published_edits(kind: (Policy, LockKind), tlb_entries: usize, flush: Flush) {
    let vm = machine(kind, tlb_entries);
    let page = 5;
    let seen_by = |index: usize| WORDS + index as u64 * 8;
    on_every_vcpu(&vm, |index, cpu| {
        if index == 0 {
            for edit in 1..=ROUNDS {
                store(cpu, WINDOW + page * 8, frame(edit) | USED);
                store(cpu, SIGNAL, edit);
                // Now and then everybody catches up: on a machine with few processors they would else not meet.
                while edit % 30 == 0 && (1..VCPUS).any(|other| load(cpu, seen_by(other)) < edit) {
                    thread::yield_now();
                }
            }
            return;
        }
        let mut edit = 0;
        let mut round = 0;
        while edit < ROUNDS {
            edit = load(cpu, SIGNAL);
            match flush {
                Flush::Invlpg => assert_eq!(cpu.invlpg(Gva::new(PAGES + (page << 12))), Ok(Outcome::Ok(0))),
                Flush::Switch => switch(cpu, round),
            }
            let found = read(cpu, PAGES + (page << 12));
            let oldest = if edit == 0 { frame(page).min(frame(1)) } else { frame(edit) };
            assert!(found >= oldest, "{kind:?}, {flush:?}: edit {edit} was signalled, {found:#x} was found");
            store(cpu, seen_by(index), edit);
            round += 1;
        }
    });
    assert_eq!(peek(&vm, TABLE + page * 8) & !0xfff, frame(ROUNDS));
}

#[test]
fn e051_who_flushes_after_a_signal_finds_what_was_stored_before_it() {
    apart(|| {
        for kind in KINDS {
            published_edits(kind, 64, Flush::Switch);
        }
        for kind in [KINDS[1], KINDS[3], KINDS[7]] {
            published_edits(kind, 64, Flush::Invlpg);
            published_edits(kind, 0, Flush::Invlpg);
        }
    });
}

#[test]
fn e075_zaps_and_writes_of_the_host_go_on_beside_accesses() {
    apart(|| {
        for kind in KINDS {
            let vm = machine(kind, 64);
            let (one, other) = (frame(9), frame(400));
            let word = |index: usize| WORDS + 0x100 + index as u64 * 8;
            thread::scope(|scope| {
                let host = scope.spawn(|| {
                    for round in 0..ROUNDS {
                        poke(&vm, TABLE + 9 * 8, if round % 2 == 0 { other } else { one } | USED);
                    }
                });
                on_every_vcpu(&vm, |index, cpu| {
                    for round in 0..ROUNDS {
                        if index == 0 && round % 4 == 0 {
                            let zap = Op::new(OpKind::ZapGfn, TABLE >> 12);
                            assert_eq!(cpu.execute(&zap, &[]), Ok(Outcome::Ok(0)));
                        }
                        if round % 8 == 0 {
                            switch(cpu, round / 8);
                        }
                        let found = read(cpu, PAGES + (9 << 12));
                        assert!(found == one || found == other, "{kind:?}: {found:#x}");
                        assert_eq!(read(cpu, PAGES + (10 << 12)), frame(10), "{kind:?}");
                        // Nobody else stores there: what was stored is what is found.
                        store(cpu, word(index), round);
                        assert_eq!(load(cpu, word(index)), round, "{kind:?}");
                    }
                });
                host.join().unwrap();
            });
            assert_eq!(vm.audit(), Ok(Vec::new()));
            for index in 0..VCPUS {
                assert_eq!(peek(&vm, word(index) - WORDS + WORDS_AT), ROUNDS - 1);
            }
        }
    });
}

#[test]
fn a_run_is_stopped_and_watched_from_another_thread() {
    apart(|| {
        let vm = machine(KINDS[3], 64);
        let program: Vec<Op> = (0..400_000)
            .flat_map(|round| [Op::new(OpKind::WriteCr3, ROOTS[round % 2]), Op::new(OpKind::Read, PAGES)])
            .collect();
        let control = Control::new();
        let report = thread::scope(|scope| {
            let control = &control;
            let watcher = scope.spawn(move || {
                while control.done() < 1000 {
                    thread::yield_now();
                }
                control.stop();
            });
            let options = RunOptions { outcomes: true, ..RunOptions::default() };
            let report = run(&vm, &[program.as_slice(); VCPUS], &[], options, control).unwrap();
            watcher.join().unwrap();
            report
        });
        assert!(report.interrupted);
        assert_eq!(report.faults, 0);
        let outcomes = report.outcomes.unwrap();
        for (done, outcomes) in report.ops_done.iter().zip(&outcomes) {
            assert_eq!(outcomes.len() as u64, *done);
            assert!(outcomes.iter().skip(1).step_by(2).all(|outcome| outcome.value == frame(0)));
        }
        assert!(report.ops_done.iter().sum::<u64>() >= 1000);
        assert_eq!(vm.audit(), Ok(Vec::new()));
    });
}

#[test]
fn e016_a_memslot_that_is_added_while_vcpus_run_is_there_for_all_of_them() {
    late_memory(MemoryRegion::ram);
}

#[test]
fn e107_a_read_only_memslot_that_is_added_while_vcpus_run_is_read_and_never_written() {
    late_memory(MemoryRegion::rom);
}

fn late_memory(region: fn(Gpa, u64) -> MemoryRegion) {
    apart(|| {
        let vm = machine(KINDS[3], 64);
        let (page, late) = (7, 64 << 20);
        poke(&vm, TABLE + page * 8, late | USED);
        thread::scope(|scope| {
            let host = scope.spawn(|| vm.add_memslot(region(Gpa::new(late), 1 << 20)).unwrap());
            on_every_vcpu(&vm, |index, cpu| {
                let gva = Gva::new(PAGES + (page << 12));
                loop {
                    match cpu.access(gva, AccessKind::Read, AccessFlags::USER) {
                        Ok(Outcome::Mmio(gpa)) if gpa == Gpa::new(late) => thread::yield_now(),
                        found => break assert_eq!(found, Ok(Outcome::Ok(late)), "vCPU {index}"),
                    }
                }
                let written =
                    if region(Gpa::new(0), 0).read_only { Outcome::Mmio(Gpa::new(late)) } else { Outcome::Ok(late) };
                for value in 0..500 {
                    assert_eq!(cpu.store(gva, value, 8, AccessFlags::USER), Ok(written), "vCPU {index}");
                    assert_eq!(cpu.access(gva, AccessKind::Fetch, AccessFlags::USER), Ok(Outcome::Ok(late)));
                }
            });
            host.join().unwrap();
        });
    });
}
