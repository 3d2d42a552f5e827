//! Ids: a prefix that says of what, and random lower-case letters and digits, so that they need no escaping anywhere.

/// Most characters after the prefix.
pub(crate) const REST_MAX: usize = 40;

/// Defines an id type with a prefix.
macro_rules! text_id {
    ($(#[$meta:meta])* $visibility:vis $name:ident, $prefix:literal) => {
        $(#[$meta])*
        #[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize)]
        #[serde(transparent)]
        $visibility struct $name(String);

        impl $name {
            /// The id in `text`, if it has the form of one.
            $visibility fn parse(text: &str) -> Option<Self> {
                let rest = text.strip_prefix($prefix)?;
                let fine = (1..=$crate::id::REST_MAX).contains(&rest.len())
                    && rest.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit());
                fine.then(|| Self(text.to_owned()))
            }

            /// A fresh id: 80 random bits.
            pub(crate) fn generate() -> Self {
                Self(format!("{}{}", $prefix, $crate::random::letters::<16>()))
            }

            /// The id as text.
            $visibility fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}

pub(crate) use text_id;
