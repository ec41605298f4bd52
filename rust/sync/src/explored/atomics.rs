//! The atomics of a checked build: names of words whose values are in the checker's graph.

use core::{fmt, panic::Location};

use super::{
    event::{Half, Word},
    runner,
};
use crate::Ordering;

/// As [`core::hint::spin_loop`]: the thread waits for another.
#[track_caller]
pub fn spin_loop() {
    runner::pause(Location::caller());
}

/// As [`std::thread::yield_now`]: the thread waits for another.
#[track_caller]
pub fn yield_now() {
    runner::pause(Location::caller());
}

/// As [`core::sync::atomic::fence`].
///
/// # Panics
/// If `order` is Relaxed.
#[track_caller]
pub fn fence(order: Ordering) {
    assert_ne!(order, Ordering::Relaxed, "there is no such thing as a relaxed fence");
    runner::fence(order, Location::caller());
}

/// What a failed compare-exchange or a load may be.
fn check_load(order: Ordering) {
    assert!(!matches!(order, Ordering::Release | Ordering::AcqRel), "a load cannot be {order:?}");
}

macro_rules! atomic {
    ($name:ident, $value:ty, $from:expr, $into:expr) => {
        #[doc = concat!("As [`core::sync::atomic::", stringify!($name), "`]. To be made before the threads begin.")]
        pub struct $name(Word);

        #[allow(missing_docs, reason = "the methods are those of the standard type")]
        #[allow(clippy::must_use_candidate, reason = "as the standard type")]
        impl $name {
            #[track_caller]
            pub fn new(value: $value) -> Self {
                Self(runner::word($into(value), Location::caller()))
            }

            #[track_caller]
            pub fn load(&self, order: Ordering) -> $value {
                check_load(order);
                $from(runner::read(self.0, Some(order), Half::No, Location::caller()))
            }

            #[track_caller]
            pub fn store(&self, value: $value, order: Ordering) {
                assert!(!matches!(order, Ordering::Acquire | Ordering::AcqRel), "a store cannot be {order:?}");
                runner::write(self.0, $into(value), Some(order), false, Location::caller());
            }

            fn modify(
                &self,
                order: Ordering,
                at: &'static Location<'static>,
                new: impl FnOnce($value) -> $value,
            ) -> $value {
                let old = $from(runner::read(self.0, Some(order), Half::Always, at));
                runner::write(self.0, $into(new(old)), Some(order), true, at);
                old
            }

            #[track_caller]
            pub fn swap(&self, value: $value, order: Ordering) -> $value {
                self.modify(order, Location::caller(), |_| value)
            }

            #[track_caller]
            pub fn fetch_and(&self, value: $value, order: Ordering) -> $value {
                self.modify(order, Location::caller(), |old| old & value)
            }

            #[track_caller]
            pub fn fetch_or(&self, value: $value, order: Ordering) -> $value {
                self.modify(order, Location::caller(), |old| old | value)
            }

            #[track_caller]
            pub fn compare_exchange(
                &self,
                current: $value,
                new: $value,
                success: Ordering,
                failure: Ordering,
            ) -> Result<$value, $value> {
                check_load(failure);
                let (expected, at) = ($into(current), Location::caller());
                let half = Half::If { expected, otherwise: failure };
                let old = runner::read(self.0, Some(success), half, at);
                if old != expected {
                    return Err($from(old));
                }
                runner::write(self.0, $into(new), Some(success), true, at);
                Ok(current)
            }

            /// It does not fail without a reason here: a caller that retries does the same again.
            #[track_caller]
            pub fn compare_exchange_weak(
                &self,
                current: $value,
                new: $value,
                success: Ordering,
                failure: Ordering,
            ) -> Result<$value, $value> {
                self.compare_exchange(current, new, success, failure)
            }
        }

        impl Default for $name {
            #[track_caller]
            fn default() -> Self {
                Self::new(<$value>::default())
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "(word {})"), self.0)
            }
        }
    };
}

macro_rules! arithmetic {
    ($name:ident, $value:ty) => {
        #[allow(missing_docs, reason = "the methods are those of the standard type")]
        impl $name {
            #[track_caller]
            pub fn fetch_add(&self, value: $value, order: Ordering) -> $value {
                self.modify(order, Location::caller(), |old| old.wrapping_add(value))
            }

            #[track_caller]
            pub fn fetch_sub(&self, value: $value, order: Ordering) -> $value {
                self.modify(order, Location::caller(), |old| old.wrapping_sub(value))
            }
        }
    };
}

atomic!(AtomicBool, bool, |value| value != 0, u64::from);
atomic!(AtomicU32, u32, |value| value as u32, u64::from);
atomic!(AtomicU64, u64, core::convert::identity, core::convert::identity);
arithmetic!(AtomicU32, u32);
arithmetic!(AtomicU64, u64);
