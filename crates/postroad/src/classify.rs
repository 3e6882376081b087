//! `postroad classify`: what the built-in rules make of replies, one a line.

use std::io::{self, BufRead, Write};

use anyhow::{Context, Result, bail};
use postroad_shaping::{Phase, Rules, Verdict, read_reply};

use crate::{
    cli::ClassifyArgs,
    output::{Reader, written},
};

/// Reads standard input to its end, and prints a line for each reply, as far as lines are replies.
///
/// # Errors
/// Says how many lines are no replies, after all others have been printed.
pub fn run(args: &ClassifyArgs) -> Result<String> {
    let (stdin, stdout, stderr) = (io::stdin().lock(), io::stdout().lock(), io::stderr().lock());
    match classify_lines(args.phase, stdin, io::BufWriter::new(stdout), stderr)? {
        0 => Ok(String::new()),
        1 => bail!("1 line is no reply"),
        bad => bail!("{bad} lines are no replies"),
    }
}

/// Returns how many lines are no replies.
fn classify_lines(
    phase: Option<Phase>,
    input: impl BufRead,
    mut output: impl Write,
    mut errors: impl Write,
) -> Result<usize> {
    let mut bad = 0;
    for (index, line) in input.split(b'\n').enumerate() {
        let line = line.context("cannot read standard input")?;
        let line = String::from_utf8_lossy(&line);
        let line = line.trim_end_matches('\r');
        if line.is_empty() {
            continue;
        }
        match classify_line(phase, line) {
            Ok(columns) => {
                if written(writeln!(output, "{columns}"))? == Reader::Gone {
                    return Ok(bad);
                }
            }
            Err(message) => {
                bad += 1;
                writeln!(errors, "line {}: {message}", index + 1)?;
            }
        }
    }
    written(output.flush())?;
    Ok(bad)
}

fn classify_line(phase: Option<Phase>, line: &str) -> Result<String, String> {
    let (phase, reply) = match (line.split_once('\t'), phase) {
        (Some((name, reply)), _) => (named_phase(name)?, reply),
        (None, Some(phase)) => (phase, line),
        (None, None) => {
            return Err(
                "there is no tab: expected `PHASE<TAB>REPLY`, or `--phase PHASE` for all lines".to_owned()
            );
        }
    };
    let reply = read_reply(reply).map_err(|error| error.to_string())?;
    Ok(columns(phase, &Rules::builtin().classify(phase, None, &reply)))
}

/// Returns the phase with this name.
pub(crate) fn named_phase(name: &str) -> Result<Phase, String> {
    Phase::from_name(name).ok_or_else(|| {
        let names: Vec<&str> = Phase::ALL.iter().map(|phase| phase.as_str()).collect();
        format!("`{name}`: expected a phase, one of {}", names.join(", "))
    })
}

/// phase, kind, class, party, suppress, lane and rule, with tabs between them.
fn columns(phase: Phase, verdict: &Verdict<'_>) -> String {
    match verdict {
        Verdict::Delivered => format!("{phase}\tdelivered\t-\t-\tno\tnone\t-"),
        Verdict::Refused(refusal) => {
            let suppress = if refusal.ending.suppresses() { "yes" } else { "no" };
            let kind = refusal.ending.kind();
            let (class, party, lane, rule) = (refusal.class, refusal.party, refusal.lane, refusal.rule);
            format!("{phase}\t{kind}\t{class}\t{party}\t{suppress}\t{lane}\t{rule}")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(phase: Option<Phase>, input: &str, output: &str, errors: &str) {
        let (mut out, mut err) = (Vec::new(), Vec::new());
        let bad = classify_lines(phase, input.as_bytes(), &mut out, &mut err).unwrap();
        assert_eq!(String::from_utf8(out).unwrap(), output, "{input:?}");
        assert_eq!(String::from_utf8(err).unwrap(), errors, "{input:?}");
        assert_eq!(bad, errors.lines().count());
    }

    #[test]
    fn replies_are_printed_as_columns() {
        let unknown = "rcpt\thard\tinvalid_recipient\trecipient\tyes\tnone\trecipient_unknown_stock\n";
        check(None, "rcpt\t550 5.1.1 user unknown\r\n\n", unknown, "");
        check(Some(Phase::Rcpt), "550-5.1.1 user\\n550 5.1.1 unknown", unknown, "");
        check(Some(Phase::Mail), "rcpt\t550 user unknown\n", unknown, "");
        check(None, "dot\t250 ok\n", "dot\tdelivered\t-\t-\tno\tnone\t-\n", "");
    }

    #[test]
    fn a_bad_line_is_reported_and_the_others_are_printed() {
        check(
            None,
            "550 x\ndot\t250 ok\nlater\t550 x\nrcpt\thello\n",
            "dot\tdelivered\t-\t-\tno\tnone\t-\n",
            "line 1: there is no tab: expected `PHASE<TAB>REPLY`, or `--phase PHASE` for all lines\n\
             line 3: `later`: expected a phase, one of connect, ehlo, starttls, mail, rcpt, data, dot\n\
             line 4: `hello`: expected a reply code from 200 to 599 and a text, such as `550 5.1.1 user unknown`\n",
        );
    }
}
