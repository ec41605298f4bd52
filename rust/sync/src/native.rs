//! The atomics of a normal build: types of their own around those of `core`.
//!
//! Own types, not re-exports, so that clippy's `disallowed-types` can tell an atomic that came through
//! the facade from one that did not, and so that the counting build is the same code with its counters
//! switched on. The layout is that of `core`'s types; every method is inlined to one call of theirs.

#![allow(clippy::disallowed_types, clippy::disallowed_methods, reason = "this is the facade that the lint points to")]

use core::sync::atomic;

use bytemuck::Zeroable;

use super::Ordering;

/// As [`std::thread::yield_now`]; in a build with `scheduled` a thread that entered gives its turn away.
#[inline]
pub fn yield_now() {
    #[cfg(feature = "scheduled")]
    if super::schedule::wait() {
        return;
    }
    std::thread::yield_now();
}

/// Adds 1 to a counter of the calling thread; nothing without `count-sync`. A point of the schedule with `scheduled`.
macro_rules! count {
    ($what:ident) => {
        #[cfg(feature = "scheduled")]
        $crate::schedule::point();
        #[cfg(feature = "count-sync")]
        $crate::count::note(|counts| counts.$what += 1);
    };
}
pub(crate) use count;

/// As [`core::hint::spin_loop`].
#[inline]
pub fn spin_loop() {
    #[cfg(feature = "scheduled")]
    if super::schedule::wait() {
        return;
    }
    core::hint::spin_loop();
}

/// As [`core::sync::atomic::fence`].
#[inline]
pub fn fence(order: Ordering) {
    count!(fences);
    atomic::fence(order);
}

macro_rules! atomic {
    ($name:ident, $value:ty) => {
        #[doc = concat!("As [`core::sync::atomic::", stringify!($name), "`].")]
        #[derive(Debug, Default, Zeroable)]
        #[repr(transparent)]
        pub struct $name(atomic::$name);

        #[allow(missing_docs, reason = "the methods are those of the standard type")]
        #[allow(clippy::must_use_candidate, reason = "as the standard type")]
        impl $name {
            #[inline]
            pub const fn new(value: $value) -> Self {
                Self(atomic::$name::new(value))
            }

            #[inline]
            pub fn load(&self, order: Ordering) -> $value {
                count!(loads);
                self.0.load(order)
            }

            #[inline]
            pub fn store(&self, value: $value, order: Ordering) {
                count!(stores);
                self.0.store(value, order);
            }

            #[inline]
            pub fn swap(&self, value: $value, order: Ordering) -> $value {
                count!(rmws);
                self.0.swap(value, order)
            }

            #[inline]
            pub fn compare_exchange(
                &self,
                current: $value,
                new: $value,
                success: Ordering,
                failure: Ordering,
            ) -> Result<$value, $value> {
                count!(rmws);
                self.0.compare_exchange(current, new, success, failure)
            }

            #[inline]
            pub fn compare_exchange_weak(
                &self,
                current: $value,
                new: $value,
                success: Ordering,
                failure: Ordering,
            ) -> Result<$value, $value> {
                count!(rmws);
                self.0.compare_exchange_weak(current, new, success, failure)
            }

            #[inline]
            pub fn fetch_and(&self, value: $value, order: Ordering) -> $value {
                count!(rmws);
                self.0.fetch_and(value, order)
            }

            #[inline]
            pub fn fetch_or(&self, value: $value, order: Ordering) -> $value {
                count!(rmws);
                self.0.fetch_or(value, order)
            }

            #[inline]
            pub fn get_mut(&mut self) -> &mut $value {
                self.0.get_mut()
            }

            #[inline]
            pub fn into_inner(self) -> $value {
                self.0.into_inner()
            }
        }
    };
}

macro_rules! arithmetic {
    ($name:ident, $value:ty) => {
        #[allow(missing_docs, reason = "the methods are those of the standard type")]
        impl $name {
            #[inline]
            pub fn fetch_add(&self, value: $value, order: Ordering) -> $value {
                count!(rmws);
                self.0.fetch_add(value, order)
            }

            #[inline]
            pub fn fetch_sub(&self, value: $value, order: Ordering) -> $value {
                count!(rmws);
                self.0.fetch_sub(value, order)
            }
        }
    };
}

atomic!(AtomicBool, bool);
atomic!(AtomicU32, u32);
atomic!(AtomicU64, u64);
arithmetic!(AtomicU32, u32);
arithmetic!(AtomicU64, u64);
