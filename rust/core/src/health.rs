//! Whether a machine can still be trusted: not after a panic.
//!
//! No lock is poisoned by a panic and nobody hangs: guards give up the vCPU, the guest-mode section and the `mmu_lock`
//! as the thread unwinds. But what the panicked operation had begun is half done, and no check can prove that the other
//! half does not matter: the audit looks at shadow pages, not at what a vCPU was about to do. So the machine is broken
//! for good. It can be looked at (audit, statistics, guest memory), and nothing else.

use std::thread;

use crate::{
    error::{Error, Result},
    sync::{AtomicBool, Ordering},
};

/// Set by the first panic of a thread that was working on the machine.
#[derive(Debug, Default)]
pub(crate) struct Health {
    broken: AtomicBool,
}

/// Notes a panic that passes while it lives.
#[derive(Debug)]
pub(crate) struct Watch<'a>(&'a Health);

impl Health {
    /// Watches what follows, until the value is dropped.
    pub(crate) fn watch(&self) -> Watch<'_> {
        Watch(self)
    }

    /// Refuses a machine that is broken.
    ///
    /// # Errors
    /// [`Error::Broken`].
    #[inline]
    pub(crate) fn check(&self) -> Result<()> {
        if self.is_broken() { Err(Error::Broken) } else { Ok(()) }
    }

    /// Whether a thread panicked.
    #[inline]
    pub(crate) fn is_broken(&self) -> bool {
        // ORDERING(stop-flag): a wish, as a stop is: it keeps others from beginning, and hands nothing over.
        self.broken.load(Ordering::Relaxed)
    }
}

impl Drop for Watch<'_> {
    #[inline]
    fn drop(&mut self) {
        if thread::panicking() {
            // ORDERING(stop-flag): as above.
            self.0.broken.store(true, Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::panic::{AssertUnwindSafe, catch_unwind};

    use super::*;

    #[test]
    fn only_a_panic_breaks_a_machine() {
        let health = Health::default();
        drop(health.watch());
        assert_eq!(health.check(), Ok(()));
        let panicked = catch_unwind(AssertUnwindSafe(|| {
            let _watch = health.watch();
            panic!("on purpose");
        }));
        assert!(panicked.is_err());
        assert_eq!(health.check(), Err(Error::Broken));
    }
}
