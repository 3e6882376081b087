//! Tests of the whole live in this package's `tests` folder; there is nothing here to use.
