use super::*;

const NOTHING: Offered = Offered { eight_bit_mime: false, smtputf8: false };
const EIGHT_BIT: Offered = Offered { eight_bit_mime: true, smtputf8: false };
const ALL: Offered = Offered { eight_bit_mime: true, smtputf8: true };

fn finish(content: &[Bytes], offered: Offered) -> Finished {
    match prepare(content, offered) {
        Prepared::Finished(finished) => finished,
        Prepared::Conversion(conversion) => conversion.run(),
    }
}

fn lines(text: &str) -> Bytes {
    Bytes::from(text.replace('\n', "\r\n"))
}

/// Checks what becomes of a message for a hop, in 7-bit unless `eight_bit`.
fn check(content: &str, offered: Offered, expected: &str) {
    let finished = finish(&[lines(content)], offered);
    assert!(!finished.smtputf8, "{content}");
    let text = String::from_utf8(finished.parts.concat()).unwrap().replace("\r\n", "\n");
    assert_eq!(text, expected);
    assert_eq!(finished.eight_bit, !text.is_ascii());
}

/// Checks that a message cannot be converted, and what it then needs.
fn check_unchanged(content: &str, offered: Offered, eight_bit: bool, smtputf8: bool) {
    let content = vec![lines(content)];
    assert_eq!(finish(&content, offered), Finished { parts: content, eight_bit, smtputf8 });
}

#[test]
fn s_204_ascii_is_passed_on_and_needs_nothing() {
    check_unchanged("Subject: hi\n\nhello\n", NOTHING, false, false);
}

#[test]
fn s_204_content_that_the_hop_takes_is_not_changed() {
    check_unchanged("Subject: hi\n\nGrüße\n", EIGHT_BIT, true, false);
    check_unchanged("Subject: Grüße\n\nGrüße\n", ALL, true, true);
}

#[test]
fn s_204_a_text_becomes_quoted_printable() {
    check(
        "Subject: hi\n\nGrüße = so \n.\nFrom here\n",
        NOTHING,
        "Subject: hi\nMIME-Version: 1.0\nContent-Type: text/plain; charset=utf-8\n\
         Content-Transfer-Encoding: quoted-printable\n\n\
         Gr=C3=BC=C3=9Fe =3D so=20\n=2E\n=46rom here\n",
    );
    let typed = "MIME-Version: 1.0\nContent-Type: text/html; charset=iso-8859-15\nContent-Transfer-Encoding: 8bit\n\n";
    check(
        &format!("{typed}a{}é\n", "b".repeat(80)),
        NOTHING,
        &format!(
            "MIME-Version: 1.0\nContent-Type: text/html; charset=iso-8859-15\nContent-Transfer-Encoding: quoted-printable\n\n\
             a{}=\n{}=C3=A9\n",
            "b".repeat(74),
            "b".repeat(6)
        ),
    );
}

#[test]
fn s_204_text_of_other_scripts_and_other_types_become_base64() {
    check(
        "MIME-Version: 1.0\nContent-Type: text/plain; charset=utf-8\n\nпривет\n",
        NOTHING,
        "MIME-Version: 1.0\nContent-Type: text/plain; charset=utf-8\nContent-Transfer-Encoding: base64\n\n\
         0L/RgNC40LLQtdGCDQo=\n",
    );
}

#[test]
fn s_204_each_part_of_a_multipart_is_converted_by_itself() {
    check(
        "MIME-Version: 1.0\nContent-Type: multipart/mixed; boundary=\"a b\"\nContent-Transfer-Encoding: 8bit\n\n\
         preamble\n--a b\n\nplain\n--a b\nContent-Type: text/plain; charset=utf-8\n\ncafé au lait\n--a b\n\
         Content-Type: message/rfc822\nContent-Transfer-Encoding: 8bit\n\nSubject: été\n\nhi\n--a b--\nend\n",
        NOTHING,
        "MIME-Version: 1.0\nContent-Type: multipart/mixed; boundary=\"a b\"\nContent-Transfer-Encoding: 7bit\n\n\
         preamble\n--a b\n\nplain\n--a b\nContent-Type: text/plain; charset=utf-8\n\
         Content-Transfer-Encoding: quoted-printable\n\ncaf=C3=A9 au lait\n--a b\n\
         Content-Type: message/rfc822\nContent-Transfer-Encoding: 7bit\n\nSubject: =?utf-8?B?w6l0w6k=?=\n\nhi\n--a b--\nend\n",
    );
}

#[test]
fn s_204_a_header_is_written_in_encoded_words() {
    let check = |header: &str, expected: &str| {
        check(&format!("{header}\n\nhi\n"), EIGHT_BIT, &format!("{expected}\n\nhi\n"))
    };
    check("Subject: Grüße", "Subject: =?utf-8?B?R3LDvMOfZQ==?=");
    check("Subject: Re: Grüße aus Bern", "Subject: Re: =?utf-8?B?R3LDvMOfZQ==?= aus Bern");
    check("From: Jürgen Öl <a@b.example>", "From: =?utf-8?B?SsO8cmdlbiDDlmw=?= <a@b.example>");
    check("To: \"Öl, J\" <a@b.example>, c@d.example", "To: =?utf-8?B?w5ZsLCBK?= <a@b.example>, c@d.example");
    check("To: a@b.example (Jürgen)", "To: a@b.example (=?utf-8?B?SsO8cmdlbg==?=)");
    check(
        "Content-Disposition: attachment; filename=\"Größe.txt\"",
        "Content-Disposition: attachment; filename*=utf-8''Gr%C3%B6%C3%9Fe.txt",
    );
    check("X-Note: before\n über", "X-Note: before =?utf-8?B?w7xiZXI=?=");
}

#[test]
fn words_that_are_encoded_already_stay_as_they_are_beside_new_ones() {
    let check = |header: &str, expected: &str| {
        check(&format!("{header}\n\nhi\n"), EIGHT_BIT, &format!("{expected}\n\nhi\n"))
    };
    let old = "=?utf-8?Q?J=C3=B6rg?=";
    // `é` is w6k=, ` é` is IMOp, `é ` is w6kg, ` é ` is IMOpIA==.
    check(&format!("Subject: é {old} é"), &format!("Subject: =?utf-8?B?w6kg?= {old} =?utf-8?B?IMOp?="));
    check(&format!("Subject: {old} é {old}"), &format!("Subject: {old} =?utf-8?B?IMOpIA==?= {old}"));
    check(&format!("Subject: a é b {old} {old} c"), &format!("Subject: a =?utf-8?B?w6k=?= b {old} {old} c"));
    check(&format!("Subject: {old} a é"), &format!("Subject: {old} a =?utf-8?B?w6k=?="));
    check(&format!("From: {old} é <j@x.example>"), &format!("From: {old} =?utf-8?B?IMOp?= <j@x.example>"));
    check(
        &format!("To: \"é\" {old} a {old}, é {old} <j@x.example>"),
        &format!(
            "To: =?utf-8?B?w6kg?= {old} =?utf-8?B?IGEg?=\n {old} , =?utf-8?B?w6kg?= {old}\n <j@x.example>"
        ),
    );
    check(&format!("To: a@b.example (é {old})"), &format!("To: a@b.example (=?utf-8?B?w6kg?= {old})"));
    // In quotes, and where it could end a comment, it is text.
    check("From: \"é =?q?Q?,?=\" <j@x.example>", "From: =?utf-8?B?w6kgPT9xP1E/LD89?= <j@x.example>");
    check("To: a@b.example (é =?q?Q?\\)?=)", "To: a@b.example (=?utf-8?B?w6kgPT9xP1E/KT89?=)");
    for text in ["=?q?X?a?=", "=??Q?a?=", "=?q?Q?a?b?=", "=?q?Q?a?", "?q?Q?a?=", "=?="] {
        check(&format!("Subject: {text} é"), &format!("Subject: {text} =?utf-8?B?w6k=?="));
    }
}

#[test]
fn white_space_beside_encoded_words_is_kept_and_never_a_line_by_itself() {
    let check = |header: &str, expected: &str| {
        check(&format!("{header}\n\nhi\n"), EIGHT_BIT, &format!("{expected}\n\nhi\n"))
    };
    check("Subject: Grüße  Bern", "Subject: =?utf-8?B?R3LDvMOfZQ==?=  Bern");
    check("Subject: a \t  b Grüße", "Subject: a \t  b =?utf-8?B?R3LDvMOfZQ==?=");
    check("Subject: Grüße\n \t\n Bern", "Subject: =?utf-8?B?R3LDvMOfZQ==?= \t Bern");
    let words = "four word s ".repeat(5);
    check(
        &format!("Subject: é {words} end"),
        &format!("Subject: =?utf-8?B?w6k=?= {}\n four word s  end", "four word s ".repeat(4).trim_end()),
    );
    let blanks = " ".repeat(2000);
    check(&format!("Subject: é{blanks}end"), "Subject: =?utf-8?B?w6k=?= end");
    check(
        "To: \"a\\ b\" <a@b.example>, é <c@d.example>",
        "To: \"a\\ b\" <a@b.example>, =?utf-8?B?w6k=?= <c@d.example>",
    );
}

#[test]
fn an_encoded_header_has_no_line_over_76_bytes_where_words_allow() {
    let name = "語".repeat(112);
    for header in [
        format!("Subject: {}é", "an ASCII prefix \n ".repeat(100)),
        format!("Subject: é{}", " and what follows".repeat(100)),
        format!("Subject: {}", name),
        format!("Subject: https://{} é", "x".repeat(1500)),
        format!("To: {}Jörg <j@b.example>", "a@b.example,".repeat(200)),
        format!("Content-Disposition: attachment; filename=\"{name}\""),
    ] {
        let finished = finish(&[lines(&format!("{header}\n\nhi\n"))], EIGHT_BIT);
        let text = String::from_utf8(finished.parts.concat()).unwrap();
        assert!(text.is_ascii() && text.lines().all(|line| line.len() <= 76), "{text}");
    }
    // No line can hold this.
    check_unchanged(
        &format!("To: {}@b.example, Jörg <j@b.example>\n\nhi\n", "a".repeat(1000)),
        EIGHT_BIT,
        true,
        false,
    );
}

#[test]
fn a_long_parameter_is_divided_between_characters() {
    check(
        &format!("Content-Disposition: attachment; filename=\"{}\"; size=1\n\nhi\n", "語".repeat(8)),
        EIGHT_BIT,
        "Content-Disposition: attachment;\n \
         filename*0*=utf-8''%E8%AA%9E%E8%AA%9E%E8%AA%9E%E8%AA%9E%E8%AA%9E%E8%AA%9E;\n \
         filename*1*=%E8%AA%9E%E8%AA%9E; size=1\n\nhi\n",
    );
}

#[test]
fn s_210_an_internationalised_address_needs_smtputf8() {
    for header in [
        "From: <jürgen@b.example>",
        "To: jürgen@b.example",
        "To: \"jürgen\"@b.example",
        "To: \"jür gen\"@b.example",
        "To: a@b.example, c@ü.example (x)",
    ] {
        let content = format!("{header}\n\nhi\n");
        check_unchanged(&content, EIGHT_BIT, true, true);
        check_unchanged(&content, NOTHING, true, true);
        check_unchanged(&content, ALL, true, true);
    }
}

#[test]
fn s_204_a_name_is_encoded_whatever_is_in_it() {
    let check = |header: &str, expected: &str| {
        for offered in [EIGHT_BIT, NOTHING] {
            check(&format!("{header}\n\nhi\n"), offered, &format!("{expected}\n\nhi\n"));
        }
    };
    check(
        "From: \"Jörg @ Firma\" <joerg@firma.example>",
        "From: =?utf-8?B?SsO2cmcgQCBGaXJtYQ==?= <joerg@firma.example>",
    );
    check("From: \"müller@x.de\" <mueller@x.de>", "From: =?utf-8?B?bcO8bGxlckB4LmRl?= <mueller@x.de>");
    check("From: müller@x.de<mueller@x.de>", "From: =?utf-8?B?bcO8bGxlckB4LmRl?= <mueller@x.de>");
    check("From: \"J\\\\ö\" \"x, y\" z <a@b.example>", "From: =?utf-8?B?SlzDtiB4LCB5IHo=?= <a@b.example>");
    check(
        "To: Grüße @ alle:a@b.example,c@d.example;",
        "To: =?utf-8?B?R3LDvMOfZSBAIGFsbGU=?= :a@b.example, c@d.example;",
    );
    check("To: (é) a@b.example (\"@ü)", "To: (=?utf-8?B?w6k=?=) a@b.example (=?utf-8?B?IkDDvA==?=)");
    check("To: \"a b\"@c.example (é)", "To: \"a b\"@c.example (=?utf-8?B?w6k=?=)");
    check("Cc: Jörg", "Cc: =?utf-8?B?SsO2cmc=?=");
}

#[test]
fn s_204_comments_of_structured_fields_are_encoded() {
    let zone = "Date: Mon, 30 Nov 2026 10:00:00 +0100";
    check(
        &format!("{zone} (Mitteleuropäische Zeit)\n\nhi\n"),
        EIGHT_BIT,
        &format!("{zone}\n (=?utf-8?B?TWl0dGVsZXVyb3DDpGlzY2hlIFplaXQ=?=)\n\nhi\n"),
    );
    check(
        "Received: from a.example (b\\)ü (c)) by \"x\" (d);\n date\nReferences: <a@b>(é)\n <c@d>\n\nhi\n",
        NOTHING,
        "Received: from a.example (=?utf-8?B?YinDvCAoYyk=?=) by \"x\" (d); date\nReferences: <a@b>(=?utf-8?B?w6k=?=) <c@d>\n\nhi\n",
    );
}

/// A bounce would say that the receiver lacks SMTPUTF8, which the message does not need.
#[test]
fn s_210_a_header_that_cannot_be_encoded_needs_8bitmime_only() {
    for header in [
        "Message-ID: <ü@b.example>",
        "Date: 30 März 2026",
        "In-Reply-To: Grüße",
        "Received: from ü (unclosed",
        "To: \"Jörg <a@b.example>",
        "To: Jörg <a@b.example",
        "To: Jörg a@b.example",
        "To: <Jörg> a@b.example",
        "DKIM-Signature: v=1 (é)",
        "Ünsinn: x",
        "Content-Disposition: attachment; filename*0=\"a\"; filename*1=\"ü\"",
        "Content-Disposition: attachment; filename*=\"ü\"",
        "Content-Type: multipart/mixed; boundary=\"ü\"",
    ] {
        for offered in [NOTHING, EIGHT_BIT] {
            check_unchanged(&format!("{header}\n\nhi\n"), offered, true, false);
        }
        check_unchanged(&format!("{header}\n\nhi\n"), ALL, true, true);
        // The reason of another field does not hide an internationalised address.
        check_unchanged(&format!("{header}\nFrom: <ü@b.example>\n\nhi\n"), EIGHT_BIT, true, true);
    }
    // A signed part is no reason for SMTPUTF8 either, nor is an address in a message within the message.
    let signed = "Content-Type: multipart/signed; boundary=x\n\n--x\n\nGrüße\n--x--\n";
    check_unchanged(&format!("Subject: Grüße\n{signed}"), NOTHING, true, false);
    check_unchanged(
        "Subject: Grüße\nContent-Type: message/rfc822\n\nFrom: <ü@b.example>\n\nhi\n",
        NOTHING,
        true,
        false,
    );
}

#[test]
fn s_210_a_header_that_is_not_utf_8_is_never_sent_with_smtputf8() {
    for field in [b"From: <j\xFCrgen@b.example>\r\n".as_slice(), b"Message-ID: <\xFC@b.example>\r\n"] {
        let content = vec![Bytes::from([field, b"\r\nhi\r\n"].concat())];
        for offered in [NOTHING, EIGHT_BIT, ALL] {
            let expected = Finished { parts: content.clone(), eight_bit: true, smtputf8: false };
            assert_eq!(finish(&content, offered), expected);
        }
    }
}

#[test]
fn s_204_a_header_in_no_known_charset_is_marked_so() {
    let content = [b"Subject: Gr\xFC\xDFe\r\n\r\nhi\r\n".as_slice()].concat();
    for offered in [EIGHT_BIT, ALL, NOTHING] {
        let finished = finish(&[content.clone().into()], offered);
        assert_eq!(
            finished.parts.concat(),
            b"Subject: =?unknown-8bit?B?R3L832U=?=\r\n\r\nhi\r\n",
            "{offered:?}"
        );
        assert!(!finished.eight_bit && !finished.smtputf8);
    }
}

#[test]
fn s_204_a_signed_part_and_a_broken_structure_are_never_changed() {
    for content in [
        "Content-Type: multipart/signed; boundary=x\n\n--x\n\nGrüße\n--x--\n",
        "Content-Type: multipart/mixed; boundary=y\n\n--y\nContent-Type: multipart/signed; boundary=x\n\n--x\n\nGrüße\n--x--\n\n--y--\n",
        "Content-Type: text/plain\nContent-Transfer-Encoding: base64\n\nGrüße\n",
        "Content-Type: multipart/mixed\n\nGrüße\n",
        "Content-Type: message/partial\n\nGrüße\n",
        "Content-Type: multipart/mixed; boundary=ü\n\n--ü\n\nGrüße\n--ü--\n",
    ] {
        check_unchanged(content, NOTHING, true, false);
    }
    let nested = "Content-Type: message/rfc822\n\n".repeat(30);
    check_unchanged(&format!("{nested}Subject: a\n\nGrüße\n"), NOTHING, true, false);
}

#[test]
fn a_conversion_says_how_much_memory_it_takes() {
    let check = |content: &str, converts: bool| {
        let content = lines(content);
        let half = content.len() / 2;
        for content in [vec![content.clone()], vec![content.slice(..half), content.slice(half..)]] {
            let Prepared::Conversion(conversion) = prepare(&content, NOTHING) else {
                panic!("no conversion");
            };
            let (joined, bytes_max) =
                (if content.len() > 1 { conversion.bytes() } else { 0 }, conversion.bytes_max());
            // A buffer that grows is copied, and takes more memory than it has bytes.
            let (out, converted) = body::convert_within(bytes_max - joined, &content.concat());
            assert_eq!((out.capacity(), converted.is_ok()), (bytes_max - joined, converts));
            assert_eq!(conversion.run().eight_bit, !converts);
        }
    };
    // Bodies that one encoding or the other would make three times as long.
    for line in ["=", "é", "\u{1}", "a", ".\n", " \n", "a\n", "From \n"] {
        check(&format!("Subject: a\n\né{}\n", line.repeat(100_000)), true);
    }
    check(&format!("Subject: {}\n\né\n", "é ".repeat(10_000)), true);
    check(&format!("To: {}\n\né\n", "é,".repeat(1000)), true);
    // Headers of single characters: sent as they are.
    check(&format!("To: {}\n\né\n", "é,".repeat(80_000)), false);
    let part = format!("--x\nTo: {}\n\né\n", "é,".repeat(1000));
    check(&format!("Content-Type: multipart/mixed; boundary=x\n\n{}--x--\n", part.repeat(20)), false);
    // Longer than that: ends of lines with LF alone are three bytes each, and parts of one byte get a header.
    let bare = Bytes::from(format!("Subject: a\r\n\r\né{}", "\n".repeat(100_000)));
    let (out, converted) = body::convert_within(2 * bare.len(), &bare);
    assert_eq!((out.capacity(), converted), (2 * bare.len(), Err(Unconvertible::Size)));
    let part = "--x\n\né\n".repeat(10_000);
    check(&format!("Content-Type: multipart/mixed; boundary=x\n\n{part}--x--\n"), false);
}

#[test]
fn a_header_too_long_to_be_encoded_is_sent_as_it_is() {
    let long = format!("X: {}\n", "a".repeat(900)).repeat(300);
    check_unchanged(&format!("{long}Subject: é\n\nhi\n"), EIGHT_BIT, true, false);
    check_unchanged(&format!("{long}Subject: é\n\nhi\n"), NOTHING, true, false);
    check_unchanged(&"é".repeat(200_000), EIGHT_BIT, true, false);
    // A long header in ASCII is no reason against anything.
    check_unchanged(&format!("{long}\né\n"), EIGHT_BIT, true, false);
    assert!(!finish(&[lines(&format!("{long}\né\n"))], NOTHING).eight_bit);
}

#[test]
fn a_line_full_of_delimiters_takes_linear_time() {
    let header = "Content-Type: multipart/mixed; boundary=b\n\né";
    check_unchanged(&format!("{header}{}", "--b".repeat(1 << 20)), NOTHING, true, false);
}

#[test]
fn s_204_only_the_header_is_encoded_where_the_body_needs_nothing() {
    for body in [
        "Content-Type: multipart/signed; boundary=x\n\n--x\n\nhi\n--x--\n",
        "Content-Type: multipart/digest; boundary=x\n\n--x\n\nSubject: a\n\nhi\n--x--\n",
        "Content-Type: message/partial\n\nhi\n",
        "Content-Type: message/delivery-status\n\nReporting-MTA: dns; a\n",
        "Content-Transfer-Encoding: base64\n\naGk=\n",
        "Content-Type: multipart/mixed\n\nhi\n",
    ] {
        let expected = format!("Subject: =?utf-8?B?R3LDvMOfZQ==?=\n{body}");
        check(&format!("Subject: Grüße\n{body}"), NOTHING, &expected);
        check(&format!("Subject: Grüße\n{body}"), EIGHT_BIT, &expected);
    }
}

#[test]
fn s_204_what_is_outside_of_the_parts_keeps_no_message_from_its_delivery() {
    let header = "MIME-Version: 1.0\nContent-Type: multipart/mixed; boundary=x\n";
    let encoding = "Content-Transfer-Encoding: 7bit\n";
    check(
        &format!("{header}\nVeränderung\n--x\n\nhi\n--x--\nEnde für heute\n--x\n"),
        NOTHING,
        &format!("{header}{encoding}\nVer??nderung\n--x\n\nhi\n--x--\nEnde f??r heute\n--x\n"),
    );
    check(
        &format!("{header}\n--x\n\nhi\n--x--  \nÜ"),
        NOTHING,
        &format!("{header}{encoding}\n--x\n\nhi\n--x--  \n??"),
    );
    // Nothing is outside where there are no parts.
    check_unchanged(&format!("{header}\nVeränderung\n"), NOTHING, true, false);
}

#[test]
fn a_header_that_ends_across_parts_is_found() {
    let content = "Subject: Grüße\r\n\r\nbody é\r\n".as_bytes();
    let expected = finish(&[Bytes::from_static(content)], EIGHT_BIT);
    for at in 1..content.len() {
        let parts = [Bytes::from_static(&content[..at]), Bytes::from_static(&content[at..])];
        let finished = finish(&parts, EIGHT_BIT);
        assert_eq!(finished.parts.concat(), expected.parts.concat(), "{at}");
        assert_eq!((finished.eight_bit, finished.smtputf8), (true, false));
    }
}

proptest::proptest! {
    #[test]
    fn any_content_is_finished_within_what_the_hop_offers_or_says_so(
        content in proptest::collection::vec(proptest::sample::select(vec![
            "Subject: ", "To: ", "Content-Type: ", "multipart/mixed; boundary=b", "text/plain", "message/rfc822",
            "Content-Transfer-Encoding: 8bit", "\r\n", "\r\n\r\n", "--b\r\n", "--b--", "é", "a", "\"", "(", ")", "<", ">", ",", ";", "\\", "=", " ",
        ]), 0..40),
    ) {
        let content = [Bytes::from(content.concat())];
        for offered in [NOTHING, EIGHT_BIT, ALL] {
            let finished = finish(&content, offered);
            let sent = finished.parts.concat();
            proptest::prop_assert!(finished.eight_bit || sent.is_ascii());
            proptest::prop_assert!(!finished.eight_bit || sent == content[0] || offered.eight_bit_mime);
        }
    }

    #[test]
    fn an_encoded_header_has_neither_overlong_nor_blank_lines(
        fields in proptest::collection::vec((
            proptest::sample::select(vec!["Subject", "To", "Content-Type", "Content-Disposition", "X-Note"]),
            proptest::collection::vec(proptest::sample::select(vec![
                "é".to_owned(), "\u{fffd}".repeat(99), " ".to_owned(), "  ".to_owned(), "\t".to_owned(), "a".to_owned(),
                "x".repeat(600), " ".repeat(600), "語".repeat(120), "\\ ".to_owned(), "\"".to_owned(), "(".to_owned(),
                ")".to_owned(), "<".to_owned(), ">".to_owned(), ",".to_owned(), ";".to_owned(), "; filename=".to_owned(),
                "@".to_owned(), "\r\n ".to_owned(), "=?utf-8?Q?a?=".to_owned(),
            ]), 0..12),
            proptest::sample::select(vec!["é", "(é)", "; name=é"]),
        ), 1..4),
    ) {
        let header: String = fields.iter().map(|(name, value, end)| format!("{name}: a{}{end}\r\n", value.concat())).collect();
        let content = [Bytes::from(header + "\r\nhi\r\n")];
        let sent = finish(&content, EIGHT_BIT).parts.concat();
        let text = std::str::from_utf8(&sent).unwrap().strip_suffix("\r\n\r\nhi\r\n").unwrap();
        if sent != content[0] {
            for line in text.split("\r\n") {
                proptest::prop_assert!(line.is_ascii() && line.len() <= 998 && !line.trim().is_empty(), "{text:?}");
            }
        }
    }
}
