//! The test-and-test-and-set lock.

use super::twins::ttas::{ClearRelaxed, SetRelaxed};
use super::{RACE, TtasLock, breaks, exclusion, holds, queueing, trying};
use crate::lock::ttas::Handover;

type Lock<O = Handover> = TtasLock<O>;

#[test]
fn excludes_and_publishes() {
    holds("P9-ttas exclusion", exclusion::<Lock>);
}

#[test]
fn each_waiter_gets_it() {
    holds("P9-ttas waiters", queueing::<Lock, 1, 2>);
}

#[test]
fn try_lock_excludes_and_publishes() {
    holds("P9-ttas try", trying::<Lock>);
}

#[test]
fn twin_set_relaxed() {
    breaks("P9-ttas set relaxed", RACE, exclusion::<Lock<SetRelaxed>>);
}

#[test]
fn twin_clear_relaxed() {
    breaks("P9-ttas clear relaxed", RACE, exclusion::<Lock<ClearRelaxed>>);
}

#[test]
fn twin_try_lock_set_relaxed() {
    breaks("P9-ttas try set relaxed", RACE, trying::<Lock<SetRelaxed>>);
}
