//! The macro that declares the words a setting may be.

/// Declares an enum whose values are words, each with what it means.
///
/// ```
/// postroad_settings::choices! {
///     /// How log lines are written.
///     pub enum LogFormat {
///         /// For people.
///         Text = "text",
///         /// One JSON object per line.
///         Json = "json",
///     }
/// }
/// assert_eq!(LogFormat::Json.as_str(), "json");
/// ```
#[macro_export]
macro_rules! choices {
    (
        $(#[doc = $enum_doc:literal])*
        pub enum $name:ident {
            $( $(#[doc = $doc:literal])+ $variant:ident = $word:literal, )+
        }
    ) => {
        $(#[doc = $enum_doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum $name {
            $( $(#[doc = $doc])+ $variant, )+
        }

        impl $name {
            const ALL: &'static [Self] = &[$( Self::$variant, )+];
            const CHOICES: &'static [$crate::Choice] =
                &[$( $crate::Choice { name: $word, doc: concat!($($doc),+) }, )+];

            /// Returns the word.
            #[must_use]
            pub fn as_str(self) -> &'static str {
                Self::CHOICES[self as usize].name
            }
        }

        impl $crate::SettingValue for $name {
            fn kind() -> $crate::Kind {
                $crate::Kind::Choice(Self::CHOICES)
            }

            fn placeholder() -> Self {
                Self::ALL[0]
            }

            fn read(given: &$crate::Given, _reading: &mut $crate::Reading<'_>) -> Result<Self, $crate::Wrong> {
                given.scalar(|value| {
                    let word = value.as_str()?;
                    Self::ALL.iter().copied().find(|choice| choice.as_str() == word)
                })
            }

            fn write(&self) -> Option<$crate::toml::Value> {
                Some($crate::toml::Value::String(self.as_str().to_owned()))
            }
        }
    };
}
