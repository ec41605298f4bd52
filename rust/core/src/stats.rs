//! Statistics: plain counters of each vCPU, summed when read, so that counting costs no shared line.
//!
//! KVM: `struct kvm_vm_stat`, `struct kvm_vcpu_stat` (E164).

mod lock;

use hdrhistogram::Histogram;

pub use self::lock::{LockPhase, LockReason, LockStats, LockTimes, LockUser, Longest};

macro_rules! counters {
    ($($(#[$doc:meta])* $name:ident,)*) => {
        /// Event counters, by KVM's names (E164).
        #[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
        pub struct Counters {
            $($(#[$doc])* pub $name: u64,)*
        }

        impl Counters {
            /// The names, in the order of [`values`](Self::values).
            pub const NAMES: &'static [&'static str] = &[$(stringify!($name),)*];

            /// The values, in the order of [`NAMES`](Self::NAMES).
            pub fn values(&self) -> Vec<u64> {
                vec![$(self.$name,)*]
            }

            /// Adds another vCPU's counters. `mmu_unsync` is a gauge whose parts may wrap below 0.
            pub fn add(&mut self, other: &Counters) {
                $(self.$name = self.$name.wrapping_add(other.$name);)*
            }
        }
    };
}

counters! {
    /// Page faults that reached the MMU.
    pf_taken,
    /// Faults fixed by installing or changing an SPTE.
    pf_fixed,
    /// Accesses that were emulated: writes to write-protected tables; where the hardware may not set A or D (E107).
    pf_emulate,
    /// Faults that found the SPTE already right.
    pf_spurious,
    /// Faults injected into the guest.
    pf_guest,
    /// Accesses to a gpa in no memslot, and writes to a read-only one.
    mmio_exits,
    /// TLB flush requests served.
    tlb_flush,
    /// INVLPG instructions.
    invlpg,
    /// Shadow pages zapped.
    mmu_shadow_zapped,
    /// Emulated writes to shadowed tables.
    mmu_pte_write,
    /// Upper-level entries zapped by such writes.
    mmu_pde_zapped,
    /// Shadow pages zapped by write flooding or a misaligned write.
    mmu_flooded,
    /// Reverse maps recycled (E147).
    mmu_recycled,
    /// Shadow pages created.
    mmu_cache_miss,
    /// Gauge: shadow pages that are unsync now.
    mmu_unsync,
    /// Remote flushes that had to wait for another vCPU.
    remote_tlb_flush,
    /// Remote flushes asked for.
    remote_tlb_flush_requests,
}

/// A histogram of nanoseconds, from 1 ns to a minute, three digits.
#[derive(Clone, Debug, Default)]
pub struct Nanos {
    /// Made at the first record: it is 200 KB.
    histogram: Option<Box<Histogram<u64>>>,
    total: u64,
}

/// The usual figures of a [`Nanos`].
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Quantiles {
    /// Median.
    pub p50: u64,
    /// 99th percentile.
    pub p99: u64,
    /// Largest.
    pub max: u64,
    /// Sum of all.
    pub total: u64,
}

fn empty_histogram() -> Histogram<u64> {
    // The bounds are constants that `Histogram` accepts.
    Histogram::new_with_bounds(1, 60_000_000_000, 3).expect("constant bounds are valid")
}

impl Nanos {
    /// Records one duration.
    pub fn record(&mut self, nanos: u64) {
        self.histogram.get_or_insert_with(|| Box::new(empty_histogram())).saturating_record(nanos.max(1));
        self.total = self.total.saturating_add(nanos);
    }

    /// Adds another histogram.
    pub fn add(&mut self, other: &Nanos) {
        if let Some(theirs) = &other.histogram {
            // Same bounds on both sides, so the merge cannot be refused.
            let _ = self.histogram.get_or_insert_with(|| Box::new(empty_histogram())).add(&**theirs);
        }
        self.total = self.total.saturating_add(other.total);
    }

    /// Median, 99th percentile, maximum and sum; zeros if nothing was recorded.
    pub fn quantiles(&self) -> Quantiles {
        self.histogram.as_ref().map_or_else(Quantiles::default, |histogram| Quantiles {
            p50: histogram.value_at_quantile(0.5),
            p99: histogram.value_at_quantile(0.99),
            max: histogram.max(),
            total: self.total,
        })
    }
}

/// CR3 writes by what they cost, each vCPU's first left out (docs/machine.md, 8).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Cr3Stats {
    /// All of them: `same + lockless + locked()`.
    pub writes: u64,
    /// Writes of the value that was there.
    pub same: u64,
    /// Those of `same` that took the `mmu_lock`.
    pub same_locked: u64,
    /// Writes of another value that took no lock until the next guest access.
    pub lockless: u64,
    /// Writes of another value whose root was not cached.
    pub locked_miss: u64,
    /// Writes of another value that hit a cached root and had to sync it.
    pub locked_unsync: u64,
}

impl Cr3Stats {
    /// Writes of another value that took the lock.
    pub fn locked(&self) -> u64 {
        self.locked_miss + self.locked_unsync
    }

    /// Adds another vCPU's.
    pub fn add(&mut self, other: &Cr3Stats) {
        self.writes += other.writes;
        self.same += other.same;
        self.same_locked += other.same_locked;
        self.lockless += other.lockless;
        self.locked_miss += other.locked_miss;
        self.locked_unsync += other.locked_unsync;
    }
}

/// Everything one vCPU counts, or the sum over a machine.
#[derive(Clone, Debug, Default)]
pub struct VcpuStats {
    /// KVM's counters.
    pub counters: Counters,
    /// Use of the `mmu_lock`.
    pub lock: LockStats,
    /// CR3 writes by class.
    pub cr3: Cr3Stats,
    /// Durations of CR3 writes, where asked for.
    pub cr3_write: Option<Box<Nanos>>,
    /// Times that the whole TLB was flushed, whatever the cause.
    pub tlb_full_flushes: u64,
    /// Times that a shadow page was marked unsync (`mmu_unsync` is a gauge and does not tell).
    pub unsync_marks: u64,
    /// Shadow pages synced.
    pub sync_pages: u64,
    /// Those of them in which no entry changed.
    pub sync_pages_unchanged: u64,
}

impl VcpuStats {
    /// Empty statistics that keep the durations asked for.
    pub fn new(lock_times: bool, cr3_times: bool) -> Self {
        Self { lock: LockStats::new(lock_times), cr3_write: cr3_times.then(Box::default), ..Self::default() }
    }

    /// Adds another vCPU's.
    pub fn add(&mut self, other: &VcpuStats) {
        self.counters.add(&other.counters);
        self.lock.add(&other.lock);
        self.cr3.add(&other.cr3);
        if let Some(theirs) = &other.cr3_write {
            self.cr3_write.get_or_insert_default().add(theirs);
        }
        self.tlb_full_flushes += other.tlb_full_flushes;
        self.unsync_marks += other.unsync_marks;
        self.sync_pages += other.sync_pages;
        self.sync_pages_unchanged += other.sync_pages_unchanged;
    }
}

/// Statistics of a machine at rest.
#[derive(Clone, Debug, Default)]
pub struct Stats {
    /// The sum over vCPUs and the host's own operations.
    pub total: VcpuStats,
    /// Each vCPU's own.
    pub per_vcpu: Vec<VcpuStats>,
    /// Shadow pages in use now.
    pub shadow_pages_live: u64,
    /// Most shadow pages that were in use at once.
    pub shadow_pages_peak: u64,
    /// Bytes of SPTEs and metadata at that peak.
    pub shadow_bytes_peak: u64,
}
