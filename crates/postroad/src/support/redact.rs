//! Removes what looks like a secret from a text: private keys, verifiers of passwords, passwords in URLs, and the values of
//! fields whose names say that they are secret.

/// What replaces a secret.
const REMOVED: &str = "(removed)";
/// A field whose name ends so has a secret value.
const SECRET_NAMES: &[&str] = &[
    "password",
    "password_hash",
    "passwd",
    "secret",
    "token",
    "api_key",
    "api-key",
    "apikey",
    "authorization",
];

/// Returns the text without secrets.
pub(super) fn redact(text: &str) -> String {
    let mut kept = String::with_capacity(text.len());
    let mut in_key = false;
    for line in text.split_inclusive('\n') {
        let begins = line.contains("-----BEGIN ") && line.contains("PRIVATE KEY");
        if begins {
            kept.push_str(REMOVED);
            kept.push('\n');
        } else if !in_key {
            kept.push_str(&redact_line(line));
        }
        in_key = (in_key || begins) && !(line.contains("-----END ") && line.contains("PRIVATE KEY"));
    }
    kept
}

fn redact_line(line: &str) -> String {
    let line = without_verifiers(line);
    let line = without_logins(&line);
    without_values(&line)
}

/// PHC strings, such as `$argon2id$v=19$…`.
fn without_verifiers(line: &str) -> String {
    replace_from(line, "$argon2", |rest| rest.find(ends_word).unwrap_or(rest.len()))
}

/// `user:password@` in URLs.
fn without_logins(line: &str) -> String {
    let mut kept = String::with_capacity(line.len());
    let mut rest = line;
    while let Some(at) = rest.find("://") {
        let (before, after) = rest.split_at(at + 3);
        kept.push_str(before);
        let authority = after.find(|c: char| c == '/' || ends_word(c)).unwrap_or(after.len());
        rest = match after[..authority].rfind('@') {
            Some(end) => {
                kept.push_str(REMOVED);
                &after[end..]
            }
            None => after,
        };
    }
    kept + rest
}

/// `password: value`, `token = "value"`, `"api_key":"value"`, `Authorization: Bearer value`.
fn without_values(line: &str) -> String {
    let lower = line.to_ascii_lowercase();
    // Positions are the same in both: only ASCII letters differ.
    let mut cut: Option<usize> = None;
    for name in SECRET_NAMES {
        let mut from = 0;
        while let Some(at) = lower[from..].find(name) {
            let end = from + at + name.len();
            from = end;
            let rest = lower[end..].trim_start_matches(['"', '\'', ' ', '\t']);
            let is_flag = rest.trim_start_matches([':', '=', ' ']).trim_end() == "true";
            if rest.starts_with([':', '=']) && !is_flag {
                let value = lower.len() - rest.len() + 1;
                cut = Some(cut.map_or(value, |cut: usize| cut.min(value)));
            }
        }
    }
    match cut {
        // The rest of the line: a value may have spaces.
        Some(value) if !line[value..].trim().is_empty() => {
            let end = if line.ends_with('\n') { "\n" } else { "" };
            format!("{} {REMOVED}{end}", &line[..value])
        }
        _ => line.to_owned(),
    }
}

fn ends_word(c: char) -> bool {
    c.is_whitespace() || matches!(c, '"' | '\'' | '<' | '>' | ',' | ')' | '}' | ']')
}

/// Replaces every part of a line that begins with `start`; `length` says how long the part is.
fn replace_from(line: &str, start: &str, length: impl Fn(&str) -> usize) -> String {
    let mut kept = String::with_capacity(line.len());
    let mut rest = line;
    while let Some(at) = rest.find(start) {
        kept.push_str(&rest[..at]);
        kept.push_str(REMOVED);
        rest = &rest[at + length(&rest[at..])..];
    }
    kept + rest
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn c_150_secrets_are_removed_and_the_rest_stays() {
        let check = |text: &str, expected: &str| assert_eq!(redact(text), expected, "{text:?}");
        check("tenants:\n- name: acme\n", "tenants:\n- name: acme\n");
        check("  password: correct horse\nnext", "  password: (removed)\nnext");
        check("{\"api_key\":\"abc\",\"x\":1}", "{\"api_key\": (removed)");
        check("Authorization: Bearer abc\n", "Authorization: (removed)\n");
        check("smtp_password = \"x\"", "smtp_password = (removed)");
        check("a $argon2id$v=19$m=1$c2FsdA$aGFzaA b", "a (removed) b");
        check("otlp = \"http://me:pw@host:4317/x\"\n", "otlp = \"http://(removed)@host:4317/x\"\n");
        check("see https://host/a@b and http://x", "see https://host/a@b and http://x");
        check(
            "a\n-----BEGIN PRIVATE KEY-----\nMIIsecret\n-----END PRIVATE KEY-----\nb\n",
            "a\n(removed)\nb\n",
        );
        check("-----BEGIN CERTIFICATE-----\nMII\n", "-----BEGIN CERTIFICATE-----\nMII\n");
        // The flag of an exported policy is no secret, nor is a heading without a value.
        check("  stored_secret: true\n", "  stored_secret: true\n");
        check("password:\n", "password:\n");
    }
}
