# curl over SMTP.
set -uo pipefail
. ./common.sh

message() {
    printf 'From: <me@example.org>\r\nTo: <%s>\r\nSubject: curl\r\n\r\nhello\r\n.a dot\r\n' "$1"
}

send() {
    local to=$1
    shift
    message "$to" >"$WORK/curl.eml"
    curl -sS --mail-from me@example.org --mail-rcpt "$to" -T "$WORK/curl.eml" "$@" >&2
}

plain() {
    send curl-plain@example.net "smtp://127.0.0.1:$SMTP_PORT/client.test" || return 1
    arrived curl-plain@example.net
}

starttls() {
    send curl-starttls@example.net --ssl-reqd -k -u "$LOGIN:$SECRET" "smtp://127.0.0.1:$SMTP_PORT" || return 1
    arrived curl-starttls@example.net
}

smtps() {
    send curl-smtps@example.net -k -u "$LOGIN:$SECRET" "smtps://127.0.0.1:$SMTPS_PORT" || return 1
    arrived curl-smtps@example.net
}

# curl exits with 67 when the login is refused.
wrong_password() {
    local status=0
    send curl-wrong@example.net --ssl-reqd -k -u "$LOGIN:wrong" "smtp://127.0.0.1:$SMTP_PORT" || status=$?
    [ "$status" = 67 ]
}

check "curl: smtp://" plain
check "curl: smtp:// with STARTTLS and a login" starttls
check "curl: smtps:// with a login" smtps
check "curl: a wrong password is refused" wrong_password
