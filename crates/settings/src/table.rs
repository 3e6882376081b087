//! The macro that declares a table of settings.

/// Declares a table of settings: its struct, and everything that is made from the declaration.
///
/// A setting without a default must be given, unless it is an `Option` or a table.
/// `within` gives bounds; `reload = true` says that a running process applies a new value on SIGHUP;
/// `rules` names a method that checks settings against each other with [`require!`](crate::require).
///
/// ```
/// use std::time::Duration;
///
/// postroad_settings::settings! {
///     /// How a listener treats its clients.
///     pub struct ListenerConfig {
///         /// Connections at the same time.
///         connections_max: usize = 1000, within 1..=100_000;
///         /// How long a client may take for one command.
///         command_timeout: Duration = Duration::from_mins(5), within Duration::from_secs(1)..=Duration::from_hours(1);
///         /// The name of the listener in the log.
///         name: Option<String>;
///     }
/// }
/// assert_eq!(ListenerConfig::default().connections_max, 1000);
/// ```
#[macro_export]
macro_rules! settings {
    (
        $(#[doc = $table_doc:literal])*
        pub struct $name:ident {
            $(
                $(#[doc = $doc:literal])+
                $field:ident : $type:ty $(= $default:expr)? $(, within $bounds:expr)? $(, reload = $reload:literal)? ;
            )*
        }
        $(rules $rules:path;)?
    ) => {
        $(#[doc = $table_doc])*
        #[derive(Clone, Debug, PartialEq)]
        pub struct $name {
            $( $(#[doc = $doc])+ pub $field: $type, )*
        }

        const _: () = {
            struct Fields {
                $( $field: $crate::Field<$type>, )*
            }

            fn fields() -> Fields {
                Fields {
                    $( $field: $crate::Field::<$type>::new(stringify!($field), concat!($($doc, "\n"),+))
                        $(.default($default))? $(.within($bounds))? $(.reload($reload))?, )*
                }
            }

            impl Default for $name {
                fn default() -> Self {
                    let fields = fields();
                    Self { $( $field: fields.$field.initial(), )* }
                }
            }

            impl $crate::SettingValue for $name {
                const OPTIONAL: bool = true;

                fn kind() -> $crate::Kind {
                    let fields = fields();
                    $crate::Kind::Table(vec![$( fields.$field.declare(), )*])
                }

                fn placeholder() -> Self {
                    Self::default()
                }

                fn read(
                    given: &$crate::Given,
                    reading: &mut $crate::Reading<'_>,
                ) -> Result<Self, $crate::Wrong> {
                    let fields = fields();
                    let mut reader = $crate::TableReader::new(given, reading)?;
                    let table = Self { $( $field: reader.field(&fields.$field), )* };
                    reader.finish();
                    $( $rules(&table, &mut $crate::Rules::new(reading)); )?
                    Ok(table)
                }

                fn absent(reading: &mut $crate::Reading<'_>) -> Self {
                    Self::read(&$crate::Given::nothing(), reading).unwrap_or_default()
                }

                fn write(&self) -> Option<$crate::toml::Value> {
                    let mut table = $crate::toml::Table::new();
                    $( if let Some(value) = $crate::SettingValue::write(&self.$field) {
                        table.insert(stringify!($field).to_owned(), value);
                    } )*
                    Some($crate::toml::Value::Table(table))
                }
            }
        };
    };
}
