//! Plain data handed over by the raw locks: ThreadSanitizer has nothing to say of the shipped orders, and must report each
//! weakened one (`make tsan`).

use shadow_mmu_planted::{Plain, apart, race};
use shadow_mmu_sync::{
    AtomicBool, Backoff, Ordering,
    lock::{Grant, Handover, LockOrder, QueuedLock},
};

enum GrantRelaxed {}
impl LockOrder for GrantRelaxed {
    const OBSERVE_GRANT: Ordering = Ordering::Acquire;
    const GRANT: Ordering = Ordering::Relaxed;
}

enum ObserveRelaxed {}
impl LockOrder for ObserveRelaxed {
    const OBSERVE_GRANT: Ordering = Ordering::Relaxed;
    const GRANT: Ordering = Ordering::Release;
}

/// One holder writes, a later one reads. The flag only says who comes first: Relaxed, it orders nothing.
fn handed_over<O: LockOrder + Sync>(take: fn(&QueuedLock<O>) -> Grant) {
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

fn by_waiting<O: LockOrder>(lock: &QueuedLock<O>) -> Grant {
    lock.acquire().0
}

fn by_trying<O: LockOrder>(lock: &QueuedLock<O>) -> Grant {
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
