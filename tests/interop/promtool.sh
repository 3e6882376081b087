# promtool: what Prometheus thinks of the metrics of all roles.
set -uo pipefail
. ./common.sh

metrics_pass_promtool() {
    curl -fs "http://127.0.0.1:$METRICS_PORT/metrics" | promtool check metrics >&2
}

check "promtool finds nothing wrong with /metrics" metrics_pass_promtool
