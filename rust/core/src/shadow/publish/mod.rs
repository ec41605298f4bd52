//! The publication protocol: what is shared without the `mmu_lock`, and in which order (D.1 to D.4).
//!
//! A vCPU that flushes decides *without the lock* whether its root must be synced: it looks at two words
//! of the root ([`SyncState::observe`]). That is right only if nobody can have written a guest page table
//! through a writable SPTE whose marks that vCPU does not see:
//!
//! ```text
//! fault, lock held            guest A                      guest B
//! mark unsync up to the root
//! publish_writable(spte)  --> walk_load(spte): W
//!                             store into the guest table
//!                             signal                   --> sees the signal
//!                                                          flush: root.observe()  must see the marks
//! ```
//!
//! and the other way round, if it sees the root clean because somebody else synced it, it must see what the
//! sync stored:
//!
//! ```text
//! sync, lock held                          guest B
//! withdraw / publish the leaves
//! root.sub_unsync_child(): now 0       --> root.observe() is false; walk_load(leaf) must be the new one
//! ```
//!
//! The Release therefore sits on the SPTE store, not on the marks (a release orders what is before it), and on
//! the store that clears the root's count; the Acquire sits on the walk's load and on the flag test. Each order
//! is a constant of a trait so that the models run these very functions and, in twins that must fail, weaken one
//! order at a time. `docs/memory-ordering.md` has a section for each `ORDERING` tag.
//!
//! One concept a file: [`SyncState`] (marks), [`publish_writable`] and [`walk_load`] (entries), [`TrackHint`],
//! [`before_link`]. Everything that stores a shadow entry goes through this module, and nothing else does.

pub(crate) mod entry;
#[cfg_attr(not(test), expect(dead_code, reason = "dirty logging, which makes entries for it, is not built yet"))]
pub(crate) mod fast_fault;
#[cfg_attr(not(test), expect(dead_code, reason = "dirty logging is not built yet"))]
pub(crate) mod harvest;
pub(crate) mod hint;
pub(crate) mod link;
pub(crate) mod marks;

pub(crate) use self::{
    entry::{
        WritePermit, load_locked, protect, publish_read_only, publish_writable, set_accessed_dirty, walk_load, withdraw,
    },
    hint::TrackHint,
    link::{LinkStep, barrier_before_observe, before_link, publish_link},
    marks::SyncState,
};

/// What KVM's barriers and x86's own order come to in the language's model: the only orders outside tests.
#[derive(Clone, Copy, Debug)]
pub(crate) enum KvmOrder {}
