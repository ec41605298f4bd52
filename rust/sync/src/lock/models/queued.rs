//! The queued lock.

use super::{
    FEWER, QueuedLock, RACE, breaks, exclusion, first_come_first_served, holds, holds_within, queueing, trying,
};
use crate::{
    Ordering,
    lock::queued::{Handover, QueuedOrder},
};

type Lock<O = Handover> = QueuedLock<O>;

/// The shipped orders but one.
macro_rules! weaker {
    ($(#[$doc:meta])* $name:ident: $weak:ident = $order:ident) => {
        $(#[$doc])*
        struct $name;
        impl QueuedOrder for $name {
            const TAKE: Ordering = weaker!(TAKE, $weak, $order);
            const RELEASE: Ordering = weaker!(RELEASE, $weak, $order);
            const ENQUEUE: Ordering = weaker!(ENQUEUE, $weak, $order);
            const LINK: Ordering = weaker!(LINK, $weak, $order);
            const FOLLOW: Ordering = weaker!(FOLLOW, $weak, $order);
            const TAKE_NODE: Ordering = weaker!(TAKE_NODE, $weak, $order);
            const GIVE_NODE: Ordering = weaker!(GIVE_NODE, $weak, $order);
        }
    };
    (TAKE, TAKE, $order:ident) => { Ordering::$order };
    (RELEASE, RELEASE, $order:ident) => { Ordering::$order };
    (ENQUEUE, ENQUEUE, $order:ident) => { Ordering::$order };
    (LINK, LINK, $order:ident) => { Ordering::$order };
    (FOLLOW, FOLLOW, $order:ident) => { Ordering::$order };
    (TAKE_NODE, TAKE_NODE, $order:ident) => { Ordering::$order };
    (GIVE_NODE, GIVE_NODE, $order:ident) => { Ordering::$order };
    ($name:ident, $weak:ident, $order:ident) => { Handover::$name };
}

weaker!(
    /// The holder need not see what earlier ones wrote.
    TakeRelaxed: TAKE = Relaxed
);
weaker!(
    /// The lock is seen free before what the holder wrote.
    ReleaseRelaxed: RELEASE = Relaxed
);
weaker!(
    /// The one behind may write into a node before its owner cleared it.
    EnqueueAcquire: ENQUEUE = Acquire
);
weaker!(
    /// The same, on the side of the one behind.
    EnqueueRelease: ENQUEUE = Release
);
weaker!(
    /// A node is given away before the write into it, and the one behind is made the front before it cleared its node.
    LinkRelaxed: LINK = Relaxed
);
weaker!(
    /// The same, on the side of the owner.
    FollowRelaxed: FOLLOW = Relaxed
);
weaker!(
    /// A node's next owner clears it before the end of its life before.
    TakeNodeRelaxed: TAKE_NODE = Relaxed
);
weaker!(
    /// The same, on the side of the one who gives it.
    GiveNodeRelaxed: GIVE_NODE = Relaxed
);

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
