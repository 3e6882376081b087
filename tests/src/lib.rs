//! Tests of the whole system are in this package's `tests` directory; this library is empty.
