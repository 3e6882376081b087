//! The types that a setting can have: how each is read from TOML and written.

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    str::FromStr,
    time::Duration,
};

use ipnet::IpNet;
use postroad_core::{ByteSize, ClusterId, Domain, DurationText, NodeId};
use toml::Value;

use crate::{Given, Item, Kind, Reading, Wrong};

/// A type that a setting can have.
pub trait SettingValue: Clone + Sized {
    /// A setting of this type may be left out though no default is declared.
    const OPTIONAL: bool = false;

    /// Returns what its values look like.
    fn kind() -> Kind;

    /// Returns what a setting holds while the other errors of its file are looked for. No role ever sees it.
    fn placeholder() -> Self;

    /// Writes the value as `config print` shows it; `None` for one that does not exist.
    fn write(&self) -> Option<Value>;

    /// Reads the value as it was given.
    ///
    /// # Errors
    /// It is not one of this type.
    fn read(given: &Given, reading: &mut Reading<'_>) -> Result<Self, Wrong>;

    /// Returns the value of a setting that was left out, for types that are [`SettingValue::OPTIONAL`].
    fn absent(_reading: &mut Reading<'_>) -> Self {
        Self::placeholder()
    }
}

impl SettingValue for bool {
    fn kind() -> Kind {
        Kind::Flag
    }

    fn placeholder() -> Self {
        false
    }

    fn read(given: &Given, _reading: &mut Reading<'_>) -> Result<Self, Wrong> {
        given.scalar(|value| value.as_bool())
    }

    fn write(&self) -> Option<Value> {
        Some(Value::Boolean(*self))
    }
}

macro_rules! integers {
    ($($type:ty),*) => {$(
        impl SettingValue for $type {
            fn kind() -> Kind {
                Kind::Integer
            }

            fn placeholder() -> Self {
                0
            }

            fn read(given: &Given, _reading: &mut Reading<'_>) -> Result<Self, Wrong> {
                given.scalar(|value| value.as_integer()?.try_into().ok())
            }

            fn write(&self) -> Option<Value> {
                i64::try_from(*self).ok().map(Value::Integer)
            }
        }
    )*};
}

integers!(u8, u16, u32, u64, usize);

macro_rules! ids {
    ($($type:ident),*) => {$(
        impl SettingValue for $type {
            fn kind() -> Kind {
                Kind::Integer
            }

            fn placeholder() -> Self {
                Self(0)
            }

            fn read(given: &Given, reading: &mut Reading<'_>) -> Result<Self, Wrong> {
                u64::read(given, reading).map(Self)
            }

            fn write(&self) -> Option<Value> {
                self.0.write()
            }
        }
    )*};
}

ids!(ClusterId, NodeId);

impl SettingValue for f64 {
    fn kind() -> Kind {
        Kind::Fraction
    }

    fn placeholder() -> Self {
        0.0
    }

    fn read(given: &Given, _reading: &mut Reading<'_>) -> Result<Self, Wrong> {
        given.scalar(|value| match value {
            Value::Float(number) => Some(*number),
            Value::Integer(number) => i32::try_from(*number).ok().map(Self::from),
            _ => None,
        })
    }

    fn write(&self) -> Option<Value> {
        Some(Value::Float(*self))
    }
}

impl SettingValue for ByteSize {
    fn kind() -> Kind {
        Kind::Size
    }

    fn placeholder() -> Self {
        Self(0)
    }

    fn read(given: &Given, _reading: &mut Reading<'_>) -> Result<Self, Wrong> {
        given.scalar(|value| match value {
            Value::String(text) => text.parse().ok(),
            Value::Integer(bytes) => u64::try_from(*bytes).ok().map(Self),
            _ => None,
        })
    }

    fn write(&self) -> Option<Value> {
        Some(Value::String(self.to_string()))
    }
}

impl SettingValue for Duration {
    fn kind() -> Kind {
        Kind::Duration
    }

    fn placeholder() -> Self {
        Self::ZERO
    }

    fn read(given: &Given, _reading: &mut Reading<'_>) -> Result<Self, Wrong> {
        given.scalar(|value| value.as_str()?.parse().ok().map(|DurationText(duration)| duration))
    }

    fn write(&self) -> Option<Value> {
        Some(Value::String(DurationText(*self).to_string()))
    }
}

/// Types that are text in TOML: what they are, an example, a placeholder, how they are read and written.
macro_rules! texts {
    ($($type:ty: $what:literal, $example:literal, $placeholder:expr, $parse:expr;)*) => {$(
        impl SettingValue for $type {
            fn kind() -> Kind {
                Kind::Text { what: $what, example: $example }
            }

            fn placeholder() -> Self {
                $placeholder
            }

            fn read(given: &Given, _reading: &mut Reading<'_>) -> Result<Self, Wrong> {
                let parse: fn(&str) -> Option<Self> = $parse;
                given.scalar(|value| value.as_str().and_then(parse))
            }

            fn write(&self) -> Option<Value> {
                Some(Value::String(self.to_string()))
            }
        }
    )*};
}

const UNSPECIFIED: IpAddr = IpAddr::V4(Ipv4Addr::UNSPECIFIED);

texts! {
    SocketAddr: "an IP address and port", "127.0.0.1:8080", Self::new(UNSPECIFIED, 0), |text| text.parse().ok();
    IpAddr: "an IP address", "192.0.2.1", UNSPECIFIED, |text| text.parse().ok();
    IpNet: "a network", "10.0.0.0/8", Self::from(UNSPECIFIED), |text| text.parse().ok();
    Domain: "a host name", "mail.example.org", localhost(), |text| Self::parse(text).ok();
    HostPort: "a host and port", "q1.example.org:7400", Self(String::new()), |text| text.parse().ok();
}

fn localhost() -> Domain {
    Domain::parse("localhost").expect("a label is a name")
}

/// A host, by name or address, and a port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostPort(String);

impl HostPort {
    /// Returns it as `HOST:PORT`.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Returns the host, an IPv6 address in its brackets.
    #[must_use]
    pub fn host(&self) -> &str {
        self.0.rsplit_once(':').map_or("", |(host, _)| host)
    }

    /// Returns the port.
    #[must_use]
    pub fn port(&self) -> &str {
        self.0.rsplit_once(':').map_or("", |(_, port)| port)
    }
}

/// The text is not a host and a port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HostPortError;

impl fmt::Display for HostPortError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("expected HOST:PORT")
    }
}

impl std::error::Error for HostPortError {}

impl FromStr for HostPort {
    type Err = HostPortError;

    fn from_str(text: &str) -> Result<Self, HostPortError> {
        let (host, port) = text.rsplit_once(':').ok_or(HostPortError)?;
        let is_port = port.parse::<u16>().is_ok_and(|port| port > 0);
        let bare = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
        let is_host = match bare {
            Some(address) => address.parse::<std::net::Ipv6Addr>().is_ok(),
            None => Domain::parse(host).is_ok() || host.parse::<Ipv4Addr>().is_ok(),
        };
        if is_host && is_port { Ok(Self(text.to_owned())) } else { Err(HostPortError) }
    }
}

impl fmt::Display for HostPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Left out, there is none.
impl<T: SettingValue> SettingValue for Option<T> {
    const OPTIONAL: bool = true;

    fn kind() -> Kind {
        T::kind()
    }

    fn placeholder() -> Self {
        None
    }

    fn write(&self) -> Option<Value> {
        self.as_ref().and_then(T::write)
    }

    fn read(given: &Given, reading: &mut Reading<'_>) -> Result<Self, Wrong> {
        T::read(given, reading).map(Some)
    }
}

impl<T: SettingValue> SettingValue for Vec<T> {
    fn kind() -> Kind {
        Kind::List(Box::new(T::kind()))
    }

    fn placeholder() -> Self {
        Self::new()
    }

    fn write(&self) -> Option<Value> {
        Some(Value::Array(self.iter().filter_map(T::write).collect()))
    }

    fn read(given: &Given, reading: &mut Reading<'_>) -> Result<Self, Wrong> {
        let Item::List(items) = &given.item else { return Err(Wrong::Unexpected) };
        let mut values = Self::with_capacity(items.len());
        for (index, item) in items.iter().enumerate() {
            let path = format!("{}[{index}]", reading.path());
            let expected = || format!("expected {}", T::kind());
            values.extend(reading.at(path, |reading| reading.value::<T>(item, expected)));
        }
        if values.len() == items.len() { Ok(values) } else { Err(Wrong::Reported) }
    }
}

/// Any text.
impl SettingValue for String {
    fn kind() -> Kind {
        Kind::Text { what: "text", example: "text" }
    }

    fn placeholder() -> Self {
        Self::new()
    }

    fn read(given: &Given, _reading: &mut Reading<'_>) -> Result<Self, Wrong> {
        given.scalar(|value| value.as_str().map(str::to_owned))
    }

    fn write(&self) -> Option<Value> {
        Some(Value::String(self.clone()))
    }
}
