//! Options that are one of a few names.

/// An enum of names: the text of each, its display and its parsing. The first variant is the default.
macro_rules! choice {
    (
        $(#[$doc:meta])* $kind:ident, $what:literal:
        $(#[$first_doc:meta])* $first:ident = $first_text:literal,
        $($(#[$more_doc:meta])* $more:ident = $more_text:literal,)*
    ) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
        pub enum $kind {
            $(#[$first_doc])*
            #[default]
            $first,
            $($(#[$more_doc])* $more,)*
        }

        impl $kind {
            /// Every choice with its name, the default first.
            pub const ALL: &'static [(&'static str, $kind)] =
                &[($first_text, $kind::$first), $(($more_text, $kind::$more),)*];
        }

        impl core::fmt::Display for $kind {
            fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
                f.write_str(Self::ALL[*self as usize].0)
            }
        }

        impl core::str::FromStr for $kind {
            type Err = crate::error::Error;

            fn from_str(text: &str) -> crate::error::Result<Self> {
                Self::ALL.iter().find(|(name, _)| *name == text).map(|&(_, choice)| choice).ok_or_else(|| {
                    crate::error::Error::Config {
                        what: $what,
                        got: text.into(),
                        expected: Self::ALL.iter().map(|(name, _)| *name).collect::<Vec<_>>().join(", "),
                    }
                })
            }
        }
    };
}
pub(super) use choice;
