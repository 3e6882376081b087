# swaks, a test client for SMTP.
set -uo pipefail
. ./common.sh

server=127.0.0.1
swaks_to() { swaks --server "$server" --from me@example.org --to "$@" --silent 2 >&2; }

starttls_and_plain() {
    swaks_to swaks-plain@example.net --port "$SMTP_PORT" --tls --auth PLAIN -au "$LOGIN" -ap "$SECRET" || return 1
    arrived swaks-plain@example.net
}

starttls_and_login() {
    swaks_to swaks-login@example.net --port "$SMTP_PORT" --tls --auth LOGIN -au "$LOGIN" -ap "$SECRET" || return 1
    arrived swaks-login@example.net
}

tls_from_the_start() {
    swaks_to swaks-smtps@example.net --port "$SMTPS_PORT" --tls-on-connect -au "$LOGIN" -ap "$SECRET" || return 1
    arrived swaks-smtps@example.net
}

without_tls() {
    swaks_to swaks-clear@example.net --port "$SMTP_PORT" || return 1
    arrived swaks-clear@example.net
}

pipelined() {
    swaks_to swaks-one@example.net,swaks-two@example.net --port "$SMTP_PORT" --pipeline || return 1
    arrived swaks-one@example.net && arrived swaks-two@example.net
}

# swaks exits with 28 when AUTH fails.
wrong_password() {
    local status=0
    swaks_to swaks-wrong@example.net --port "$SMTP_PORT" --tls --auth PLAIN -au "$LOGIN" -ap wrong || status=$?
    [ "$status" = 28 ]
}

check "swaks: STARTTLS and AUTH PLAIN" starttls_and_plain
check "swaks: STARTTLS and AUTH LOGIN" starttls_and_login
check "swaks: TLS from the start" tls_from_the_start
check "swaks: without TLS from this machine" without_tls
check "swaks: two recipients, pipelined" pipelined
check "swaks: a wrong password is refused" wrong_password
