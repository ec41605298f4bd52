//! Every case of the litmus catalogue: verdict and numbers of executions are those of the package's own explorer, which
//! was checked against `GenMC`, herd and the textbooks.

use super::{
    super::{FailureKind, Rule, Rules},
    programs::{Case, Waits, cases, more_cases},
};

/// What differs from the other explorer's finding.
fn difference(case: &Case, rules: Rules) -> Option<String> {
    let (found, states) = case.explore(rules, Waits::Awaited);
    let bad = match &found.failure {
        Some(failure) => Some(match failure.kind {
            FailureKind::Assertion => "claim",
            FailureKind::Race => "race",
            FailureKind::Stuck => "stuck",
        }),
        None => states.values().any(|&forbidden| forbidden).then_some("outcome"),
    };
    // A use after a free is a race or a false claim, whichever is met first.
    let one = |kind: Option<&str>| kind.map(|kind| if kind == "outcome" { "outcome" } else { "failure" });
    if one(bad) != one(case.expected()) {
        return Some(format!("{}: {bad:?}, expected {:?}", case.name(), case.expected()));
    }
    let counts = (found.executions, found.blocked);
    let expected = case.counts().filter(|&expected| expected != counts);
    expected.map(|expected| format!("{}: {counts:?} executions and blocked, expected {expected:?}", case.name()))
}

#[test]
fn every_case_has_the_verdict_and_the_executions_of_the_other_explorer() {
    let cases = cases();
    assert!(cases.len() >= 170, "{} cases", cases.len());
    let differences: Vec<_> = cases.iter().filter_map(|case| difference(case, Rules::RC11)).collect();
    assert!(differences.is_empty(), "{differences:#?}");
    let counted = cases.iter().filter(|case| case.counts().is_some()).count();
    assert!(counted >= 90, "only {counted} cases are counted");
}

/// Programs made by chance, if there are any: nothing is expected of them but that two explorers agree.
#[test]
#[allow(clippy::print_stdout, reason = "how many there were is what a reader of the run looks for")]
fn every_program_of_the_soak_has_the_executions_of_the_other_explorer() {
    let cases = more_cases();
    let differences: Vec<_> = cases.iter().filter_map(|case| difference(case, Rules::RC11)).collect();
    assert!(differences.is_empty(), "{} of {}: {differences:#?}", differences.len(), cases.len());
    println!("{} programs", cases.len());
}

/// A wait may be written in two ways, of which one is explored as one step and the other round by round.
#[test]
fn loops_that_wait_come_to_the_same_states_as_awaits() {
    let mut waiting = 0;
    for case in cases().iter().chain(&more_cases()) {
        let (found, states) = case.explore(Rules::RC11, Waits::Awaited);
        if case.waits() && found.failure.is_none() {
            let (looped, looped_states) = case.explore(Rules::RC11, Waits::Looped);
            assert!(looped.failure.is_none() && looped.executions >= found.executions, "{}", case.name());
            assert_eq!(states, looped_states, "{}", case.name());
            waiting += 1;
        }
    }
    assert!(waiting >= 10, "only {waiting} cases wait");
}

/// With a rule of the model broken, a case must differ: a suite that would not notice shows nothing.
#[test]
fn a_broken_rule_is_noticed() {
    let rules = [Rule::Coherence, Rule::Atomicity, Rule::ScFences, Rule::ReleaseSequences, Rule::FencesSynchronise];
    for rule in rules {
        let noticed = cases().iter().filter(|case| difference(case, Rules { broken: Some(rule) }).is_some()).count();
        assert!(noticed > 0, "{rule:?} may be broken unnoticed");
    }
}
