# smtp-source of Postfix: many connections at once.
set -uo pipefail
. ./common.sh

source_to() { smtp-source -f me@example.org "$@" "127.0.0.1:$SMTP_PORT" >&2; }

one_message_on_a_connection() {
    source_to -t source-one@example.net -s 20 -m 200 -l 4096 || return 1
    arrived source-one@example.net 200
}

many_messages_on_a_connection() {
    source_to -t source-many@example.net -d -s 10 -m 200 -l 4096 || return 1
    arrived source-many@example.net 200
}

many_recipients() {
    source_to -t source-recipient@example.net -r 5 -s 2 -m 10 || return 1
    # smtp-source puts a number before each recipient except the first; each message has all five recipients.
    arrived source-recipient@example.net 10 && arrived 5source-recipient@example.net 10
}

check "smtp-source: 200 messages, one on a connection" one_message_on_a_connection
check "smtp-source: 200 messages, many on a connection" many_messages_on_a_connection
check "smtp-source: five recipients" many_recipients
