//! How an already-unsync shadow page is brought under another root.

use core::fmt;
#[cfg(not(any(loom, explored)))]
use core::str::FromStr;

#[cfg(not(any(loom, explored)))]
use crate::error::{Error, Result};

/// The order of the steps when a fault links a level-1 page that the guest writes without faults (D.3, P12).
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub enum LinkPolicy {
    /// Mark the new parents, full fence, sync, link. A flush on another vCPU finds its root marked, or the new leaves.
    #[default]
    MarkFirst,
    /// Sync, link, mark: the order of the upstream code. With a flush that looks at the root without the lock, the
    /// model has an interleaving in which that flush finds the root clean and the leaves old.
    KvmOrder,
    /// Write-protect the table, wait, take its unsync mark away, sync, link: the page is clean when it is linked, and
    /// the guest's next store into the table faults.
    FullSync,
}

impl LinkPolicy {
    /// Every policy, the default first.
    pub const ALL: [LinkPolicy; 3] = [LinkPolicy::MarkFirst, LinkPolicy::KvmOrder, LinkPolicy::FullSync];

    /// The name: `mark-first`, `kvm` or `full-sync`.
    pub const fn name(self) -> &'static str {
        match self {
            LinkPolicy::MarkFirst => "mark-first",
            LinkPolicy::KvmOrder => "kvm",
            LinkPolicy::FullSync => "full-sync",
        }
    }
}

impl fmt::Display for LinkPolicy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

#[cfg(not(any(loom, explored)))]
impl FromStr for LinkPolicy {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        LinkPolicy::ALL.into_iter().find(|policy| policy.name() == text).ok_or_else(|| Error::Config {
            what: "link",
            got: text.into(),
            expected: LinkPolicy::ALL.map(LinkPolicy::name).join(", "),
        })
    }
}

#[cfg(all(test, not(any(loom, explored))))]
mod tests {
    use super::*;

    #[test]
    fn names_round_trip_and_another_is_refused_with_the_choices() {
        for policy in LinkPolicy::ALL {
            assert_eq!(policy.to_string().parse(), Ok(policy));
        }
        let refused = "upstream".parse::<LinkPolicy>().map_err(|error| error.to_string());
        assert!(refused.is_err_and(|text| text.contains("mark-first, kvm, full-sync")));
    }
}
