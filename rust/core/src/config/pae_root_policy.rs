//! Whether roots of four entries are cached.

use super::choice::choice;

choice! {
    /// What a CR3 write does with a root of four entries, the root of a 32-bit or PAE guest (E017).
    PaeRootPolicy, "pae_roots":
    /// It is freed, as by KVM: each switch takes the `mmu_lock`.
    Uncached = "uncached",
    /// It enters the root cache like the root of a 64-bit guest, which the 2018 patch names as future work.
    Cached = "cached",
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn e017_names_round_trip_and_another_is_refused_with_the_choices() {
        for &(name, choice) in PaeRootPolicy::ALL {
            assert_eq!((name.parse(), choice.to_string().as_str()), (Ok(choice), name));
        }
        assert_eq!(PaeRootPolicy::default(), PaeRootPolicy::Uncached);
        for text in ["", "Cached", "locked", "cached "] {
            let error = text.parse::<PaeRootPolicy>().map_err(|error| error.to_string());
            assert!(error.is_err_and(|said| said.contains("expected uncached, cached")), "{text}");
        }
    }
}
