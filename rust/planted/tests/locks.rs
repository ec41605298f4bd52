//! Plain data handed over by the raw locks: ThreadSanitizer has nothing to say of the shipped orders, and must report each
//! weakened one (`make tsan`).
//!
//! The orders *inside* the queue (who is next, which node is free) carry atomics only: they are the models' business.

use shadow_mmu_planted::{Plain, apart, race};
use shadow_mmu_sync::{
    AtomicBool, Backoff, Ordering,
    lock::{Grant, QueuedLock, TicketLock, TtasLock, queued, ticket, ttas},
};

/// What the kinds have in common.
trait Raw: Sync {
    fn free() -> Self;
    fn acquire(&self) -> Grant;
    fn try_acquire(&self) -> Option<Grant>;
    fn release(&self, grant: Grant);
}

macro_rules! raw {
    ($lock:ident, $order:path) => {
        impl<O: $order + Sync> Raw for $lock<O> {
            fn free() -> Self {
                Self::new()
            }

            fn acquire(&self) -> Grant {
                $lock::acquire(self).0
            }

            fn try_acquire(&self) -> Option<Grant> {
                $lock::try_acquire(self)
            }

            fn release(&self, grant: Grant) {
                $lock::release(self, grant);
            }
        }
    };
}

raw!(QueuedLock, queued::QueuedOrder);
raw!(TicketLock, ticket::TicketOrder);
raw!(TtasLock, ttas::TtasOrder);

/// The shipped orders of the queue but for two.
macro_rules! queued_order {
    ($name:ident, $take:expr, $release:expr) => {
        enum $name {}
        impl queued::QueuedOrder for $name {
            const TAKE: Ordering = $take;
            const RELEASE: Ordering = $release;
            const ENQUEUE: Ordering = <queued::Handover as queued::QueuedOrder>::ENQUEUE;
            const LINK: Ordering = <queued::Handover as queued::QueuedOrder>::LINK;
            const FOLLOW: Ordering = <queued::Handover as queued::QueuedOrder>::FOLLOW;
            const TAKE_NODE: Ordering = <queued::Handover as queued::QueuedOrder>::TAKE_NODE;
            const GIVE_NODE: Ordering = <queued::Handover as queued::QueuedOrder>::GIVE_NODE;
        }
    };
}

queued_order!(QueuedTakeRelaxed, Ordering::Relaxed, Ordering::Release);
queued_order!(QueuedReleaseRelaxed, Ordering::Acquire, Ordering::Relaxed);

enum TicketObserveRelaxed {}
impl ticket::TicketOrder for TicketObserveRelaxed {
    const OBSERVE_SERVING: Ordering = Ordering::Relaxed;
    const SERVE_NEXT: Ordering = Ordering::Release;
}

enum TicketServeRelaxed {}
impl ticket::TicketOrder for TicketServeRelaxed {
    const OBSERVE_SERVING: Ordering = Ordering::Acquire;
    const SERVE_NEXT: Ordering = Ordering::Relaxed;
}

enum TtasSetRelaxed {}
impl ttas::TtasOrder for TtasSetRelaxed {
    const SET: Ordering = Ordering::Relaxed;
    const CLEAR: Ordering = Ordering::Release;
}

enum TtasClearRelaxed {}
impl ttas::TtasOrder for TtasClearRelaxed {
    const SET: Ordering = Ordering::Acquire;
    const CLEAR: Ordering = Ordering::Relaxed;
}

/// One holder writes, a later one reads. The flag only says who comes first: Relaxed, it orders nothing.
fn handed_over<L: Raw>(take: fn(&L) -> Grant) {
    apart(|| {
        let (lock, data, first_is_in) = (L::free(), Plain::new(), AtomicBool::new(false));
        let first = || {
            let grant = lock.acquire();
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

/// Many holders, more than the queue has nodes: none may meet another.
fn crowded<L: Raw>() {
    const THREADS: usize = queued::NODES + 6;
    const TURNS: u64 = 20;
    apart(|| {
        let (lock, data) = (L::free(), Plain::new());
        let body = || {
            for _ in 0..TURNS {
                let grant = lock.acquire();
                data.write(data.read() + 1);
                lock.release(grant);
            }
        };
        race([&body; THREADS]);
        assert_eq!(data.read(), THREADS as u64 * TURNS);
    });
}

fn by_trying<L: Raw>(lock: &L) -> Grant {
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
    handed_over::<QueuedLock>(Raw::acquire);
    handed_over::<QueuedLock>(by_trying);
}

#[test]
fn the_ticket_lock_hands_its_data_over() {
    handed_over::<TicketLock>(Raw::acquire);
    handed_over::<TicketLock>(by_trying);
}

#[test]
fn the_test_and_set_lock_hands_its_data_over() {
    handed_over::<TtasLock>(Raw::acquire);
    handed_over::<TtasLock>(by_trying);
}

#[test]
fn more_holders_than_nodes_never_meet() {
    crowded::<QueuedLock>();
    crowded::<TicketLock>();
    crowded::<TtasLock>();
}

#[test]
#[ignore = "a data race on purpose: make tsan"]
fn weak_queued_take_relaxed() {
    handed_over::<QueuedLock<QueuedTakeRelaxed>>(Raw::acquire);
}

#[test]
#[ignore = "a data race on purpose: make tsan"]
fn weak_queued_take_relaxed_try() {
    handed_over::<QueuedLock<QueuedTakeRelaxed>>(by_trying);
}

#[test]
#[ignore = "a data race on purpose: make tsan"]
fn weak_queued_release_relaxed() {
    handed_over::<QueuedLock<QueuedReleaseRelaxed>>(Raw::acquire);
}

#[test]
#[ignore = "a data race on purpose: make tsan"]
fn weak_ticket_observation_relaxed() {
    handed_over::<TicketLock<TicketObserveRelaxed>>(Raw::acquire);
}

#[test]
#[ignore = "a data race on purpose: make tsan"]
fn weak_ticket_observation_relaxed_try() {
    handed_over::<TicketLock<TicketObserveRelaxed>>(by_trying);
}

#[test]
#[ignore = "a data race on purpose: make tsan"]
fn weak_ticket_hand_over_relaxed() {
    handed_over::<TicketLock<TicketServeRelaxed>>(Raw::acquire);
}

#[test]
#[ignore = "a data race on purpose: make tsan"]
fn weak_ttas_set_relaxed() {
    handed_over::<TtasLock<TtasSetRelaxed>>(Raw::acquire);
}

#[test]
#[ignore = "a data race on purpose: make tsan"]
fn weak_ttas_set_relaxed_try() {
    handed_over::<TtasLock<TtasSetRelaxed>>(by_trying);
}

#[test]
#[ignore = "a data race on purpose: make tsan"]
fn weak_ttas_clear_relaxed() {
    handed_over::<TtasLock<TtasClearRelaxed>>(Raw::acquire);
}
