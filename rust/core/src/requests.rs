//! Requests to a vCPU and the guest-mode handshake: how a remote flush waits (D.3; KVM's `vcpu->requests` and `vcpu->mode`).
//!
//! A guest access is a bracketed section: [`GuestMode::enter`], translate and touch memory, [`GuestMode::leave`].
//! Whoever takes rights away stores the new entries, raises a request on every vCPU, and waits until each section
//! that was open has ended:
//!
//! ```text
//! flusher                           vCPU
//! withdraw(spte)                    epoch := odd
//! requests |= TLB_FLUSH             fence(SeqCst)
//! fence(SeqCst)                     requests == 0 ?   else leave, serve them, enter again
//! epoch odd ?  wait until it moves  use the TLB, walk, load or store
//!                                   epoch := even (Release)
//! ```
//!
//! It is the store-buffering shape: each side stores, then loads what the other stored. With both fences one of the
//! two sees the other: the vCPU finds the request before it uses anything old, or the flusher finds it inside and
//! waits. With Release and Acquire alone both can miss, on x86 too.
//!
//! A vCPU must be outside when it waits for anything (the `mmu_lock`, another vCPU), or a flush never ends.

use core::marker::PhantomData;

use crate::sync::{AtomicU32, AtomicU64, Ordering, fence, wait_until};

/// The orders of the handshake, with the right ones as defaults; [`KvmHandshake`] is the only implementation outside tests.
pub(crate) trait HandshakeOrder {
    /// The raising of a request.
    const REQUEST: Ordering = Ordering::Release;
    /// The taking of a request.
    const TAKE: Ordering = Ordering::Acquire;
    /// Between the store of the epoch and the first load of the section.
    const ENTER_FENCE: Option<Ordering> = Some(Ordering::SeqCst);
    /// Between the withdrawn entries and requests, and the loads of the epochs.
    const KICK_FENCE: Option<Ordering> = Some(Ordering::SeqCst);
    /// The store that ends a section.
    const LEAVE: Ordering = Ordering::Release;
    /// The flusher's load of an epoch.
    const WAIT: Ordering = Ordering::Acquire;
}

/// Full fences on both sides, Release and Acquire at the end of a section.
#[derive(Clone, Copy, Debug)]
pub(crate) enum KvmHandshake {}

impl HandshakeOrder for KvmHandshake {}

/// What other vCPUs share with one vCPU: the requests they raised, and whether it is inside a guest access.
///
/// Requests that a vCPU raises on itself need no atomics and live with the vCPU.
#[derive(Debug)]
#[repr(align(128))]
pub(crate) struct GuestMode<O = KvmHandshake> {
    /// Bits raised by others.
    requests: AtomicU32,
    /// Odd while inside; written by the vCPU's own thread only.
    epoch: AtomicU64,
    order: PhantomData<O>,
}

impl<O: HandshakeOrder> GuestMode<O> {
    /// Outside, with no request.
    pub(crate) fn new() -> Self {
        Self { requests: AtomicU32::new(0), epoch: AtomicU64::new(0), order: PhantomData }
    }

    /// Raises requests. They are served before the vCPU's next guest access; [`kick_and_wait`] ends the one under way.
    pub(crate) fn request(&self, bits: u32) {
        // ORDERING(kick-mode): Release: who takes the request sees why it was raised (an invalid role, an entry).
        self.requests.fetch_or(bits, O::REQUEST);
    }

    /// The requests raised by others and not taken yet.
    #[inline]
    pub(crate) fn pending(&self) -> u32 {
        // ORDERING(kick-mode): Relaxed: nothing is concluded from a request before it is taken.
        self.requests.load(Ordering::Relaxed)
    }

    /// Takes the requests in `mask`; returns those that were raised. Costs a load if there is none.
    #[inline]
    pub(crate) fn take(&self, mask: u32) -> u32 {
        if self.pending() & mask == 0 {
            return 0;
        }
        // ORDERING(kick-mode): Acquire, pairs with `request`; a request raised from now on stays for the next look.
        self.requests.fetch_and(!mask, O::TAKE) & mask
    }

    /// Begins a guest access; false, and outside again, if a request must be served first. By the vCPU's own thread.
    #[must_use = "false means the vCPU is not inside"]
    #[inline]
    pub(crate) fn enter(&self) -> bool {
        self.begin();
        // ORDERING(kick-mode): Relaxed behind the fence; the requests are taken with Acquire.
        if self.requests.load(Ordering::Relaxed) == 0 {
            return true;
        }
        self.leave();
        false
    }

    /// The first half of [`enter`](Self::enter): inside from here on, for everyone to see. Requests are looked at after it.
    #[inline]
    pub(crate) fn begin(&self) {
        // ORDERING(kick-mode): Relaxed: this thread is the only writer.
        let epoch = self.epoch.load(Ordering::Relaxed);
        debug_assert!(epoch.is_multiple_of(2), "the vCPU is inside already");
        // ORDERING(kick-mode): Relaxed: the fence orders it before everything the access loads.
        self.epoch.store(epoch + 1, Ordering::Relaxed);
        if let Some(order) = O::ENTER_FENCE {
            // ORDERING(kick-mode): SeqCst, pairs with the fence of `kick_and_wait`.
            fence(order);
        }
    }

    /// Begins a guest access that ends when the value is dropped, a panic included; `None` if a request must be served
    /// first.
    #[inline]
    pub(crate) fn section(&self) -> Option<Section<'_, O>> {
        self.enter().then(|| Section(self))
    }

    /// Ends a guest access. By the vCPU's own thread.
    #[inline]
    pub(crate) fn leave(&self) {
        // ORDERING(kick-mode): Relaxed: this thread is the only writer.
        let epoch = self.epoch.load(Ordering::Relaxed);
        debug_assert!(!epoch.is_multiple_of(2), "the vCPU is not inside");
        // ORDERING(kick-mode): Release: whoever waited for the end sees what the access stored.
        self.epoch.store(epoch + 1, O::LEAVE);
    }

    /// The epoch, odd while inside (a moment ago): for reports on a vCPU that is stuck.
    #[cfg(not(any(loom, explored)))]
    pub(crate) fn epoch(&self) -> u64 {
        // ORDERING(kick-mode): Relaxed: a figure.
        self.epoch.load(Ordering::Relaxed)
    }

    /// Waits for the end of the access that is under way, if one is; true if there was one. After the fence of the kick.
    fn wait_outside(&self) -> bool {
        // ORDERING(kick-mode): Acquire: the stores of an access that has ended are seen.
        let seen = self.epoch.load(O::WAIT);
        if seen.is_multiple_of(2) {
            return false;
        }
        // ORDERING(kick-mode): Acquire, as above. A section that begins after the fence finds the request.
        wait_until(|| self.epoch.load(O::WAIT) != seen);
        true
    }
}

/// A guest access under way.
#[must_use = "the access ends when this is dropped"]
#[derive(Debug)]
pub(crate) struct Section<'a, O: HandshakeOrder>(&'a GuestMode<O>);

/// A guest access of a vCPU.
#[cfg(not(any(loom, explored)))]
pub(crate) type GuestSection<'a> = Section<'a, KvmHandshake>;

impl<O: HandshakeOrder> Drop for Section<'_, O> {
    #[inline]
    fn drop(&mut self) {
        self.0.leave();
    }
}

impl<O: HandshakeOrder> Default for GuestMode<O> {
    fn default() -> Self {
        Self::new()
    }
}

/// The remote flush: raises `bits` on every vCPU of `vcpus`, and waits for the guest accesses under way on all of
/// them but `own`, the caller's; returns how many it had to wait for.
///
/// When it returns, no access that could have used an entry withdrawn before the call is under way, what such an
/// access stored is seen, and later ones serve the request first. The caller is outside guest mode.
pub(crate) fn kick_and_wait<'a, O: HandshakeOrder + 'a>(
    vcpus: impl IntoIterator<Item = &'a GuestMode<O>, IntoIter: Clone>,
    own: Option<usize>,
    bits: u32,
) -> u32 {
    let vcpus = vcpus.into_iter();
    for vcpu in vcpus.clone() {
        vcpu.request(bits);
    }
    if let Some(order) = O::KICK_FENCE {
        // ORDERING(kick-mode): SeqCst, pairs with the fence of `enter`; one for all vCPUs.
        fence(order);
    }
    let others = vcpus.enumerate().filter(|&(index, _)| Some(index) != own);
    others.map(|(_, vcpu)| u32::from(vcpu.wait_outside())).sum()
}

#[cfg(all(test, not(any(loom, explored))))]
mod tests {
    use std::{sync::mpsc, thread};

    use super::*;

    #[test]
    fn a_request_keeps_the_vcpu_outside_until_it_is_taken() {
        let mode = GuestMode::<KvmHandshake>::new();
        assert!(mode.enter());
        mode.leave();
        mode.request(0b101);
        assert!(!mode.enter());
        assert_eq!(mode.take(0b011), 0b001);
        assert!(!mode.enter());
        assert_eq!(mode.pending(), 0b100);
        assert_eq!(mode.take(!0), 0b100);
        assert_eq!(mode.take(!0), 0);
        assert!(mode.enter());
    }

    #[test]
    fn a_kick_waits_for_the_accesses_under_way_and_for_no_other() {
        let modes = [GuestMode::<KvmHandshake>::new(), GuestMode::new(), GuestMode::new()];
        assert!(modes[0].enter() && modes[1].enter());
        let (sender, receiver) = mpsc::channel();
        thread::scope(|scope| {
            scope.spawn(|| sender.send(kick_and_wait(&modes, Some(0), 8)));
            while modes[2].pending() == 0 {
                thread::yield_now();
            }
            thread::sleep(std::time::Duration::from_millis(20));
            assert!(receiver.try_recv().is_err(), "the kick must wait for vCPU 1");
            modes[1].leave();
            assert_eq!(receiver.recv(), Ok(1));
        });
        assert!(modes.iter().all(|mode| mode.pending() == 8));
    }

    #[test]
    fn each_vcpu_has_lines_of_its_own() {
        assert_eq!((size_of::<GuestMode>(), align_of::<GuestMode>()), (128, 128));
    }
}
