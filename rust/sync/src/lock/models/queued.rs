//! The queued lock.

use super::twins::queued::{
    EnqueueAcquire, EnqueueRelease, FollowRelaxed, GiveNodeRelaxed, LinkRelaxed, ReleaseRelaxed, TakeNodeRelaxed,
    TakeRelaxed,
};
use super::{
    FEWER, QueuedLock, RACE, breaks, exclusion, first_come_first_served, holds, holds_within, queueing, trying,
};
use crate::lock::queued::Handover;

type Lock<O = Handover> = QueuedLock<O>;

#[test]
fn excludes_and_publishes() {
    holds("P9-queued exclusion", exclusion::<Lock>);
}

#[test]
fn each_waiter_gets_it() {
    holds("P9-queued waiters", queueing::<Lock, 2, 1>);
}

#[test]
fn a_waiter_without_a_node_gets_it_too() {
    holds_within(FEWER, "P9-queued more waiters than nodes", queueing::<QueuedLock<Handover, 1>, 2, 1>);
}

#[test]
fn nodes_are_used_again() {
    holds_within(FEWER, "P9-queued nodes again", queueing::<Lock, 2, 2>);
}

#[test]
fn try_lock_excludes_and_publishes() {
    holds("P9-queued try", trying::<Lock>);
}

#[test]
fn grants_follow_the_order_of_the_requests() {
    holds("P9-queued order", || first_come_first_served::<Lock>(|lock| lock.tail() != 0));
}

#[test]
fn twin_take_relaxed() {
    breaks("P9-queued take relaxed", RACE, exclusion::<Lock<TakeRelaxed>>);
}

#[test]
fn twin_release_relaxed() {
    breaks("P9-queued release relaxed", RACE, exclusion::<Lock<ReleaseRelaxed>>);
}

#[test]
fn twin_try_lock_take_relaxed() {
    breaks("P9-queued try take relaxed", RACE, trying::<Lock<TakeRelaxed>>);
}

#[test]
fn twin_enqueue_without_release() {
    breaks("P9-queued enqueue without release", RACE, queueing::<Lock<EnqueueAcquire>, 2, 1>);
}

#[test]
fn twin_enqueue_without_acquire() {
    breaks("P9-queued enqueue without acquire", RACE, queueing::<Lock<EnqueueRelease>, 2, 1>);
}

#[test]
fn twin_link_relaxed() {
    breaks("P9-queued link relaxed", RACE, queueing::<Lock<LinkRelaxed>, 2, 1>);
}

#[test]
fn twin_follow_relaxed() {
    breaks("P9-queued follow relaxed", RACE, queueing::<Lock<FollowRelaxed>, 2, 1>);
}

#[test]
fn twin_take_node_relaxed() {
    breaks("P9-queued take node relaxed", RACE, queueing::<Lock<TakeNodeRelaxed>, 2, 2>);
}

#[test]
fn twin_give_node_relaxed() {
    breaks("P9-queued give node relaxed", RACE, queueing::<Lock<GiveNodeRelaxed>, 2, 2>);
}
