//! Our replies to SMTP clients, dialogue by dialogue.
//!
//! Each test plays the file of its name in `tests/dialogues`, first against the bare session without I/O,
//! then against a listener over a real connection. Those that need no special listener are played against
//! `postroad dev` too. A new dialogue is a new file and a line here.

use std::{collections::BTreeSet, path::PathBuf, time::Duration};

use postroad_testkit::{
    dev::Dev,
    dialogue::{BareSession, Dialogue, Listener, LiveSession, Outcome, play},
};

fn folder() -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/dialogues"))
}

fn dialogue(name: &str) -> Dialogue {
    Dialogue::read(&folder().join(format!("{name}.txt"))).unwrap_or_else(|error| panic!("{error}"))
}

fn check(name: &str) {
    let dialogue = dialogue(name);
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime starts");
    runtime.block_on(async {
        let mut bare = BareSession::new(&dialogue.settings);
        match play(&dialogue, &mut bare).await {
            Ok(outcome) => assert_eq!(outcome, Outcome::Passed),
            Err(error) => panic!("the session as a value: {error}"),
        }
        if dialogue.settings.bare_only {
            return;
        }
        let listener = Listener::start(&dialogue.settings).await.expect("loopback has a free port");
        let mut live = listener.connect(&dialogue.settings).await.expect("the listener listens");
        match play(&dialogue, &mut live).await {
            Ok(outcome) => assert_eq!(outcome, Outcome::Passed),
            Err(error) => panic!("a listener: {error}"),
        }
    });
}

macro_rules! dialogues {
    ($($name:ident,)*) => {
        $(
            #[test]
            fn $name() {
                check(stringify!($name));
            }
        )*

        const DIALOGUES: &[&str] = &[$(stringify!($name),)*];
    };
}

dialogues! {
    login_headers_are_repaired_or_carried,
    login_lines_that_end_with_lf,
    s_001_greeting,
    s_001_the_greeting_names_the_host,
    s_002_client_speaks_first,
    s_003_names_at_submission,
    s_003_names_in_ehlo,
    s_003_names_of_strangers,
    s_004_capabilities_are_recomputed,
    s_004_second_ehlo_resets,
    s_005_mail_before_ehlo,
    s_006_and_s_030_too_many_unknown_verbs,
    s_006_unknown_verb,
    s_007_http_connect,
    s_007_http_get,
    s_007_http_post,
    s_007_ssh,
    s_007_tls_client_hello,
    s_007_within_a_session,
    s_008_commands_not_offered,
    s_008_not_announced,
    s_009_vrfy_changes_nothing,
    s_010_noop_and_rset,
    s_011_nested_mail,
    s_012_null_sender,
    s_013_stray_space_in_strict_mode,
    s_013_stray_space_is_forgiven,
    s_014_and_s_016_paths_after_a_login_are_repaired_or_carried,
    s_014_and_s_016_strict_syntax_refuses_what_is_tolerated,
    s_014_bad_recipient_address,
    s_014_bad_sender_address,
    s_014_paths_of_strangers_are_not_repaired,
    s_015_source_route_is_ignored,
    s_016_too_long_paths,
    s_017_quoted_local_parts,
    s_018_bare_cr,
    s_018_bare_lf,
    s_018_bare_line_ended_by_lf,
    s_018_control_characters,
    s_019_encoded_word_is_not_decoded,
    s_021_rcpt_outside_a_transaction,
    s_022_a_recipient_named_twice_counts_once,
    s_022_default_recipient_limit,
    s_022_recipients_over_the_limit_do_not_end_the_session,
    s_022_too_many_recipients,
    s_023_data_without_recipients,
    s_024_hidden_commands_do_not_relay,
    s_024_pipelined_data_after_refused_recipients,
    s_025_unknown_parameter,
    s_026_bad_value,
    s_027_duplicate_parameter,
    s_028_endless_line,
    s_028_long_lines,
    s_029_bytes_that_are_not_utf_8,
    s_030_a_message_resets_the_error_count,
    s_030_a_message_resets_the_junk_count,
    s_030_a_stranger_names_too_many_recipients,
    s_030_a_stranger_tries_recipients,
    s_030_malformed_addresses_of_an_authenticated_client,
    s_030_refusals_of_an_authenticated_client,
    s_030_too_much_junk,
    s_031_idle_too_long,
    s_031_idle_within_a_message,
    s_032_shutdown_while_idle,
    s_034_the_queue_cannot_commit,
    s_036_and_s_203_commands_after_quit_are_ignored,
    s_036_quit_with_an_argument,
    s_039_relaying_is_denied,
    s_039_submission_needs_a_login,
    s_041_exactly_one_from,
    s_043_and_d_068_too_many_hops,
    s_101_lf_dot_lf,
    s_101_lf_dot_lf_after_login,
    s_102_lf_dot_crlf,
    s_102_lf_dot_crlf_after_login,
    s_103_crlf_dot_lf,
    s_103_crlf_dot_lf_after_login,
    s_104_cr_dot_cr,
    s_104_cr_dot_crlf,
    s_104_cr_dot_lf,
    s_104_crlf_dot_cr,
    s_104_lf_dot_cr,
    s_105_cr_crlf_dot_crlf,
    s_105_crlf_dot_cr_crlf,
    s_106_crlf_dot_nul_crlf,
    s_106_crlf_nul_dot_crlf,
    s_106_form_feed_is_not_a_line_end,
    s_106_line_separator_is_not_a_line_end,
    s_106_nel_is_not_a_line_end,
    s_106_vertical_tab_is_not_a_line_end,
    s_107_end_of_data_split_over_segments,
    s_107_end_of_data_split_over_tls_records,
    s_108_commands_after_a_message,
    s_108_commands_after_a_refused_message,
    s_110_first_line_begins_with_a_dot,
    s_110_leading_dots,
    s_111_a_field_name_with_a_space,
    s_111_header_ended_by_text,
    s_113_rset_between_messages,
    s_201_a_message_that_is_too_large_has_the_same_deadline,
    s_201_no_limit,
    s_201_size,
    s_203_a_group_over_several_segments,
    s_203_and_s_401_commands_after_starttls_in_one_segment,
    s_203_commands_after_auth_in_one_segment,
    s_203_commands_after_ehlo_in_one_segment,
    s_203_pipelining,
    s_203_what_follows_data_is_content,
    s_210_smtputf8,
    s_211_names_in_any_spelling,
    s_301_auth_needs_tls,
    s_302_auth_errors,
    s_302_auth_login,
    s_302_auth_plain,
    s_302_auth_plain_in_two_steps,
    s_303_auth_twice_and_within_a_transaction,
    s_303_auth_within_a_transaction,
    s_304_three_wrong_passwords,
    s_309_auth_parameter,
    s_401_commands_after_starttls_half_a_command,
    s_401_commands_after_starttls_lower_case,
    s_401_commands_after_starttls_with_a_space,
    s_401_starttls_ended_by_lf,
    s_401_starttls_split_over_segments,
    s_403_starttls_resets_the_session,
    s_404_starttls_with_an_argument,
    s_404_starttls_without_a_certificate,
}

#[test]
fn every_dialogue_is_played() {
    let files: BTreeSet<String> = std::fs::read_dir(folder())
        .unwrap()
        .map(|entry| entry.unwrap().path().file_stem().unwrap().to_string_lossy().into_owned())
        .collect();
    let played: BTreeSet<String> = DIALOGUES.iter().map(ToString::to_string).collect();
    assert_eq!(files, played);
}

#[tokio::test]
async fn postroad_dev_replies_as_the_listener_does() {
    let dev = Dev::start(&[]).await.unwrap_or_else(|error| panic!("{error:#}"));
    let mut broken = Vec::new();
    for name in DIALOGUES {
        let dialogue = dialogue(name);
        if !dialogue.settings.are_default() {
            continue;
        }
        let mut live = LiveSession::connect(dev.smtp()).await.expect("the program listens");
        if let Err(error) = play(&dialogue, &mut live).await {
            broken.push(error.to_string());
        }
    }
    let log = dev.stop(Duration::from_secs(30)).await;
    assert!(broken.is_empty(), "{}\n{log}", broken.join("\n"));
}
