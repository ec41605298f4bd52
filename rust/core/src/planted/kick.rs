//! The guest-mode handshake: what a section stored reaches the flusher, what a request is about reaches the vCPU.

use shadow_mmu_planted::{Plain, apart, race};

use super::until;
use crate::{
    requests::{GuestMode, HandshakeOrder, KvmHandshake, kick_and_wait},
    sync::{AtomicBool, Ordering},
};

enum LeaveRelaxed {}
impl HandshakeOrder for LeaveRelaxed {
    const LEAVE: Ordering = Ordering::Relaxed;
}

enum WaitRelaxed {}
impl HandshakeOrder for WaitRelaxed {
    const WAIT: Ordering = Ordering::Relaxed;
}

enum RequestRelaxed {}
impl HandshakeOrder for RequestRelaxed {
    const REQUEST: Ordering = Ordering::Relaxed;
}

enum TakeRelaxed {}
impl HandshakeOrder for TakeRelaxed {
    const TAKE: Ordering = Ordering::Relaxed;
}

const FLUSH: u32 = 8;

/// P3: the flusher finds the vCPU inside and waits; then it sees what the access stored (here plain data).
fn flush_waits<O: HandshakeOrder + Sync>() {
    apart(|| {
        let (data, mode, inside) = (Plain::new(), GuestMode::<O>::new(), AtomicBool::new(false));
        let access = || {
            assert!(mode.enter());
            inside.store(true, Ordering::Relaxed);
            // The flusher has seen the vCPU inside, or is about to.
            until(|| mode.pending() == FLUSH);
            data.write(1);
            mode.leave();
        };
        let flush = || {
            until(|| inside.load(Ordering::Relaxed));
            // It may come too late to wait: the section has ended then, which is the next test.
            kick_and_wait([&mode], None, FLUSH);
            assert_eq!(data.read(), 1);
        };
        race([&access, &flush]);
    });
}

/// P3: the flusher finds that the section has ended: it does not wait, and sees what was stored all the same.
fn flush_is_late<O: HandshakeOrder + Sync>() {
    apart(|| {
        let (data, mode, left) = (Plain::new(), GuestMode::<O>::new(), AtomicBool::new(false));
        let access = || {
            assert!(mode.enter());
            data.write(1);
            mode.leave();
            left.store(true, Ordering::Relaxed);
        };
        let flush = || {
            until(|| left.load(Ordering::Relaxed));
            assert_eq!(kick_and_wait([&mode], None, FLUSH), 0);
            assert_eq!(data.read(), 1);
        };
        race([&access, &flush]);
    });
}

/// Who takes a request sees why it was raised.
fn request_is_taken<O: HandshakeOrder + Sync>() {
    apart(|| {
        let (reason, mode) = (Plain::new(), GuestMode::<O>::new());
        let requester = || {
            reason.write(1);
            mode.request(FLUSH);
        };
        let vcpu = || {
            until(|| mode.take(FLUSH) == FLUSH);
            assert_eq!(reason.read(), 1);
        };
        race([&requester, &vcpu]);
    });
}

#[test]
fn p3_a_flush_that_waited_sees_what_the_access_stored() {
    flush_waits::<KvmHandshake>();
}

#[test]
fn p3_a_flush_that_came_late_sees_it_too() {
    flush_is_late::<KvmHandshake>();
}

#[test]
fn p5_a_request_brings_its_reason() {
    request_is_taken::<KvmHandshake>();
}

#[test]
#[ignore = "a data race on purpose: make tsan"]
fn weak_p3_leave_relaxed() {
    flush_waits::<LeaveRelaxed>();
}

#[test]
#[ignore = "a data race on purpose: make tsan"]
fn weak_p3_wait_relaxed() {
    flush_waits::<WaitRelaxed>();
}

#[test]
#[ignore = "a data race on purpose: make tsan"]
fn weak_p3_leave_relaxed_flush_late() {
    flush_is_late::<LeaveRelaxed>();
}

#[test]
#[ignore = "a data race on purpose: make tsan"]
fn weak_p3_wait_relaxed_flush_late() {
    flush_is_late::<WaitRelaxed>();
}

#[test]
#[ignore = "a data race on purpose: make tsan"]
fn weak_p5_request_relaxed() {
    request_is_taken::<RequestRelaxed>();
}

#[test]
#[ignore = "a data race on purpose: make tsan"]
fn weak_p5_take_relaxed() {
    request_is_taken::<TakeRelaxed>();
}
