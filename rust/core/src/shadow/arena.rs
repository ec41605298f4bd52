//! The memory of shadow pages: SPTEs and the few fields that are read without the `mmu_lock`.
//!
//! Type-stable: a chunk is never moved or freed, so a stale reference reads some shadow page's entries, never
//! something else. A page is reused only after a remote flush has waited for every open guest access (D.3, E161).

use std::sync::OnceLock;

use shadow_mmu_sys::mem;

use super::{publish::SyncState, role_word::RoleWord};
use crate::{
    addr::{ENTRIES, SpId},
    error::{Error, Result},
    role::PageRole,
    sync::{AtomicU32, AtomicU64, Ordering},
};

/// Shadow pages in one chunk: 1 MiB of SPTEs.
const CHUNK: usize = 256;
/// Most chunks: 4 GiB of SPTEs.
const CHUNKS: usize = 4096;

/// What is read without the lock beside the SPTEs. Fields that other vCPUs write stand on a line of their own.
#[derive(Debug)]
#[repr(C, align(128))]
pub(crate) struct SpHeader {
    role: RoleWord,
    shared: SharedLine,
}

#[derive(Debug)]
#[repr(C, align(64))]
struct SharedLine {
    sync: SyncState,
    flooding: AtomicU32,
}

impl SpHeader {
    fn new() -> Self {
        Self { role: RoleWord::new(), shared: SharedLine { sync: SyncState::default(), flooding: AtomicU32::new(0) } }
    }

    /// The role word; it changes (to invalid) only under the lock.
    #[inline]
    pub(crate) fn role(&self) -> PageRole {
        PageRole::from_word(self.role.load())
    }

    /// Sets the role, when a page is allocated and when it is zapped.
    pub(crate) fn set_role(&self, role: PageRole) {
        self.role.store(role.word());
    }

    /// The unsync flag and the count of unsync children.
    #[inline]
    pub(crate) fn sync_state(&self) -> &SyncState {
        &self.shared.sync
    }

    /// Emulated writes since the page was last used.
    #[inline]
    pub(crate) fn flooding(&self) -> u32 {
        // ORDERING(flooding): a heuristic counter.
        self.shared.flooding.load(Ordering::Relaxed)
    }

    /// Counts an emulated write and returns the new count.
    pub(crate) fn add_flooding(&self) -> u32 {
        // ORDERING(flooding): as above; a lost reset costs one zap at most.
        self.shared.flooding.fetch_add(1, Ordering::Relaxed) + 1
    }

    /// Zeroes the count. Stores only if there is something to zero: the line is shared.
    #[inline]
    pub(crate) fn clear_flooding(&self) {
        if self.flooding() != 0 {
            // ORDERING(flooding): as above.
            self.shared.flooding.store(0, Ordering::Relaxed);
        }
    }
}

/// Arrays, not slices: an index below [`CHUNK`] needs no check, and no length is loaded in the walk.
struct Chunk {
    headers: Box<[SpHeader; CHUNK]>,
    sptes: Box<[AtomicU64; CHUNK * ENTRIES]>,
}

/// The chunk of the page that a walk came from: the next page is in the same one more often than not, and the processor need
/// not wait for the place of a chunk before it loads the entry.
#[derive(Clone, Copy)]
pub(crate) struct Cursor<'a> {
    arena: &'a ShadowArena,
    number: usize,
    chunk: &'a Chunk,
}

impl<'a> Cursor<'a> {
    /// The page's 512 entries.
    #[inline]
    pub(crate) fn sptes(&mut self, id: SpId) -> &'a [AtomicU64; ENTRIES] {
        if id.at() / CHUNK != self.number {
            *self = self.arena.cursor(id);
        }
        &self.chunk.sptes.as_chunks::<ENTRIES>().0[id.at() % CHUNK]
    }

    /// As [`ShadowArena::header`].
    #[inline]
    pub(crate) fn header(&mut self, id: SpId) -> &'a SpHeader {
        if id.at() / CHUNK != self.number {
            *self = self.arena.cursor(id);
        }
        &self.chunk.headers[id.at() % CHUNK]
    }
}

/// Every shadow page there can be, by number.
pub(crate) struct ShadowArena {
    chunks: Box<[OnceLock<Chunk>; CHUNKS]>,
}

impl core::fmt::Debug for ShadowArena {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        let chunks = self.chunks.iter().filter(|chunk| chunk.get().is_some()).count();
        write!(f, "ShadowArena({} pages allocated)", chunks * CHUNK)
    }
}

impl Default for ShadowArena {
    fn default() -> Self {
        Self { chunks: boxed((0..CHUNKS).map(|_| OnceLock::new()).collect()) }
    }
}

/// A boxed slice of a length known at compile time.
fn boxed<T, const N: usize>(slice: Box<[T]>) -> Box<[T; N]> {
    slice.try_into().unwrap_or_else(|_| panic!("the slice has {N} elements"))
}

impl ShadowArena {
    /// Most shadow pages.
    pub(crate) const LIMIT: u32 = (CHUNK * CHUNKS) as u32;
    /// Bytes of one page's SPTEs and header.
    pub(crate) const BYTES_PER_PAGE: u64 = (ENTRIES * 8 + size_of::<SpHeader>()) as u64;

    /// Makes sure that page `id` has memory.
    ///
    /// # Errors
    /// [`Error::OutOfShadowPages`] past the limit, [`Error::OutOfMemory`].
    pub(crate) fn ensure(&self, id: SpId) -> Result<()> {
        let place = self.chunks.get(id.at() / CHUNK).ok_or(Error::OutOfShadowPages { limit: Self::LIMIT })?;
        if place.get().is_none() {
            let words = CHUNK * ENTRIES;
            let sptes = mem::zeroed_words(words)
                .map_err(|_| Error::OutOfMemory { what: "shadow pages", bytes: words as u64 * 8 })?;
            let (headers, sptes) = (boxed((0..CHUNK).map(|_| SpHeader::new()).collect()), boxed(sptes));
            // Only the holder of the mmu_lock allocates, so nobody can have been faster.
            let _ = place.set(Chunk { headers, sptes });
        }
        Ok(())
    }

    #[inline]
    fn chunk(&self, id: SpId) -> &Chunk {
        self.chunks[id.at() / CHUNK].get().expect("a shadow page that exists has a chunk")
    }

    /// The entries of pages one after the other, from this one on.
    #[inline]
    pub(crate) fn cursor(&self, id: SpId) -> Cursor<'_> {
        Cursor { arena: self, number: id.at() / CHUNK, chunk: self.chunk(id) }
    }

    /// The fields of a page that may be read without the lock.
    #[inline]
    pub(crate) fn header(&self, id: SpId) -> &SpHeader {
        &self.chunk(id).headers[id.at() % CHUNK]
    }

    /// The page's 512 entries.
    #[inline]
    pub(crate) fn sptes(&self, id: SpId) -> &[AtomicU64; ENTRIES] {
        &self.chunk(id).sptes.as_chunks::<ENTRIES>().0[id.at() % CHUNK]
    }
}
