//! A guest access: the bracketed section in which the vCPU is inside the guest, and the exits around it.
//!
//! docs/machine.md, 5. The section holds TLB lookup or shadow walk *and* the load or store itself, so that a remote
//! flush, which waits for open sections, waits for the store as well (D.3, E075).

use super::{MAX_TRIES, PATIENCE, Vcpu, enter::Entry, fault::Handled, tdp::Violation};
use crate::{
    access::{AccessFlags, AccessKind},
    addr::{Gpa, Gva, PAGE_SIZE, SpId, SpteRef},
    config::{Mutant, PANIC_VALUE},
    error::{Error, Result},
    mmu::{PagingContext, Shared},
    op::Outcome,
    paging::LeafDemand,
    requests::GuestSection,
    shadow::publish,
    spte::Spte,
    sync::yield_now,
};

/// What an access does once it is translated.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Action {
    /// Nothing: the gpa is the result.
    Translate,
    /// Load this many bytes.
    Load(u8),
    /// Store the value's low bytes.
    Store {
        /// The value.
        value: u64,
        /// Bytes: 1, 2, 4 or 8.
        size: u8,
    },
}

/// What the inside of the guest came to.
pub(super) enum Inside {
    Done(Outcome),
    /// The shadow tables denied the access; whether they had an entry.
    Fault {
        present: bool,
    },
    /// The direct tables had no entry for a guest-physical address.
    Violation(Violation),
}

impl Vcpu {
    /// Performs one guest access.
    ///
    /// What is here is all that a hit in the TLB needs; [`access_as`](Self::access_as) goes on in the same section.
    #[inline]
    pub(crate) fn access(
        &mut self,
        shared: &Shared,
        gva: Gva,
        kind: AccessKind,
        flags: AccessFlags,
        action: Action,
    ) -> Result<Outcome> {
        let mut open = None;
        if let Some(demand) = self.demand_if_ready(gva, kind, flags)
            && let Some(section) = shared.modes[self.index].section()
        {
            self.watch.settle(&mut self.cx.stats);
            if let Some(spte) = self.tlb_hit(gva, demand) {
                return Ok(perform(shared, spte, gva, action));
            }
            open = Some(section);
        }
        if self.tdp {
            self.access_as::<true>(shared, open, gva, kind, flags, action)
        } else {
            self.access_as::<false>(shared, open, gva, kind, flags, action)
        }
    }

    /// What the access asks of a leaf, if it may enter the guest at once but for requests of others. Of a 32-bit address those
    /// that need no truncation pass.
    #[inline]
    fn demand_if_ready(&self, gva: Gva, kind: AccessKind, flags: AccessFlags) -> Option<LeafDemand> {
        let paging = self.cx.paging.as_ref()?;
        let ready = self.cx.requests.is_empty() && self.root().is_valid() && !self.shut_down;
        (ready && gva.is_canonical(paging.va_bits)).then(|| paging.demands.of(kind, flags))
    }

    /// The entry that the TLB has for an access; one that does not permit it goes.
    #[inline]
    fn tlb_hit(&mut self, gva: Gva, demand: LeafDemand) -> Option<Spte> {
        let spte = Spte::from_raw(self.tlb.lookup(gva.page())?);
        if demand.is_met(spte) {
            return Some(spte);
        }
        self.tlb.drop_page(gva.page());
        None
    }

    /// [`access`](Self::access) where the TLB has nothing, with shadow tables, or with `TDP` in two dimensions: one function for
    /// each, so that neither asks. `open`: the section in which the TLB had nothing.
    #[inline(never)]
    fn access_as<'a, const TDP: bool>(
        &mut self,
        shared: &'a Shared,
        open: Option<GuestSection<'a>>,
        gva: Gva,
        kind: AccessKind,
        flags: AccessFlags,
        action: Action,
    ) -> Result<Outcome> {
        if self.shut_down {
            return Ok(Outcome::TripleFault);
        }
        // Only the two small parts that are needed: the whole context is large.
        let small = |paging: &PagingContext| (paging.demands.of(kind, flags), paging.va_bits);
        let Some((demand, va_bits)) = self.cx.paging.as_ref().map(small) else {
            return Ok(Outcome::TripleFault); // the host's context, which no vCPU has
        };
        let gva = if va_bits == 32 { gva.truncated() } else { gva };
        if va_bits != 32 && !gva.is_canonical(va_bits) {
            return Ok(Outcome::GeneralProtection);
        }
        let mut open = open;
        // Only the inside of the guest fills the TLB: once it had nothing, it has nothing until the end.
        let mut looked_up = open.is_some();
        let mut tries = 0;
        while tries < MAX_TRIES {
            let section = if let Some(section) = open.take() {
                section
            } else {
                if self.prepare_entry(shared)? == Entry::ShutDown {
                    return Ok(Outcome::TripleFault);
                }
                let Some(section) = shared.modes[self.index].section() else { continue };
                section
            };
            if !looked_up {
                if let Some(spte) = self.tlb_hit(gva, demand) {
                    return Ok(perform(shared, spte, gva, action));
                }
                looked_up = true;
            }
            let inside = if TDP {
                self.walk_in_two_dimensions(shared, gva, kind, flags, action)
            } else {
                self.walk_shadow(shared, demand, gva, kind, action)
            };
            drop(section);
            let handled = match inside {
                Inside::Done(outcome) => return Ok(outcome),
                Inside::Fault { present } => self.handle_page_fault(shared, gva, kind, flags, present)?,
                Inside::Violation(violation) => self.handle_violation(shared, violation, gva, kind, flags)?,
            };
            match handled {
                Handled::Retry => {
                    tries += 1;
                    self.tries = tries;
                    if tries > PATIENCE {
                        yield_now();
                    }
                }
                Handled::Emulate(gpa) => return Ok(self.emulate(shared, gpa, kind, action)),
                Handled::Mmio(gpa) => return Ok(Outcome::Mmio(gpa)),
                Handled::Guest(fault) => return Ok(Outcome::PageFault { address: gva, code: fault.code }),
            }
        }
        Err(Error::NoProgress { gva, tries: MAX_TRIES })
    }

    /// Inside the guest, where the TLB has nothing: the shadow tables, then memory.
    #[inline]
    fn walk_shadow(
        &mut self,
        shared: &Shared,
        demand: LeafDemand,
        gva: Gva,
        kind: AccessKind,
        action: Action,
    ) -> Inside {
        let Some((at, seen)) = self.hardware_walk(shared, gva) else { return Inside::Fault { present: false } };
        if !demand.is_permitted(seen) {
            return Inside::Fault { present: true };
        }
        let Some(spte) = set_accessed_dirty(shared, at, seen, kind) else {
            // The entry changed under the walk; the exit finds out what it is now.
            return Inside::Fault { present: false };
        };
        self.tlb.fill(gva.page(), spte.raw());
        Inside::Done(perform(shared, spte, gva, action))
    }

    /// The hardware's walk of the shadow tables: the leaf and where it is, `None` at an entry that is not present.
    #[inline]
    pub(super) fn hardware_walk(&self, shared: &Shared, gva: Gva) -> Option<(SpteRef, Spte)> {
        descend(shared, self.top_page(self.root(), gva)?, gva)
    }
}

/// Walks tables that the hardware may walk from the page `sp` down: the leaf for `address` and where it is.
#[inline(always)]
#[expect(clippy::inline_always, reason = "every access without a TLB entry walks, twice if it faults")]
pub(super) fn descend(shared: &Shared, mut sp: SpId, address: Gva) -> Option<(SpteRef, Spte)> {
    let mut pages = shared.arena.cursor(sp);
    let mut level = pages.header(sp).role().level();
    loop {
        let at = SpteRef::new(sp, level.index(address));
        let spte = Spte::from_raw(publish::walk_load(&pages.sptes(sp)[at.at()]));
        if !spte.is_present() {
            return None;
        }
        if level.is_last() {
            return Some((at, spte));
        }
        sp = spte.child()?;
        level = level.down();
    }
}

/// Sets A (and D for a write) where clear, on the value just read and no other; `None` if it had changed.
#[inline]
fn set_accessed_dirty(shared: &Shared, at: SpteRef, seen: Spte, kind: AccessKind) -> Option<Spte> {
    let missing = seen.missing_ad(kind.is_write());
    if missing == 0 {
        return Some(seen);
    }
    let slot = &shared.arena.sptes(at.sp)[at.at()];
    publish::set_accessed_dirty(slot, seen.raw(), missing).ok().map(Spte::from_raw)
}

/// Loads or stores through a host frame.
#[inline]
pub(super) fn perform(shared: &Shared, spte: Spte, gva: Gva, action: Action) -> Outcome {
    let gpa = Gpa::new(spte.pfn().gfn().gpa().get() | gva.offset());
    Outcome::Ok(match action {
        Action::Translate => gpa.get(),
        Action::Load(size) => shared.memory.load(gpa, size).unwrap_or(u64::MAX),
        Action::Store { value, size } => {
            debug_assert!(!shared.memory.is_read_only(gpa.gfn()), "an entry lets the guest write {gpa}");
            shared.memory.store(gpa, value, size);
            assert!(!(value == PANIC_VALUE && shared.mutated(Mutant::PanicInGuest)), "panic-in-guest");
            gpa.get()
        }
    })
}

/// Checks the size and the place of a load or store.
///
/// # Errors
/// [`Error::BadOp`] for a size that is not 1, 2, 4 or 8; [`Error::PageCrossing`].
pub(crate) fn check_size(gva: Gva, size: u64) -> Result<u8> {
    if !matches!(size, 1 | 2 | 4 | 8) {
        return Err(Error::BadOp { what: "size", got: size.to_string(), expected: "1, 2, 4 or 8".into() });
    }
    let size = size as u8;
    if gva.offset() + u64::from(size) > PAGE_SIZE {
        return Err(Error::PageCrossing { gva, size });
    }
    Ok(size)
}
