//! Shadow pages, in two halves.
//!
//! * Lock-free half, anyone at any time: [`arena`] (SPTEs, role, sync flags, flooding count in memory that never
//!   moves and is never given back), under the protocol of [`publish`]. A racy reader can be *wrong*, never undefined.
//! * Locked half, only with the `mmu_lock`: [`page`] (parents, bitmap, root count, recorded translations), [`store`]
//!   (lookup by gfn, allocation, zap list) and [`rmap`] (gfn to leaf SPTEs).
//!
//! Protocols in files of their own: [`publish`] (marks, entries, links), [`role_word`], [`root_refs`], [`invalidate`].

#[cfg_attr(not(test), expect(dead_code, reason = "host memory does not move yet: the notifier will use it"))]
pub(crate) mod invalidate;
pub(crate) mod publish;
pub(crate) mod role_word;
pub(crate) mod root_refs;

#[cfg(not(any(loom, explored)))]
pub(crate) mod arena;
#[cfg(not(any(loom, explored)))]
pub(crate) mod page;
#[cfg(not(any(loom, explored)))]
pub(crate) mod rmap;
#[cfg(not(any(loom, explored)))]
pub(crate) mod store;
