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

/// Mechanisms of AUTH that clients write in small letters, too.
const MECHANISMS: &[&str] = &[
    "plain",
    "login",
    "cram-md5",
    "digest-md5",
    "ntlm",
    "oauthbearer",
    "scram-sha-1",
    "scram-sha-256",
    "xoauth2",
];

/// Returns the text without secrets.
pub(super) fn redact(text: &str) -> String {
    let mut kept: Vec<String> = Vec::new();
    let mut within = Within::Nothing;
    for line in text.split_inclusive('\n') {
        match within.hides(line) {
            Hidden::No => {}
            Hidden::WithItsField => continue,
            Hidden::ByItself => {
                kept.push(format!("{REMOVED}{}", end_of(line)));
                continue;
            }
        }
        if begins_key(line) {
            kept.push(format!("{REMOVED}\n"));
            if !ends_key(line) {
                within = Within::Key;
            }
        } else if ends_key(line) {
            // A log that begins in the middle of a key: what is before its last line is its body.
            while kept.pop_if(|line| is_base64(line)).is_some() {}
            kept.push(format!("{REMOVED}\n"));
        } else {
            let Redacted { text, within: next } = redact_line(line);
            kept.push(text);
            if next != Within::Nothing {
                within = next;
            }
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
    /// The value of a secret flag, on the next line that has something.
    Item,
    /// An SMTP client proves who it is: its lines of base64, up to the reply that ends that.
    Login,
}

/// Whether a line is left out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Hidden {
    No,
    /// The line of its field says that something was removed.
    WithItsField,
    ByItself,
}

impl Within {
    /// Whether a line belongs to the secret that has begun; ends it where the line does.
    fn hides(&mut self, line: &str) -> Hidden {
        match *self {
            Self::Nothing => Hidden::No,
            Self::Key => {
                if ends_key(line) {
                    *self = Self::Nothing;
                }
                Hidden::WithItsField
            }
            Self::Block { indent } => {
                if line.trim().is_empty() || indent_of(line) > indent {
                    return Hidden::WithItsField;
                }
                *self = Self::Nothing;
                Hidden::No
            }
            Self::Quoted(quotes) => {
                if line.contains(quotes) {
                    *self = Self::Nothing;
                }
                Hidden::WithItsField
            }
            Self::Item => {
                if line.trim().is_empty() {
                    return Hidden::No;
                }
                *self = Self::Nothing;
                Hidden::ByItself
            }
            Self::Login => match reply_of(line) {
                Some(b'3') => Hidden::No,
                Some(_) => {
                    *self = Self::Nothing;
                    Hidden::No
                }
                None if ends_in_base64(line) => Hidden::ByItself,
                None => Hidden::No,
            },
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

/// Base64, as the lines of PEM are and the responses of AUTH.
fn is_base64(line: &str) -> bool {
    let line = line.trim();
    !line.is_empty() && line.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"+/=".contains(&byte))
}

/// Whether the line, or a text between quotes in it, ends in a word of base64, as a client's response in a session does. Other
/// words may look like that, too.
fn ends_in_base64(line: &str) -> bool {
    let texts = line.split(['"', '\'', '`']).map(without_written_end);
    texts.filter_map(|text| text.split_whitespace().next_back()).any(is_base64)
}

/// Removes a line end that is written as JSON has it.
fn without_written_end(text: &str) -> &str {
    text.trim_end().trim_end_matches("\\n").trim_end_matches("\\r")
}

/// Returns the first digit of the SMTP reply in a line of a session, which may have a mark before it, such as `S:` or `<~`.
fn reply_of(line: &str) -> Option<u8> {
    let mut before = "";
    for word in line.split(|c: char| c.is_whitespace() || matches!(c, '"' | '\'')) {
        let code = without_written_end(word).split('-').next().unwrap_or_default().as_bytes();
        // In `took 235 ms` it is another number.
        let is_marked = !before.ends_with(|c: char| c.is_ascii_alphanumeric());
        if let ([first @ b'2'..=b'5', b'0'..=b'9', b'0'..=b'9'], true) = (code, is_marked) {
            return Some(*first);
        }
        if !word.is_empty() {
            before = word;
        }
    }
    None
}

/// A line without secrets, and what it begins.
struct Redacted {
    text: String,
    within: Within,
}

fn redact_line(line: &str) -> Redacted {
    let line = without_verifiers(line);
    let line = without_url_logins(&line);
    let Redacted { text, within: login } = without_smtp_login(&line);
    let Redacted { text, within } = without_values(&text);
    Redacted { text, within: if within == Within::Nothing { login } else { within } }
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

/// `AUTH PLAIN AGFhAGJi`, as SMTP has it; without a response, or with the first of several, the next ones are on lines of
/// their own.
fn without_smtp_login(line: &str) -> Redacted {
    let lower = line.to_ascii_lowercase();
    let mut within = Within::Nothing;
    for (at, command) in lower.match_indices("auth ") {
        let start = at + command.len();
        let rest = &line[start..];
        let end =
            rest.find(|c: char| !c.is_ascii_alphanumeric() && !matches!(c, '-' | '_')).unwrap_or(rest.len());
        let (mechanism, response) = rest.split_at(end);
        let command = &line[at..start];
        // A server lists its mechanisms.
        let listed = response.split(['"', '\\']).next().unwrap_or_default();
        let is_reply = lower[..at].ends_with("250-") || lower[..at].ends_with("250 ");
        let is_list = is_reply && listed.split_whitespace().all(|word| is_mechanism(command, word));
        if is_list || !is_mechanism(command, mechanism) {
            continue;
        }
        within = Within::Login;
        if response.starts_with(' ') && !response.trim().is_empty() {
            let text = format!("{} {REMOVED}{}", &line[..start + end], end_of(line));
            return Redacted { text, within };
        }
    }
    Redacted { text: line.to_owned(), within }
}

/// Whether a client's command names a mechanism: any in capitals, as RFC 4422 has them, or one that is known.
fn is_mechanism(command: &str, word: &str) -> bool {
    let is_in_capitals =
        command.starts_with("AUTH") && !word.is_empty() && !word.contains(|c: char| c.is_ascii_lowercase());
    is_in_capitals || MECHANISMS.iter().any(|known| word.eq_ignore_ascii_case(known))
}

/// `password: value`, `token = "value"`, `"api_key":"value"`, `Authorization: Bearer value`, `--password value`.
fn without_values(line: &str) -> Redacted {
    let lower = line.to_ascii_lowercase();
    // Positions are the same in both: only ASCII letters differ.
    let value = SECRET_NAMES.iter().filter_map(|name| value_of(&lower, name)).min();
    let Some(value) = value else { return Redacted { text: line.to_owned(), within: Within::Nothing } };
    let (field, written) = (&line[..value], line[value..].trim());
    // Nothing but the end of a text or item comes after a flag: its value is the next one.
    if !field.ends_with([':', '=']) && written.trim_matches(['"', '\'', ',', '\\']).is_empty() {
        return Redacted { text: line.to_owned(), within: Within::Item };
    }
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
        let is_before = |c: char| c.is_whitespace() || matches!(c, '"' | '\'' | ',' | '[' | '(');
        let flag = lower[..start].rfind(is_before).map_or(0, |at| at + 1);
        let ends_flag = |c: char| c.is_whitespace() || matches!(c, '"' | '\'' | ',' | '\\');
        if lower[flag..].starts_with("--") && (end == lower.len() || lower[end..].starts_with(ends_flag)) {
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
        let login =
            "S: 334 VXNlcm5hbWU6\nC: dXNlcg==\nS: 334 UGFzc3dvcmQ6\nC: aG9yc2U=\nS: 235 2.7.0 ok\nC: QUIT\n";
        let hidden =
            "S: 334 VXNlcm5hbWU6\n(removed)\nS: 334 UGFzc3dvcmQ6\n(removed)\nS: 235 2.7.0 ok\nC: QUIT\n";
        check(&format!("C: AUTH LOGIN\r\n{login}"), &format!("C: AUTH LOGIN\r\n{hidden}"));
        check(&format!("auth login dXNlcg==\n{login}"), &format!("auth login (removed)\n{hidden}"));
        check(
            "AUTH PLAIN\n334 \nAGFhAGhvcnNl\n535-5.7.8 no\n535 5.7.8 no\nNOOP\n",
            "AUTH PLAIN\n334 \n(removed)\n535-5.7.8 no\n535 5.7.8 no\nNOOP\n",
        );
        check(
            " -> AUTH PLAIN\n<-  334 \n[x]: waits\n -> aG9yc2U=\n<** 454 later\n -> QUIT\n",
            " -> AUTH PLAIN\n<-  334 \n(removed)\n(removed)\n<** 454 later\n -> QUIT\n",
        );
        check(
            "{\"said\":\"AUTH LOGIN\\r\\n\",\"n\":250}\n{\"said\":\"aG9yc2U=\\r\\n\",\"n\":250}\n",
            "{\"said\":\"AUTH LOGIN\\r\\n\",\"n\":250}\n(removed)\n",
        );
        check(
            "AUTH LOGIN\n2026-12-01T00:00:00.235 took 235 ms: 12\n10:20:235 C: aG9yc2U=\n",
            "AUTH LOGIN\n(removed)\n(removed)\n",
        );
        for mechanism in ["XOAUTH2", "OAUTHBEARER", "CRAM-MD5", "X-OURS", "xoauth2"] {
            check(&format!("C: AUTH {mechanism} aG9y\n"), &format!("C: AUTH {mechanism} (removed)\n"));
        }
        // What a server offers, and what people write.
        check("250-AUTH PLAIN LOGIN\nnext\n", "250-AUTH PLAIN LOGIN\nnext\n");
        check("S: 250 AUTH XOAUTH2\nnext\n", "S: 250 AUTH XOAUTH2\nnext\n");
        check(
            "{\"said\":\"250-AUTH PLAIN LOGIN\\r\\n\"}\nnext\n",
            "{\"said\":\"250-AUTH PLAIN LOGIN\\r\\n\"}\nnext\n",
        );
        check("250 AUTH PLAIN AGFhAGJi\n", "250 AUTH PLAIN (removed)\n");
        check("no auth required\nnext\n", "no auth required\nnext\n");
        check("the auth server answered\n", "the auth server answered\n");
        // Arguments of a program in JSON and YAML.
        check(
            "{\"args\":[\"serve\",\"--password\",\"horse\"]}",
            "{\"args\":[\"serve\",\"--password (removed)",
        );
        check("- --password\n- horse\n- --x\n", "- --password\n(removed)\n- --x\n");
        check("  \"--api-key\",\n  \"horse\",\n  \"--x\"\n", "  \"--api-key\",\n(removed)\n  \"--x\"\n");
        check("tool --password \\\n  horse\n", "tool --password \\\n(removed)\n");
        check("args: [--password, horse]\n", "args: [--password (removed)\n");
        check("- --password-file\n- /x\n", "- --password-file\n- /x\n");
        check("see http://me:p/w@host/x\n", "see http://(removed)@host/x\n");
        check("see http://me:p,w)@host/x\n", "see http://(removed)@host/x\n");
        check("http://host:80/x and me@host\n", "http://host:80/x and me@host\n");
        // A log that begins within a key.
        check("MIIse+cret\nmore==\n-----END PRIVATE KEY-----\nb\n", "(removed)\nb\n");
        check("a b\nmore==\n-----END EC PRIVATE KEY-----\n", "a b\n(removed)\n");
    }
}
