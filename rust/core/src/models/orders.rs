//! The weakened orders of the twins, each a type that overrides one constant of a protocol's trait.

use crate::{
    requests::HandshakeOrder,
    shadow::{
        invalidate::InvalidateOrder,
        publish::{entry::PublishOrder, hint::HintOrder, link::LinkOrder, marks::MarkOrder},
    },
    sync::Ordering,
};

/// One or more constants of one trait overridden; of the traits in brackets nothing.
macro_rules! weaken {
    ($name:ident: $order:ident { $($constant:ident: $type:ty = $value:expr),+ } $([$($other:ident),+])?) => {
        pub(super) struct $name;
        impl $order for $name {
            $(const $constant: $type = $value;)+
        }
        $($(impl $other for $name {})+)?
    };
}

// Entries and marks.
weaken!(StoreRelaxed: PublishOrder { STORE_SPTE: Ordering = Ordering::Relaxed } [MarkOrder, LinkOrder]);
weaken!(WalkRelaxed: PublishOrder { WALK_SPTE: Ordering = Ordering::Relaxed } [MarkOrder, LinkOrder]);
weaken!(ClearRelaxed: MarkOrder { CLEAR: Ordering = Ordering::Relaxed } [PublishOrder]);
weaken!(ObserveRelaxed: MarkOrder { OBSERVE: Ordering = Ordering::Relaxed } [PublishOrder]);
weaken!(MarkPageRelaxed: MarkOrder { MARK_PAGE: Ordering = Ordering::Relaxed } [PublishOrder]);
weaken!(ShortCutRelaxed: MarkOrder { SHORT_CUT: Ordering = Ordering::Relaxed } [PublishOrder]);

/// No order but that of explicit fences: KVM's write and read barrier taken literally.
pub(super) struct FencesOnly;
impl PublishOrder for FencesOnly {
    const STORE_SPTE: Ordering = Ordering::Relaxed;
    const WALK_SPTE: Ordering = Ordering::Relaxed;
}
impl MarkOrder for FencesOnly {
    const OBSERVE: Ordering = Ordering::Relaxed;
    const MARK_PAGE: Ordering = Ordering::Relaxed;
    const SHORT_CUT: Ordering = Ordering::Relaxed;
}

/// As [`FencesOnly`], with the test of the root Acquire.
pub(super) struct FencesAndTest;
impl PublishOrder for FencesAndTest {
    const STORE_SPTE: Ordering = Ordering::Relaxed;
    const WALK_SPTE: Ordering = Ordering::Relaxed;
}
impl MarkOrder for FencesAndTest {}

/// The Release on the stores of the marks instead of the store of the SPTE.
pub(super) struct ReleaseOnMarks;
impl PublishOrder for ReleaseOnMarks {
    const STORE_SPTE: Ordering = Ordering::Relaxed;
}
impl MarkOrder for ReleaseOnMarks {
    const MARK_CHILDREN: Ordering = Ordering::Release;
}

/// `SeqCst` on the stores of the marks instead of Release on the store of the SPTE.
pub(super) struct SeqCstOnMarks;
impl PublishOrder for SeqCstOnMarks {
    const STORE_SPTE: Ordering = Ordering::Relaxed;
}
impl MarkOrder for SeqCstOnMarks {
    const MARK_CHILDREN: Ordering = Ordering::SeqCst;
    const MARK_PAGE: Ordering = Ordering::SeqCst;
}

/// `SeqCst` on every access of a mark and of an SPTE.
pub(super) struct AllSeqCst;
impl PublishOrder for AllSeqCst {
    const STORE_SPTE: Ordering = Ordering::SeqCst;
    const WALK_SPTE: Ordering = Ordering::SeqCst;
}
impl MarkOrder for AllSeqCst {
    const MARK_CHILDREN: Ordering = Ordering::SeqCst;
    const MARK_PAGE: Ordering = Ordering::SeqCst;
    const SHORT_CUT: Ordering = Ordering::SeqCst;
    const OBSERVE: Ordering = Ordering::SeqCst;
}

// The link of an unsync page.
weaken!(NoMarkFence: LinkOrder { MARK_FENCE: Option<Ordering> = None } [PublishOrder, MarkOrder]);
weaken!(NoFlushFence: LinkOrder { FLUSH_FENCE: Option<Ordering> = None } [PublishOrder, MarkOrder]);
weaken!(NoLinkFences: LinkOrder {
    MARK_FENCE: Option<Ordering> = None, FLUSH_FENCE: Option<Ordering> = None
} [PublishOrder, MarkOrder]);
weaken!(LinkFencesAcqRel: LinkOrder {
    MARK_FENCE: Option<Ordering> = Some(Ordering::AcqRel), FLUSH_FENCE: Option<Ordering> = Some(Ordering::AcqRel)
} [PublishOrder, MarkOrder]);

// The hint of an emulated write.
weaken!(NoAccountFence: HintOrder { ACCOUNT_FENCE: Option<Ordering> = None });
weaken!(NoWriteFence: HintOrder { WRITE_FENCE: Option<Ordering> = None });
weaken!(NoHintFences: HintOrder {
    ACCOUNT_FENCE: Option<Ordering> = None, WRITE_FENCE: Option<Ordering> = None
});
weaken!(HintFencesAcqRel: HintOrder {
    ACCOUNT_FENCE: Option<Ordering> = Some(Ordering::AcqRel), WRITE_FENCE: Option<Ordering> = Some(Ordering::AcqRel)
});

weaken!(HintAccessesRelAcq: HintOrder {
    ACCOUNT_FENCE: Option<Ordering> = None, WRITE_FENCE: Option<Ordering> = None,
    COUNT: Ordering = Ordering::Release, LOOK: Ordering = Ordering::Acquire
});
#[cfg(explored)]
weaken!(HintAccessesSeqCst: HintOrder {
    ACCOUNT_FENCE: Option<Ordering> = None, WRITE_FENCE: Option<Ordering> = None,
    COUNT: Ordering = Ordering::SeqCst, LOOK: Ordering = Ordering::SeqCst
});

// The handshake.
weaken!(NoEnterFence: HandshakeOrder { ENTER_FENCE: Option<Ordering> = None });
weaken!(NoKickFence: HandshakeOrder { KICK_FENCE: Option<Ordering> = None });
weaken!(FencesAcqRel: HandshakeOrder {
    ENTER_FENCE: Option<Ordering> = Some(Ordering::AcqRel), KICK_FENCE: Option<Ordering> = Some(Ordering::AcqRel)
});
weaken!(LeaveRelaxed: HandshakeOrder { LEAVE: Ordering = Ordering::Relaxed });
weaken!(WaitRelaxed: HandshakeOrder { WAIT: Ordering = Ordering::Relaxed });
weaken!(RequestRelaxed: HandshakeOrder { REQUEST: Ordering = Ordering::Relaxed });
weaken!(TakeRelaxed: HandshakeOrder { TAKE: Ordering = Ordering::Relaxed });

// The notifier's sequence.
weaken!(AdvanceRelaxed: InvalidateOrder { ADVANCE: Ordering = Ordering::Relaxed });
weaken!(SnapshotRelaxed: InvalidateOrder { SNAPSHOT: Ordering = Ordering::Relaxed });
