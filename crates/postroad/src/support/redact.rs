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
    let mut kept: Vec<String> = Vec::new();
    let mut within = Within::Nothing;
    for line in text.split_inclusive('\n') {
        if within.hides(line) {
            continue;
        }
        if begins_key(line) {
            kept.push(format!("{REMOVED}\n"));
            if !ends_key(line) {
                within = Within::Key;
            }
        } else if ends_key(line) {
            // A log that begins in the middle of a key: what is before its last line is its body.
            while kept.pop_if(|line| is_body_of_key(line)).is_some() {}
            kept.push(format!("{REMOVED}\n"));
        } else {
            let Redacted { text, within: next } = redact_line(line);
            kept.push(text);
            within = next;
        }
    }
    kept.concat()
}

/// What the lines before the next one have begun.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Within {
    Nothing,
    /// A private key, up to its last line.
    Key,
    /// The value of a secret field, on lines that are indented deeper than the field.
    Block {
        indent: usize,
    },
    /// The value of a secret field between quotes of three characters.
    Quoted(&'static str),
}

impl Within {
    /// Whether a line belongs to the secret that has begun; ends it where the line does.
    fn hides(&mut self, line: &str) -> bool {
        match *self {
            Self::Nothing => false,
            Self::Key => {
                if ends_key(line) {
                    *self = Self::Nothing;
                }
                true
            }
            Self::Block { indent } => {
                let hidden = line.trim().is_empty() || indent_of(line) > indent;
                if !hidden {
                    *self = Self::Nothing;
                }
                hidden
            }
            Self::Quoted(quotes) => {
                if line.contains(quotes) {
                    *self = Self::Nothing;
                }
                true
            }
        }
    }
}

fn indent_of(line: &str) -> usize {
    // An item of a list is as deep as its first field.
    line.len() - line.trim_start_matches([' ', '\t', '-']).len()
}

fn begins_key(line: &str) -> bool {
    line.contains("-----BEGIN ") && line.contains("PRIVATE KEY")
}

fn ends_key(line: &str) -> bool {
    line.contains("-----END ") && line.contains("PRIVATE KEY")
}

/// Base64, as the lines of PEM are.
fn is_body_of_key(line: &str) -> bool {
    let line = line.trim();
    !line.is_empty() && line.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"+/=".contains(&byte))
}

/// A line without secrets, and what it begins.
struct Redacted {
    text: String,
    within: Within,
}

fn redact_line(line: &str) -> Redacted {
    let line = without_verifiers(line);
    let line = without_url_logins(&line);
    let line = without_smtp_logins(&line);
    without_values(&line)
}

/// PHC strings, such as `$argon2id$v=19$…`.
fn without_verifiers(line: &str) -> String {
    replace_from(line, "$argon2", |rest| rest.find(ends_word).unwrap_or(rest.len()))
}

/// `user:password@` in URLs; the password may have any character but blanks and quotes.
fn without_url_logins(line: &str) -> String {
    let mut kept = String::with_capacity(line.len());
    let mut rest = line;
    while let Some(at) = rest.find("://") {
        let (before, after) = rest.split_at(at + 3);
        kept.push_str(before);
        let ends_url = |c: char| c.is_whitespace() || matches!(c, '"' | '\'' | '<' | '>' | '`');
        let url = &after[..after.find(ends_url).unwrap_or(after.len())];
        let authority = &url[..url.find('/').unwrap_or(url.len())];
        let login_ends = match authority.rfind('@') {
            // Of `me:p/w@host` the password has the slash; of `host:80/a@b` more is removed than is needed.
            None if authority.contains(':') => url.rfind('@'),
            end => end,
        };
        rest = match login_ends {
            Some(end) => {
                kept.push_str(REMOVED);
                &after[end..]
            }
            None => after,
        };
    }
    kept + rest
}

/// `AUTH PLAIN AGFhAGJi`, as SMTP has it.
fn without_smtp_logins(line: &str) -> String {
    let lower = line.to_ascii_lowercase();
    let at = ["auth plain ", "auth login "]
        .iter()
        .filter_map(|command| Some(lower.find(command)? + command.len()));
    match at.min() {
        Some(at) if !line[at..].trim().is_empty() => format!("{}{REMOVED}{}", &line[..at], end_of(line)),
        _ => line.to_owned(),
    }
}

/// `password: value`, `token = "value"`, `"api_key":"value"`, `Authorization: Bearer value`, `--password value`.
fn without_values(line: &str) -> Redacted {
    let lower = line.to_ascii_lowercase();
    // Positions are the same in both: only ASCII letters differ.
    let value = SECRET_NAMES.iter().filter_map(|name| value_of(&lower, name)).min();
    let Some(value) = value else { return Redacted { text: line.to_owned(), within: Within::Nothing } };
    let (field, written) = (&line[..value], line[value..].trim());
    let quotes = ["\"\"\"", "\'\'\'"].into_iter().find(|quotes| written.matches(quotes).count() == 1);
    let within = match quotes {
        Some(quotes) => Within::Quoted(quotes),
        None if written.is_empty() || written.starts_with(['|', '>']) => {
            Within::Block { indent: indent_of(line) }
        }
        None => Within::Nothing,
    };
    let text = if written.is_empty() {
        line.to_owned()
    } else {
        // The rest of the line: a value may have spaces.
        format!("{} {REMOVED}{}", field.trim_end_matches(' '), end_of(line))
    };
    Redacted { text, within }
}

/// Where the value begins of the first field or flag whose name ends so.
fn value_of(lower: &str, name: &str) -> Option<usize> {
    let mut from = 0;
    while let Some(at) = lower[from..].find(name) {
        let (start, end) = (from + at, from + at + name.len());
        from = end;
        let rest = lower[end..].trim_start_matches(['"', '\'', ' ', '\t']);
        let is_flag = rest.trim_start_matches([':', '=', ' ']).trim_end() == "true";
        if rest.starts_with([':', '=']) && !is_flag {
            return Some(lower.len() - rest.len() + 1);
        }
        let word = lower[..start].rfind(char::is_whitespace).map_or(0, |blank| blank + 1);
        if lower[word..].trim_start_matches(['"', '\'', '[', '(']).starts_with("--")
            && lower[end..].starts_with([' ', '"', '\''])
        {
            return Some(end);
        }
    }
    None
}

fn end_of(line: &str) -> &'static str {
    if line.ends_with('\n') { "\n" } else { "" }
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
        // A value on the lines below its field.
        check(
            "  password: |\n    correct\n\n    horse\n  login: me\n",
            "  password: (removed)\n  login: me\n",
        );
        check("- password:\n    horse\n  login: me\n", "- password:\n  login: me\n");
        check("secret = \"\"\"\nhorse\n\"\"\"\nnode = 1\n", "secret = (removed)\nnode = 1\n");
        // A command line, and a session.
        check("ran: tool --password horse --x\nnext\n", "ran: tool --password (removed)\nnext\n");
        check("the password was wrong\n", "the password was wrong\n");
        check("C: AUTH PLAIN AGFhAGJi\nS: 235\n", "C: AUTH PLAIN (removed)\nS: 235\n");
        check("C: auth login dXNlcg==\n", "C: auth login (removed)\n");
        check("250-AUTH PLAIN LOGIN\n", "250-AUTH PLAIN (removed)\n");
        check("see http://me:p/w@host/x\n", "see http://(removed)@host/x\n");
        check("see http://me:p,w)@host/x\n", "see http://(removed)@host/x\n");
        check("http://host:80/x and me@host\n", "http://host:80/x and me@host\n");
        // A log that begins within a key.
        check("MIIse+cret\nmore==\n-----END PRIVATE KEY-----\nb\n", "(removed)\nb\n");
        check("a b\nmore==\n-----END EC PRIVATE KEY-----\n", "a b\n(removed)\n");
    }
}
