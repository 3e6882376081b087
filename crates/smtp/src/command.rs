//! Parses command lines (RFC 5321 4.1.1 and the extensions we announce).
//!
//! A parsed command is valid; a parse error determines the reply.

use std::net::Ipv6Addr;

use postroad_core::{Address, Domain, Irregularity, address::parse_literal};
use zeroize::Zeroizing;

use crate::tolerance::{Syntax, Tolerance, Tolerances};

/// A valid command and the deviations from the syntax that were accepted in it.
#[derive(Debug, PartialEq, Eq)]
pub struct Parsed {
    /// The command.
    pub command: Command,
    /// Empty for nearly every line.
    pub tolerated: Vec<Tolerance>,
}

/// One command line.
#[derive(Debug, PartialEq, Eq)]
pub enum Command {
    /// EHLO with the client's name.
    Ehlo(Box<str>),
    /// HELO with the client's name.
    Helo(Box<str>),
    /// MAIL: begins a transaction.
    Mail(Box<Mail>),
    /// RCPT: adds a recipient.
    Recipient(Address),
    /// DATA: the message follows.
    Data,
    /// RSET: discards the transaction.
    Reset,
    /// NOOP, with any argument.
    Noop,
    /// QUIT.
    Quit,
    /// VRFY, with any argument.
    Verify,
    /// STARTTLS.
    StartTls,
    /// AUTH with a mechanism and an optional initial response.
    Auth {
        /// In upper case.
        mechanism: Box<str>,
        /// Base64; `=` for an empty response.
        initial: Option<Zeroizing<Box<str>>>,
    },
}

/// The arguments of MAIL.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mail {
    /// The reverse path; `None` for `<>`.
    pub sender: Option<Address>,
    /// SIZE: the number of bytes the client announces; 0 when it announces none.
    pub size: u64,
    /// BODY=8BITMIME.
    pub eight_bit: bool,
    /// SMTPUTF8.
    pub smtputf8: bool,
}

/// Why a command line is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CommandError {
    /// Unknown command.
    Unknown,
    /// A standard command that we do not implement.
    NotImplemented,
    /// The line begins another protocol, such as HTTP sent by a misused browser.
    OtherProtocol,
    /// The line is not UTF-8.
    NotUtf8,
    /// An argument is missing, unexpected or malformed.
    Syntax,
    /// The address of MAIL is invalid.
    SenderAddress,
    /// The address of RCPT is invalid.
    RecipientAddress,
    /// Unknown parameter of MAIL or RCPT.
    UnknownParameter,
    /// An address needs SMTPUTF8, and MAIL did not request it.
    NeedsSmtputf8,
}

use CommandError as E;

/// First bytes of protocols that browsers or worms can be tricked into sending to a mail port.
const OTHER_PROTOCOLS: &[&[u8]] =
    &[b"GET ", b"POST ", b"PUT ", b"HEAD ", b"CONNECT ", b"OPTIONS ", b"SSH-", b"\x16\x03"];

impl Command {
    /// Parses a line without its CRLF, as far as `syntax` lets it deviate.
    ///
    /// # Errors
    /// The line is not a valid command; the error determines the reply.
    pub fn parse(line: &[u8], syntax: Syntax) -> Result<Parsed, CommandError> {
        let mut tolerances = Tolerances::new(syntax);
        let command = Self::parse_with(line, &mut tolerances)?;
        Ok(Parsed { command, tolerated: tolerances.into_accepted() })
    }

    fn parse_with(line: &[u8], tolerances: &mut Tolerances) -> Result<Self, CommandError> {
        if OTHER_PROTOCOLS
            .iter()
            .any(|start| line.get(..start.len()).is_some_and(|l| l.eq_ignore_ascii_case(start)))
        {
            return Err(E::OtherProtocol);
        }
        let line = std::str::from_utf8(line).map_err(|_| E::NotUtf8)?;
        let (verb, argument) = match line.split_once(' ') {
            Some((verb, argument)) => (verb, Some(argument)),
            None => (line, None),
        };
        let argument = argument
            .map(|argument| argument.trim_end_matches([' ', '\t']))
            .filter(|argument| !argument.is_empty());
        if verb.len() > 8 {
            return Err(E::Unknown);
        }
        match verb.to_ascii_uppercase().as_str() {
            "EHLO" => client_name(argument, tolerances).map(Self::Ehlo),
            "HELO" => client_name(argument, tolerances).map(Self::Helo),
            "MAIL" => parse_mail(argument, tolerances).map(|mail| Self::Mail(Box::new(mail))),
            "RCPT" => parse_recipient(argument, tolerances),
            "DATA" => bare(argument, Self::Data),
            "RSET" => bare(argument, Self::Reset),
            "QUIT" => Ok(Self::Quit),
            "NOOP" => Ok(Self::Noop),
            "VRFY" => Ok(Self::Verify),
            "STARTTLS" => bare(argument, Self::StartTls),
            "AUTH" => parse_auth(argument),
            "EXPN" | "ETRN" | "TURN" | "SEND" | "SOML" | "SAML" => Err(E::NotImplemented),
            _ => Err(E::Unknown),
        }
    }
}

fn bare(argument: Option<&str>, command: Command) -> Result<Command, CommandError> {
    if argument.is_some() { Err(E::Syntax) } else { Ok(command) }
}

/// A domain or an address literal (RFC 5321 4.1.1.1).
///
/// Underscores are accepted: real host names have them, and nothing depends on the name.
fn client_name(argument: Option<&str>, tolerances: &mut Tolerances) -> Result<Box<str>, CommandError> {
    let name = argument.ok_or(E::Syntax)?;
    let literal = name.strip_prefix('[').and_then(|rest| rest.strip_suffix(']'));
    let valid = match literal {
        Some(inner) => parse_literal(inner).is_some(),
        None => {
            name.len() <= 255
                && Domain::parse(name.strip_suffix('.').unwrap_or(name).replace('_', "x").as_str()).is_ok()
        }
    };
    let accepted = valid || (is_harmless(name) && tolerances.accept(Tolerance::ClientName));
    if accepted { Ok(name.into()) } else { Err(E::Syntax) }
}

/// Returns true for one word of labels, whatever they are, and for an IPv6 literal without its tag.
///
/// Names of office machines are not host names; at submission the name decides nothing.
fn is_harmless(name: &str) -> bool {
    if let Some(inner) = name.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
        return inner.parse::<Ipv6Addr>().is_ok();
    }
    let labels = name.strip_suffix('.').unwrap_or(name);
    let fits = |c: char| !c.is_control() && !c.is_whitespace() && !"()<>[]\\\",:;@".contains(c);
    name.len() <= 255 && name.chars().all(fits) && labels.split('.').all(|label| !label.is_empty())
}

/// Splits the argument of MAIL or RCPT into the path and the parameters.
fn cut_path<'a>(
    argument: Option<&'a str>,
    keyword: &str,
    tolerances: &mut Tolerances,
) -> Result<(&'a str, &'a str), CommandError> {
    let argument = without_spaces(argument.ok_or(E::Syntax)?, Tolerance::ExtraSpaces, tolerances)?;
    let rest = match argument.get(..keyword.len()) {
        Some(start) if start.eq_ignore_ascii_case(keyword) => &argument[keyword.len()..],
        _ => return Err(E::Syntax),
    };
    let path = without_spaces(rest, Tolerance::SpaceBeforePath, tolerances)?;
    let Some(inner) = path.strip_prefix('<') else { return cut_bare_path(path, tolerances) };
    let end = path_end(inner).ok_or(E::Syntax)?;
    let after = &inner[end + 1..];
    if !after.is_empty() && !after.starts_with(' ') {
        return Err(E::Syntax);
    }
    Ok((&inner[..end], after))
}

fn without_spaces<'a>(
    text: &'a str,
    tolerance: Tolerance,
    tolerances: &mut Tolerances,
) -> Result<&'a str, CommandError> {
    let rest = text.trim_start_matches(' ');
    if rest.len() == text.len() || tolerances.accept(tolerance) { Ok(rest) } else { Err(E::Syntax) }
}

/// Splits an address without angle brackets from its parameters.
fn cut_bare_path<'a>(path: &'a str, tolerances: &mut Tolerances) -> Result<(&'a str, &'a str), CommandError> {
    let end = path.find(' ').unwrap_or(path.len());
    let (address, after) = path.split_at(end);
    let bare = !address.is_empty() && !address.contains(['<', '>']);
    if bare && tolerances.accept(Tolerance::NoBrackets) { Ok((address, after)) } else { Err(E::Syntax) }
}

/// Parses the mailbox of a path.
fn parse_address(path: &str, tolerances: &mut Tolerances) -> Option<Address> {
    let address = Address::parse(without_route(path)?).ok()?;
    let carried = match address.irregularity() {
        None => true,
        Some(Irregularity::Dots) => tolerances.accept(Tolerance::Dots),
        Some(Irregularity::LongLocalPart) => tolerances.accept(Tolerance::LongLocalPart),
    };
    carried.then_some(address)
}

/// Finds the `>` that ends a path, skipping quoted local parts.
fn path_end(inner: &str) -> Option<usize> {
    let (mut quoted, mut escaped) = (false, false);
    inner.bytes().position(|byte| {
        let ends = byte == b'>' && !quoted;
        match byte {
            _ if escaped => escaped = false,
            b'\\' if quoted => escaped = true,
            b'"' => quoted = !quoted,
            _ => {}
        }
        ends
    })
}

/// Strips a source route, which RFC 5321 appendix C says to ignore.
fn without_route(path: &str) -> Option<&str> {
    let Some(route) = path.strip_prefix('@') else { return Some(path) };
    let (hops, address) = route.split_once(':')?;
    let mut hops = hops.split(',').enumerate();
    let valid = hops.all(|(position, hop)| {
        let domain = if position == 0 { Some(hop) } else { hop.strip_prefix('@') };
        domain.is_some_and(|domain| Domain::parse(domain).is_ok())
    });
    valid.then_some(address)
}

fn parse_mail(argument: Option<&str>, tolerances: &mut Tolerances) -> Result<Mail, CommandError> {
    let (path, parameters) = cut_path(argument, "FROM:", tolerances)?;
    let sender = match path {
        "" => None,
        path => Some(parse_address(path, tolerances).ok_or(E::SenderAddress)?),
    };
    let mut mail = Mail { sender, size: 0, eight_bit: false, smtputf8: false };
    let mut seen = Vec::new();
    for parameter in parameters.split(' ').filter(|parameter| !parameter.is_empty()) {
        let (keyword, value) = match parameter.split_once('=') {
            Some((keyword, value)) => (keyword.to_ascii_uppercase(), Some(value)),
            None => (parameter.to_ascii_uppercase(), None),
        };
        mail.take_parameter(&keyword, value)?;
        if seen.contains(&keyword) {
            return Err(E::Syntax);
        }
        seen.push(keyword);
    }
    if !mail.smtputf8 && mail.sender.as_ref().is_some_and(|sender| !sender.is_ascii()) {
        return Err(E::NeedsSmtputf8);
    }
    Ok(mail)
}

impl Mail {
    fn take_parameter(&mut self, keyword: &str, value: Option<&str>) -> Result<(), CommandError> {
        match (keyword, value) {
            // RFC 1870 4: up to 20 digits.
            ("SIZE", Some(value)) if is_number(value) => self.size = value.parse().unwrap_or(u64::MAX),
            ("BODY", Some(value)) if value.eq_ignore_ascii_case("7BIT") => {}
            ("BODY", Some(value)) if value.eq_ignore_ascii_case("8BITMIME") => self.eight_bit = true,
            ("SMTPUTF8", None) => self.smtputf8 = true,
            // RFC 4954 5: names the original submitter; we parse and ignore it.
            ("AUTH", Some(value)) if is_xtext(value) => {}
            ("SIZE" | "BODY" | "SMTPUTF8" | "AUTH", _) => return Err(E::Syntax),
            _ => return Err(E::UnknownParameter),
        }
        Ok(())
    }
}

fn is_number(value: &str) -> bool {
    (1..=20).contains(&value.len()) && value.bytes().all(|byte| byte.is_ascii_digit())
}

/// RFC 3461 4: printable ASCII with `+` and `=` only as `+XX`.
fn is_xtext(value: &str) -> bool {
    let bytes = value.as_bytes();
    let valid = |(position, byte): (usize, &u8)| match byte {
        b'+' => {
            let hex = bytes.get(position + 1..position + 3);
            hex.is_some_and(|hex| {
                hex.iter().all(|digit| matches!(digit, b'0'..=b'9' | b'A'..=b'F')) && hex != b"00"
            })
        }
        b'=' => false,
        byte => byte.is_ascii_graphic(),
    };
    !bytes.is_empty() && bytes.iter().enumerate().all(valid)
}

fn parse_recipient(argument: Option<&str>, tolerances: &mut Tolerances) -> Result<Command, CommandError> {
    let (path, parameters) = cut_path(argument, "TO:", tolerances)?;
    let address = parse_address(path, tolerances).ok_or(E::RecipientAddress)?;
    if parameters.bytes().any(|byte| byte.is_ascii_control()) {
        return Err(E::Syntax);
    }
    if parameters.split(' ').any(|parameter| !parameter.is_empty()) {
        return Err(E::UnknownParameter);
    }
    Ok(Command::Recipient(address))
}

fn parse_auth(argument: Option<&str>) -> Result<Command, CommandError> {
    let argument = argument.ok_or(E::Syntax)?;
    let (mechanism, initial) = match argument.split_once(' ') {
        Some((mechanism, initial)) => (mechanism, Some(Zeroizing::new(initial.trim().into()))),
        None => (argument, None),
    };
    // RFC 4422 3.1: up to 20 characters.
    let valid =
        mechanism.len() <= 20 && mechanism.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_".contains(&b));
    if valid {
        Ok(Command::Auth { mechanism: mechanism.to_ascii_uppercase().into(), initial })
    } else {
        Err(E::Syntax)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Parses a line of a client whose submission listener is tolerant to strangers.
    fn parse(line: &[u8]) -> Result<Command, CommandError> {
        Command::parse(line, Syntax::Stranger).map(|parsed| parsed.command)
    }

    fn check(line: &str, error: CommandError) {
        assert_eq!(parse(line.as_bytes()), Err(error), "{line:?}");
    }

    fn sender(line: &str) -> Option<String> {
        match parse(line.as_bytes()) {
            Ok(Command::Mail(mail)) => mail.sender.map(|sender| sender.as_str().to_owned()),
            other => panic!("{line:?} gives {other:?}"),
        }
    }

    fn recipient(line: &str) -> String {
        match parse(line.as_bytes()) {
            Ok(Command::Recipient(address)) => address.as_str().to_owned(),
            other => panic!("{line:?} gives {other:?}"),
        }
    }

    #[test]
    fn paths_keep_their_address_byte_for_byte() {
        assert_eq!(sender("MAIL FROM:<>"), None);
        assert_eq!(sender("mail from:<a@b.c>"), Some("a@b.c".into()));
        assert_eq!(sender("MAIL FROM: <a@b.c> SIZE=10 BODY=8BITMIME"), Some("a@b.c".into()));
        assert_eq!(recipient("RCPT TO:<@a.b,@c.d:e@f.g>"), "e@f.g");
        assert_eq!(recipient(r#"RCPT TO:<"a>b@c"@d.e>"#), r#""a>b@c"@d.e"#);
        assert_eq!(recipient(r#"RCPT TO:<"a\"b"@d.e>"#), r#""a\"b"@d.e"#);
    }

    #[test]
    fn each_error_has_its_own_kind() {
        check("EHLO", E::Syntax);
        check("EHLO a b", E::Syntax);
        check("EHLO [1.2.3]", E::Syntax);
        check("MAIL", E::Syntax);
        check("MAIL FROM:a@b.c", E::Syntax);
        check("MAIL FROM:<a@b.c", E::Syntax);
        check("MAIL FROM:<a@b.c>x", E::Syntax);
        check("MAIL FROM:<a>", E::SenderAddress);
        check("RCPT TO:<>", E::RecipientAddress);
        check("RCPT TO:<@a.b:c>", E::RecipientAddress);
        check("MAIL FROM:<a@b.c> FOO=1", E::UnknownParameter);
        check("RCPT TO:<a@b.c> NOTIFY=NEVER", E::UnknownParameter);
        check("MAIL FROM:<a@b.c> SIZE=abc", E::Syntax);
        check("MAIL FROM:<a@b.c> SIZE", E::Syntax);
        check("MAIL FROM:<a@b.c> BODY=FOO", E::Syntax);
        check("MAIL FROM:<a@b.c> SIZE=1 size=2", E::Syntax);
        check("MAIL FROM:<\u{fc}@b.c>", E::NeedsSmtputf8);
        check("RSET x", E::Syntax);
        check("XYZZY", E::Unknown);
        check("", E::Unknown);
        check("EXPN list", E::NotImplemented);
        check("GET / HTTP/1.1", E::OtherProtocol);
        check("SSH-2.0-x", E::OtherProtocol);
        assert_eq!(parse(b"MAIL FROM:<\xff@b.c>"), Err(E::NotUtf8));
        assert_eq!(parse(b"\x16\x03\x01\x02\x00"), Err(E::OtherProtocol));
    }

    #[test]
    fn helo_names_of_real_clients_are_accepted() {
        for name in [
            "mail.example.org",
            "[192.0.2.1]",
            "[IPv6:::1]",
            "localhost",
            "my_pc",
            "m\u{fc}ller.example",
            "a.b.",
        ] {
            assert!(matches!(parse(format!("EHLO {name}").as_bytes()), Ok(Command::Ehlo(_))), "{name}");
        }
    }

    const LEVELS: [Syntax; 4] = [Syntax::Strict, Syntax::Stranger, Syntax::Submission, Syntax::LoggedIn];

    /// The line is accepted from the level that the tolerance names, and refused below it.
    fn check_tolerance(line: &str, tolerance: Tolerance) {
        for syntax in LEVELS {
            let parsed = Command::parse(line.as_bytes(), syntax);
            if syntax >= tolerance.least() {
                assert_eq!(parsed.map(|parsed| parsed.tolerated), Ok(vec![tolerance]), "{line:?} {syntax:?}");
            } else {
                assert!(parsed.is_err(), "{line:?} {syntax:?}");
            }
        }
    }

    #[test]
    fn s_013_each_tolerance_is_for_some_clients_and_noted() {
        check_tolerance("MAIL FROM: <a@b.c>", Tolerance::SpaceBeforePath);
        check_tolerance("RCPT TO:  <a@b.c>", Tolerance::SpaceBeforePath);
        check_tolerance("MAIL  FROM:<a@b.c>", Tolerance::ExtraSpaces);
        check_tolerance("RCPT   TO:<a@b.c>", Tolerance::ExtraSpaces);
        check_tolerance("MAIL FROM:a@b.c", Tolerance::NoBrackets);
        check_tolerance("MAIL FROM:a@b.c SIZE=10", Tolerance::NoBrackets);
        check_tolerance("RCPT TO:a@b.c", Tolerance::NoBrackets);
        check_tolerance("RCPT TO:<a..b@b.c>", Tolerance::Dots);
        check_tolerance(&format!("RCPT TO:<{}@b.c>", "a".repeat(65)), Tolerance::LongLocalPart);
        for name in ["office-.example.org", "[2001:db8::1]", "anna's-pc", "-x-", "a*b"] {
            check_tolerance(&format!("EHLO {name}"), Tolerance::ClientName);
        }
    }

    #[test]
    fn what_is_ambiguous_is_refused_from_everybody() {
        for line in [
            "MAIL FROM:",
            "MAIL FROM:a@b.c>",
            "MAIL FROM:<a@b.c",
            "MAIL FROM:a@b.c <d@e.f>",
            "MAIL FROM:Anna <a@b.c>",
            "RCPT TO:<..@b.c>",
            "RCPT TO:a@b.c,d@e.f",
            "EHLO two words",
            "EHLO a..b",
            "EHLO [1.2.3]",
            "EHLO [IPv6:zz]",
            "EHLO a(b)",
        ] {
            for syntax in LEVELS {
                assert!(Command::parse(line.as_bytes(), syntax).is_err(), "{line:?} {syntax:?}");
            }
        }
    }

    proptest! {
        #[test]
        fn z_01_parsing_a_line_never_panics(line in prop::collection::vec(any::<u8>(), 0..200)) {
            for syntax in LEVELS {
                let _ = Command::parse(&line, syntax);
            }
        }

        #[test]
        fn z_01_arguments_contain_no_control_characters(
            verb in prop_oneof![Just("MAIL FROM:"), Just("RCPT TO:"), Just("EHLO ")], rest in "[<>@a.\"\\\\ \\x00-\\x1f=:]{0,30}"
        ) {
            let clean = |text: &str| !text.chars().any(char::is_control);
            let parsed = Command::parse(format!("{verb}{rest}").as_bytes(), Syntax::LoggedIn);
            match parsed.map(|parsed| parsed.command) {
                Ok(Command::Mail(mail)) => prop_assert!(mail.sender.is_none_or(|sender| clean(sender.as_str()))),
                Ok(Command::Recipient(address)) => prop_assert!(clean(address.as_str())),
                Ok(Command::Ehlo(name)) => prop_assert!(clean(&name)),
                _ => {}
            }
        }
    }
}
