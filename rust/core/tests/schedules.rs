//! The stress under the deterministic scheduler: seeds that hold, mutants that are caught, failing schedules that fail again.
//!
//! `cargo test -p shadow-mmu --features scheduled,mutants --test schedules`, or `make schedules`.
#![cfg(all(feature = "scheduled", feature = "mutants"))]

#[path = "schedules/case.rs"]
mod case;

use std::{
    fs,
    path::PathBuf,
    time::{Duration, Instant},
};

use shadow_mmu::{LockKind, Mutant, Policy, stress::schedule::Strategy};

use self::case::{Case, Saved, shrunk};

/// Schedules tried on one mutant at most.
const BOUND: u64 = 400;

/// Rules whose absence only an unlucky interleaving shows, or that any shows.
const CAUGHT: [Mutant; 10] = [
    Mutant::NoRemoteFlush,
    Mutant::SyncWithoutFlush,
    Mutant::SyncWithoutProtect,
    Mutant::LinkDoesNotMark,
    Mutant::LinkWithoutSync,
    Mutant::MarkStopsEarly,
    Mutant::SkipSync,
    Mutant::TableStaysWritable,
    Mutant::InvlpgSkipsSync,
    Mutant::HostWriteUntracked,
];

/// The case of this number: strategies, policies and locks in turns.
fn case(number: u64, mutant: Mutant) -> Case {
    let policy = [Policy::Lru(3), Policy::Seed, Policy::Locked, Policy::Lru(1)][number as usize / 2 % 4];
    let lock = [LockKind::Queued, LockKind::Ticket, LockKind::Ttas][number as usize % 3];
    Case { vcpus: 2 + usize::from(number % 5 == 4), policy, lock, mutant, seed: number, steps: 60 }
}

fn strategy(number: u64) -> Strategy {
    if number.is_multiple_of(2) {
        Strategy::Random { seed: number, one_in: [4, 16, 64][number as usize / 2 % 3] }
    } else {
        Strategy::Pct { seed: number, changes: 3 + number as u32 % 5, length: 60_000 }
    }
}

/// How long the right build is tried: `SCHEDULES_SECONDS`, or a little.
fn patience() -> Duration {
    let seconds = std::env::var("SCHEDULES_SECONDS").ok().and_then(|text| text.parse().ok()).unwrap_or(3.0);
    Duration::from_secs_f64(seconds)
}

#[test]
fn every_schedule_holds_on_the_machine_as_it_is() {
    let began = Instant::now();
    let (mut number, mut points) = (0, 0);
    while number < 12 || began.elapsed() < patience() {
        let (found, trace) = case(number, Mutant::None).run(&strategy(number));
        assert_eq!(found, None, "case {number}");
        assert!(!trace.exhausted, "case {number} does not end");
        points += trace.points;
        number += 1;
    }
    eprintln!("{number} schedules of {points} points in all, {:.1?}", began.elapsed());
}

#[test]
fn the_same_seed_twice_is_the_same_trace() {
    for number in 0..4 {
        let [one, again] = [0, 0].map(|_| case(number, Mutant::None).run(&strategy(number)).1);
        assert_eq!(one.hash(), again.hash(), "case {number}");
        assert!(!one.choices.is_empty() && one.points > 1000, "case {number}: {} points", one.points);
    }
}

#[test]
fn each_mutant_is_caught_and_its_schedule_saved_fails_again_in_the_same_way() {
    for mutant in CAUGHT {
        let began = Instant::now();
        let caught = (0..BOUND).find_map(|number| {
            let case = case(number, mutant);
            let (found, trace) = case.run(&strategy(number));
            found.map(|found| (number, Saved { case, choices: trace.choices.clone(), found }, trace))
        });
        let (number, saved, trace) = caught.unwrap_or_else(|| panic!("{mutant:?} was not caught in {BOUND} schedules"));
        eprintln!("{mutant:?}: schedule {number}, {:.1?}: {}", began.elapsed(), saved.found);
        let path = std::env::temp_dir().join(format!("shadow-mmu-{}-{mutant:?}.json", std::process::id()));
        fs::write(&path, saved.to_json()).unwrap();
        let loaded = Saved::from_json(&fs::read_to_string(&path).unwrap()).unwrap();
        fs::remove_file(&path).unwrap();
        assert_eq!(loaded, saved);
        let (found, replayed) = loaded.case.run(&Strategy::Replay(loaded.choices));
        assert_eq!((found, replayed.diverged), (Some(saved.found), None), "{mutant:?}");
        assert_eq!(replayed.hash(), trace.hash(), "{mutant:?}");
    }
}

fn regressions() -> Vec<(PathBuf, Saved)> {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../tests/regressions/schedules");
    let mut paths: Vec<_> = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    paths
        .into_iter()
        .map(|path| (path.clone(), Saved::from_json(&fs::read_to_string(&path).unwrap()).unwrap()))
        .collect()
}

/// Plays a kept schedule: it must fail as it did, choice by choice, and hold without its mutant. What it does instead.
fn replayed(saved: &Saved) -> Result<(), String> {
    let strategy = Strategy::Replay(saved.choices.clone());
    let (found, trace) = saved.case.run(&strategy);
    if (found.as_ref(), trace.diverged) != (Some(&saved.found), None) {
        return Err(format!("found {found:?}, diverged at {:?}, expected {:?}", trace.diverged, saved.found));
    }
    let right = Case { mutant: Mutant::None, ..saved.case };
    right.run(&strategy).0.map_or(Ok(()), |found| Err(format!("without its mutant: {found}")))
}

#[test]
fn kept_schedules_fail_with_their_mutant_and_hold_without_it() {
    let kept = regressions();
    assert!(kept.len() >= 3);
    for (path, saved) in kept {
        assert_eq!(replayed(&saved), Ok(()), "{}", path.display());
    }
}

#[test]
fn a_file_of_another_version_or_a_broken_one_says_what_was_expected() {
    let (_, saved) = regressions().swap_remove(0);
    let text = saved.to_json();
    for (old, new, expected) in [
        ("\"version\": 1", "\"version\": 9", "version 9, expected 1"),
        ("shadow-mmu schedule", "something else", "expected format"),
        ("\"steps\"", "\"stops\"", "steps"),
        ("{", "", "expected"),
    ] {
        assert!(text.contains(old), "{old}");
        let error = Saved::from_json(&text.replacen(old, new, 1)).unwrap_err();
        assert!(error.contains(expected), "{error}");
    }
}

/// How long one schedule is made smaller.
const SHRINKING: Duration = Duration::from_mins(1);

/// Finds and shrinks a failing schedule of each mutant whose kept one no longer replays, for `tests/regressions/schedules`; run by
/// hand.
#[test]
#[ignore = "writes the files that the test above reads"]
fn write_shrunk_schedules() {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../tests/regressions/schedules");
    let kept: Vec<_> =
        regressions().into_iter().map(|(_, saved)| saved).filter(|one| replayed(one) == Ok(())).collect();
    for mutant in CAUGHT.into_iter().filter(|&one| kept.iter().all(|saved| saved.case.mutant != one)) {
        for number in 0..BOUND {
            let case = case(number, mutant);
            let (found, trace) = case.run(&strategy(number));
            // Where an access makes no progress a run takes seconds, and shrinking it hours.
            if found.as_ref().is_some_and(|found| found.starts_with("liveness")) {
                continue;
            }
            // Some mutants fail under any schedule: those are no regressions of an interleaving.
            if found.is_none() || case.run(&Strategy::Replay(Vec::new())).0.is_some() {
                continue;
            }
            let small = shrunk(case, trace.choices, Instant::now() + SHRINKING);
            eprintln!("{mutant:?}: {} choices, {} steps: {}", small.choices.len(), small.case.steps, small.found);
            fs::write(folder.join(format!("{}.json", small.case.mutant_name())), small.to_json()).unwrap();
            break;
        }
    }
}
