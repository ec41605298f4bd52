//! Walk = shadow: random operations over all five paging modes, with changes of mode, edits of tables and invalidations, and each access
//! through the shadow tables held against a fresh walk of the guest's own (docs/machine.md, 5 and 7).
//!
//! Native only, so that it can be long: ten million operations under `make soak`. The core and the model are compared elsewhere, after
//! each operation (tests/differential).

#[path = "self_check/machine.rs"]
mod machine;
#[path = "self_check/rom.rs"]
mod rom;
#[path = "self_check/scenes.rs"]
mod scenes;
#[path = "self_check/tables.rs"]
mod tables;
#[path = "self_check/walk.rs"]
mod walk;

use std::env;

use shadow_mmu::{CpuModel, LinkPolicy, MmuKind, PaeRootPolicy, Policy, VmConfig};

use self::{
    machine::{Figures, Machine},
    walk::Mode,
};

const EACH: u64 = 5_000;
const POLICIES: [Policy; 7] =
    [Policy::Locked, Policy::Seed, Policy::Lru(0), Policy::Lru(1), Policy::Lru(3), Policy::Lru(8), Policy::Lru(16)];
const TLB_ENTRIES: [usize; 5] = [0, 1, 12, 24, 1536];
const WIDTHS: [u8; 4] = [40, 46, 46, 52];

/// The machine of a seed: all of these meet each other, for their periods have no common factor.
fn config(seed: u64) -> VmConfig {
    let number = seed as usize;
    VmConfig {
        policy: POLICIES[number % POLICIES.len()],
        tlb_entries: TLB_ENTRIES[number % TLB_ENTRIES.len()],
        link: LinkPolicy::ALL[number % LinkPolicy::ALL.len()],
        pae_roots: if number % 11 < 5 { PaeRootPolicy::Cached } else { PaeRootPolicy::Uncached },
        mmu: if number % 13 < 2 { MmuKind::Tdp } else { MmuKind::Shadow },
        cpu: CpuModel {
            maxphyaddr: WIDTHS[number % WIDTHS.len()],
            gib_pages: number % 17 < 12,
            pse36: number % 19 < 12,
            pku: number % 23 < 14,
            ..CpuModel::default()
        },
        ..VmConfig::default()
    }
}

/// Runs so many operations in all, on one machine after another.
fn run(first_seed: u64, operations: u64, config: impl Fn(u64) -> VmConfig) -> Figures {
    let mut figures = Figures::default();
    let mut seed = first_seed;
    while figures.operations < operations {
        let mut machine = Machine::new(seed, &config(seed));
        machine.run(EACH.min(operations - figures.operations));
        figures.join(machine.figures);
        seed += 1;
    }
    figures
}

/// A run that never met what it is for would have shown nothing.
#[expect(clippy::print_stdout, reason = "the figures of a long run are its result")]
fn check(figures: &Figures) {
    println!("{figures:?}");
    assert!(figures.judged > figures.operations / 5, "{figures:?}");
    assert!(figures.judged_ok > figures.judged / 4, "{figures:?}");
    assert!(figures.judged_faults > figures.judged / 20, "{figures:?}");
    for rare in [figures.mmio, figures.of_rom, figures.stale, figures.refused, figures.denied_by_key] {
        assert!(rare > figures.operations / 2_000, "{figures:?}");
    }
    assert!(figures.lenient < figures.judged / 200, "{figures:?}");
    assert_eq!(figures.changes.len(), Mode::ALL.len() * (Mode::ALL.len() - 1), "{figures:?}");
}

#[test]
fn each_access_of_300_000_operations_over_all_modes_is_what_a_fresh_walk_gives() {
    check(&run(1, 300_000, config));
}

#[test]
#[ignore = "long without optimisation: `make soak`"]
fn each_access_of_ten_million_operations_over_all_modes_is_what_a_fresh_walk_gives() {
    let seed = env::var("SELF_CHECK_SEED").map_or(1_000, |seed| seed.parse().expect("SELF_CHECK_SEED: a number"));
    check(&run(seed, 10_000_000, config));
}

/// Rules that show on one thread, on tables that are this small.
#[cfg(feature = "mutants")]
#[test]
fn a_machine_with_one_rule_switched_off_is_found_out() {
    use shadow_mmu::Mutant;

    for mutant in [
        Mutant::SkipSync,
        Mutant::InvlpgKeepsTlb,
        Mutant::HostWriteUntracked,
        Mutant::ChildReuseIgnoresGfn,
        Mutant::ChildReuseIgnoresRole,
        Mutant::WalkKeepsWriteWhenClean,
        Mutant::SyncKeepsWriteWhenClean,
        Mutant::NoZapOnWrite,
        Mutant::AlterOneSpte,
        Mutant::LinkDoesNotMark,
        Mutant::TableStaysWritable,
        Mutant::LeafRightsOnly,
        Mutant::InvlpgSkipsSync,
        Mutant::FlushKeepsTlb,
    ] {
        let with = |seed| VmConfig { mutant, ..config(seed) };
        let found = std::panic::catch_unwind(|| run(1, 300_000, with));
        assert!(found.is_err(), "{mutant:?} was not found");
    }
}
