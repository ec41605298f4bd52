//! Shadow pages, in two halves.
//!
//! * Lock-free half, anyone at any time: [`arena`] (SPTEs, role, gfn, sync flags, flooding count in memory that never
//!   moves and is never given back), under the protocol of [`publish`]. A racy reader can be *wrong*, never undefined.
//! * Locked half, only with the `mmu_lock`: [`page`] (parents, bitmap, root count, recorded translations), [`store`]
//!   (lookup by gfn, allocation, zap list) and [`rmap`] (gfn to leaf SPTEs).

pub mod publish;

#[cfg(not(loom))]
pub mod arena;
#[cfg(not(loom))]
pub mod page;
#[cfg(not(loom))]
pub mod rmap;
#[cfg(not(loom))]
pub mod store;
