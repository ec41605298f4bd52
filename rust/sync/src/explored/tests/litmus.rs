//! Every case of the litmus catalogue: verdict and numbers of executions are those of the package's own explorer, which
//! was checked against `GenMC`, herd and the textbooks.

use super::{
    super::{FailureKind, Rule, Rules},
    programs::{Case, cases},
};

/// What differs from the other explorer's finding.
fn difference(case: &Case, rules: Rules) -> Option<String> {
    let (found, forbidden) = case.explore(rules);
    let bad = match &found.failure {
        Some(failure) => Some(match failure.kind {
            FailureKind::Assertion => "claim",
            FailureKind::Race => "race",
            FailureKind::Stuck => "stuck",
        }),
        None => forbidden.then_some("outcome"),
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

/// With a rule of the model broken, a case must differ: a suite that would not notice shows nothing.
#[test]
fn a_broken_rule_is_noticed() {
    let rules = [Rule::Coherence, Rule::Atomicity, Rule::ScFences, Rule::ReleaseSequences, Rule::FencesSynchronise];
    for rule in rules {
        let noticed = cases().iter().filter(|case| difference(case, Rules { broken: Some(rule) }).is_some()).count();
        assert!(noticed > 0, "{rule:?} may be broken unnoticed");
    }
}
