//! One setting of a table while it is declared, with the type of its values.

use std::{
    cmp::Ordering,
    ops::{RangeFrom, RangeInclusive},
};

use crate::{Setting, SettingValue};

/// The declaration of one setting.
pub struct Field<T> {
    name: &'static str,
    doc: &'static str,
    default: Option<T>,
    bounds: Option<(Bounds<T>, Compare<T>)>,
    reload: bool,
}

type Compare<T> = fn(&T, &T) -> Option<Ordering>;

/// The smallest and the largest value.
#[derive(Clone, Debug)]
pub struct Bounds<T> {
    min: T,
    max: Option<T>,
}

impl<T> From<RangeInclusive<T>> for Bounds<T> {
    fn from(range: RangeInclusive<T>) -> Self {
        let (min, max) = range.into_inner();
        Self { min, max: Some(max) }
    }
}

impl<T> From<RangeFrom<T>> for Bounds<T> {
    fn from(range: RangeFrom<T>) -> Self {
        Self { min: range.start, max: None }
    }
}

impl<T: SettingValue> Field<T> {
    /// Begins the declaration of a setting that must be given, unless its type may be left out.
    #[must_use]
    pub fn new(name: &'static str, doc: &'static str) -> Self {
        Self { name, doc, default: None, bounds: None, reload: false }
    }

    /// Gives it a default.
    #[must_use]
    pub fn default(self, default: T) -> Self {
        Self { default: Some(default), ..self }
    }

    /// Says which values it may have.
    #[must_use]
    pub fn within(self, bounds: impl Into<Bounds<T>>) -> Self
    where
        T: PartialOrd,
    {
        Self { bounds: Some((bounds.into(), T::partial_cmp)), ..self }
    }

    /// Says whether a running process applies a new value.
    #[must_use]
    pub fn reload(self, reload: bool) -> Self {
        Self { reload, ..self }
    }

    /// Returns the key.
    pub(crate) fn name(&self) -> &'static str {
        self.name
    }

    /// Returns true when the setting need not be given.
    pub(crate) fn is_optional(&self) -> bool {
        T::OPTIONAL || self.default.is_some()
    }

    /// Returns the value when it is left out; of a setting that must be given, the placeholder.
    #[must_use]
    pub fn initial(&self) -> T {
        self.default.clone().unwrap_or_else(T::placeholder)
    }

    /// Returns the default, where one is declared.
    pub(crate) fn declared_default(&self) -> Option<T> {
        self.default.clone()
    }

    /// Returns true when a value is within the bounds.
    pub(crate) fn allows(&self, value: &T) -> bool {
        let Some((Bounds { min, max }, compare)) = &self.bounds else { return true };
        let at_least = compare(min, value).is_some_and(Ordering::is_le);
        at_least && max.as_ref().is_none_or(|max| compare(value, max).is_some_and(Ordering::is_le))
    }

    /// Returns the declaration as data.
    #[must_use]
    pub fn declare(&self) -> Setting {
        let bounds = self.bounds.as_ref().map(|(bounds, _)| bounds);
        Setting {
            name: self.name,
            doc: self.doc.lines().map(str::trim).collect::<Vec<_>>().join(" ").trim().to_owned(),
            kind: T::kind(),
            default: self.default.as_ref().and_then(T::write),
            required: !self.is_optional(),
            min: bounds.and_then(|bounds| bounds.min.write()),
            max: bounds.and_then(|bounds| bounds.max.as_ref()).and_then(T::write),
            reload: self.reload,
        }
    }
}
