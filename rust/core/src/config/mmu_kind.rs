//! What stands between the guest's tables and the hardware.

use super::choice::choice;

choice! {
    /// How a guest address becomes a host one.
    MmuKind, "mmu":
    /// The hardware walks shadow tables, made from the guest's.
    Shadow = "shadow",
    /// The hardware walks the guest's own tables, and each address in them through direct tables (E044): two-dimensional paging.
    Tdp = "tdp",
}

impl MmuKind {
    /// Whether the guest's tables are walked by the hardware, and none is shadowed.
    pub const fn is_tdp(self) -> bool {
        matches!(self, MmuKind::Tdp)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn e044_names_round_trip_and_another_is_refused_with_the_choices() {
        for &(name, kind) in MmuKind::ALL {
            assert_eq!((name.parse(), kind.to_string().as_str()), (Ok(kind), name));
        }
        let refused = "ept".parse::<MmuKind>().map_err(|error| error.to_string());
        assert!(refused.is_err_and(|text| text.contains("shadow, tdp")));
    }
}
