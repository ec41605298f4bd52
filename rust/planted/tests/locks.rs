//! Plain data handed over by the raw locks: ThreadSanitizer has nothing to say of the shipped orders, and must report each
//! weakened one (`make tsan`).

use shadow_mmu_planted::{Plain, apart, race};
use shadow_mmu_sync::{
    AtomicBool, Backoff, Ordering,
    lock::{
        Grant, QueuedLock,
        queued::{Handover, QueuedOrder},
    },
};

enum GrantRelaxed {}
impl QueuedOrder for GrantRelaxed {
    const TAKE: Ordering = Handover::TAKE;
    const RELEASE: Ordering = Ordering::Relaxed;
    const ENQUEUE: Ordering = Handover::ENQUEUE;
    const LINK: Ordering = Handover::LINK;
    const FOLLOW: Ordering = Handover::FOLLOW;
    const TAKE_NODE: Ordering = Handover::TAKE_NODE;
    const GIVE_NODE: Ordering = Handover::GIVE_NODE;
}

enum ObserveRelaxed {}
impl QueuedOrder for ObserveRelaxed {
    const TAKE: Ordering = Ordering::Relaxed;
    const RELEASE: Ordering = Handover::RELEASE;
    const ENQUEUE: Ordering = Handover::ENQUEUE;
    const LINK: Ordering = Handover::LINK;
    const FOLLOW: Ordering = Handover::FOLLOW;
    const TAKE_NODE: Ordering = Handover::TAKE_NODE;
    const GIVE_NODE: Ordering = Handover::GIVE_NODE;
}

/// One holder writes, a later one reads. The flag only says who comes first: Relaxed, it orders nothing.
fn handed_over<O: QueuedOrder + Sync>(take: fn(&QueuedLock<O>) -> Grant) {
    apart(|| {
        let (lock, data, first_is_in) = (QueuedLock::<O>::new(), Plain::new(), AtomicBool::new(false));
        let first = || {
            let (grant, _) = lock.acquire();
            first_is_in.store(true, Ordering::Relaxed);
            data.write(1);
            lock.release(grant);
        };
        let second = || {
            let mut backoff = Backoff::new();
            while !first_is_in.load(Ordering::Relaxed) {
                backoff.wait();
            }
            let grant = take(&lock);
            assert_eq!(data.read(), 1);
            lock.release(grant);
        };
        race([&first, &second]);
    });
}

fn by_waiting<O: QueuedOrder>(lock: &QueuedLock<O>) -> Grant {
    lock.acquire().0
}

fn by_trying<O: QueuedOrder>(lock: &QueuedLock<O>) -> Grant {
    let mut backoff = Backoff::new();
    loop {
        if let Some(grant) = lock.try_acquire() {
            return grant;
        }
        backoff.wait();
    }
}

#[test]
fn the_queued_lock_hands_its_data_over() {
    handed_over::<Handover>(by_waiting);
}

#[test]
fn the_queued_lock_hands_its_data_over_to_who_tries() {
    handed_over::<Handover>(by_trying);
}

#[test]
#[ignore = "a data race on purpose: make tsan"]
fn weak_queued_grant_relaxed() {
    handed_over::<GrantRelaxed>(by_waiting);
}

#[test]
#[ignore = "a data race on purpose: make tsan"]
fn weak_queued_observation_relaxed() {
    handed_over::<ObserveRelaxed>(by_waiting);
}

#[test]
#[ignore = "a data race on purpose: make tsan"]
fn weak_queued_try_lock_observation_relaxed() {
    handed_over::<ObserveRelaxed>(by_trying);
}
