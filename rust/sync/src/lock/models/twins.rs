//! The weakened twins of the locks: the shipped orders but one. A name says the order that is weaker.

use crate::Ordering;

/// Of the queued lock.
pub(super) mod queued {
    use super::Ordering;
    use crate::lock::queued::{Handover, QueuedOrder};

    /// The shipped orders but one.
    macro_rules! weaker {
    ($(#[$doc:meta])* $name:ident: $weak:ident = $order:ident) => {
        $(#[$doc])*
        pub(in crate::lock) struct $name;
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
}

/// Of the ticket lock.
pub(super) mod ticket {
    use super::Ordering;
    use crate::lock::ticket::TicketOrder;

    /// The load of `serving` is Relaxed: the holder need not see what earlier ones wrote.
    pub(in crate::lock) struct ObserveRelaxed;
    impl TicketOrder for ObserveRelaxed {
        const OBSERVE_SERVING: Ordering = Ordering::Relaxed;
        const SERVE_NEXT: Ordering = Ordering::Release;
    }

    /// The store of `serving` is Relaxed: it may be seen before what the holder wrote.
    pub(in crate::lock) struct ServeRelaxed;
    impl TicketOrder for ServeRelaxed {
        const OBSERVE_SERVING: Ordering = Ordering::Acquire;
        const SERVE_NEXT: Ordering = Ordering::Relaxed;
    }
}

/// Of the test-and-test-and-set lock.
pub(super) mod ttas {
    use super::Ordering;
    use crate::lock::ttas::TtasOrder;

    /// The exchange that sets the flag is Relaxed: the holder need not see what earlier ones wrote.
    pub(in crate::lock) struct SetRelaxed;
    impl TtasOrder for SetRelaxed {
        const SET: Ordering = Ordering::Relaxed;
        const CLEAR: Ordering = Ordering::Release;
    }

    /// The store that clears it is Relaxed: it may be seen before what the holder wrote.
    pub(in crate::lock) struct ClearRelaxed;
    impl TtasOrder for ClearRelaxed {
        const SET: Ordering = Ordering::Acquire;
        const CLEAR: Ordering = Ordering::Relaxed;
    }
}
