# Shared by the shell checks: source it.

# Waits until the sandbox has NUMBER messages to a recipient, 1 by default: arrived RECIPIENT [NUMBER].
arrived() {
    local expected=${2:-1} found=0
    for _ in $(seq 300); do
        found=$(curl -fsG "http://127.0.0.1:$HTTP_PORT/sandbox/v1/messages" --data-urlencode "to=$1" -d limit=1000 |
            grep -o '"message_id"' | wc -l)
        [ "$found" -lt "$expected" ] || break
        sleep 0.1
    done
    if [ "$found" != "$expected" ]; then
        echo "to $1: expected $expected messages, found $found" >&2
        return 1
    fi
}

# Runs a function and prints its result: check NAME FUNCTION.
check() {
    if (set -e; "$2"); then echo "ok $1"; else echo "FAILED $1"; fi
}
