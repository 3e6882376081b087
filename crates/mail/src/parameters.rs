//! Parameters of `Content-Type` and `Content-Disposition`, also as people write them: unquoted, with spaces and semicolons.

/// Returns the parameters of a field's value, names in lower case, values as they came.
pub(crate) fn of(value: &[u8]) -> Vec<(String, Vec<u8>)> {
    let value: Vec<u8> = value.iter().copied().filter(|byte| !matches!(byte, b'\r' | b'\n')).collect();
    let mut parameters = Vec::new();
    let mut rest = after_semicolon(&value);
    while let Some((name, from)) = rest.and_then(name) {
        let (value, after) = if let Some(quoted) = from.strip_prefix(b"\"") {
            quoted_value(quoted)
        } else {
            plain_value(from)
        };
        parameters.push((name, value));
        rest = after;
    }
    parameters
}

fn after_semicolon(value: &[u8]) -> Option<&[u8]> {
    Some(&value[memchr::memchr(b';', value)? + 1..])
}

/// Takes a name and `=`; empty parameters before it are skipped.
fn name(value: &[u8]) -> Option<(String, &[u8])> {
    let (name, after) = token(skip_empty(value))?;
    Some((String::from_utf8_lossy(name).to_ascii_lowercase(), after))
}

fn skip_empty(value: &[u8]) -> &[u8] {
    let is_empty = |byte: &u8| *byte == b';' || byte.is_ascii_whitespace();
    let start = value.iter().position(|byte| !is_empty(byte));
    &value[start.unwrap_or(value.len())..]
}

/// A token and what follows its `=`.
fn token(value: &[u8]) -> Option<(&[u8], &[u8])> {
    let is_token = |byte: &u8| byte.is_ascii_alphanumeric() || b"-_*.'%!#$&+^`|~".contains(byte);
    let end = value.iter().position(|byte| !is_token(byte))?;
    let after = value[end..].trim_ascii_start().strip_prefix(b"=")?;
    (end > 0).then(|| (&value[..end], after.trim_ascii_start()))
}

fn quoted_value(value: &[u8]) -> (Vec<u8>, Option<&[u8]>) {
    let mut out = Vec::new();
    let mut rest = value;
    while let Some((byte, after)) = rest.split_first() {
        rest = after;
        match (byte, after.first()) {
            (b'"', _) => break,
            (b'\\', Some(escaped)) => {
                out.push(*escaped);
                rest = &after[1..];
            }
            _ => out.push(*byte),
        }
    }
    (out, after_semicolon(rest))
}

/// The value ends at a semicolon that begins another parameter, or ends the field.
fn plain_value(value: &[u8]) -> (Vec<u8>, Option<&[u8]>) {
    let mut from = 0;
    while let Some(at) = memchr::memchr(b';', &value[from..]).map(|at| from + at) {
        let after = skip_empty(&value[at + 1..]);
        if after.is_empty() || token(after).is_some() {
            return (value[..at].trim_ascii().to_vec(), Some(after));
        }
        from = value.len() - after.len();
    }
    (value.trim_ascii().to_vec(), None)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters_are_read_as_people_mean_them() {
        let check = |value: &str, expected: &[(&str, &str)]| {
            let found = of(value.as_bytes());
            let found: Vec<(&str, &str)> = found
                .iter()
                .map(|(name, value)| (name.as_str(), std::str::from_utf8(value).unwrap()))
                .collect();
            assert_eq!(found, expected, "{value}");
        };
        check("application/pdf; name=a b;c.pdf", &[("name", "a b;c.pdf")]);
        check("application/pdf; name=a b;c.pdf; size=3", &[("name", "a b;c.pdf"), ("size", "3")]);
        check(
            "attachment; filename=\"a;b \\\"c\\\".pdf\" ; size=3;",
            &[("filename", "a;b \"c\".pdf"), ("size", "3")],
        );
        check(
            "text/plain;\r\n\tCHARSET = utf-8 ;; format=flowed",
            &[("charset", "utf-8"), ("format", "flowed")],
        );
        check("text/plain; charset=\"unclosed", &[("charset", "unclosed")]);
        check("attachment; filename*=utf-8''a%20b.pdf", &[("filename*", "utf-8''a%20b.pdf")]);
        check("text/plain", &[]);
        check("text/plain; charset", &[]);
        check("text/plain; charset=;", &[("charset", "")]);
    }
}
