#!/usr/bin/env bash
# Several replicas of one model behind one address, on this machine: Pippin twice, and the router smg before them.
#
#   python3 -m venv router && router/bin/pip install smg          # once, in an environment of its own
#   PATH=$PWD/router/bin:$PATH examples/replicas/serve.sh         # the pocket model; Ctrl-C ends everything
#   examples/replicas/serve.sh MODEL --memory-limit-gb 200        # arguments go to every `pippin serve`
#
# Replicas on other machines: start `pippin serve` there, and here
#
#   WORKERS="http://mac-1.local:8080 http://mac-2.local:8080" examples/replicas/serve.sh
#
# Variables, with their defaults: HOST=127.0.0.1 PORT=8080 FIRST_PORT=8081 REPLICAS=2 POLICY=cache_aware LOGS= (a folder)
# PIPPIN=pippin SMG=smg SMG_ARGS= (more arguments of `smg launch`; all values are in docs/replicas.md).
set -euo pipefail

host=${HOST:-127.0.0.1}
port=${PORT:-8080}
first=${FIRST_PORT:-8081}
number=${REPLICAS:-2}
policy=${POLICY:-cache_aware}
smg=${SMG:-smg}
beside=$(dirname "${BASH_SOURCE[0]}")/../../.venv/bin
pippin=${PIPPIN:-$(PATH=$PATH:$beside command -v pippin || true)}

[ -n "$pippin" ] || { echo "serve.sh: there is no pippin; run scripts/install" >&2; exit 2; }
command -v "$smg" >/dev/null || { echo "serve.sh: there is no smg; pip install smg, or set SMG" >&2; exit 2; }

pids=()
stop() {
    trap - EXIT INT TERM
    # The router first, so that it sends nothing more. Both let running answers end.
    [ -z "${router:-}" ] || { kill "$router" 2>/dev/null && wait "$router"; } || true
    for pid in ${pids[@]+"${pids[@]}"}; do kill "$pid" 2>/dev/null || true; done
    wait
}
trap stop EXIT
trap 'exit 0' INT TERM

start() {  # NAME COMMAND...: in the background, its output to a file where there is a folder for logs
    local name=$1
    shift
    if [ -n "${LOGS:-}" ]; then "$@" >"$LOGS/$name.log" 2>&1 & else "$@" & fi
}

workers=${WORKERS:-}
if [ -z "$workers" ]; then
    for ((i = 0; i < number; i++)); do
        start "replica-$i" "$pippin" serve "$@" --host 127.0.0.1 --port $((first + i))
        pids+=($!)
        workers="$workers http://127.0.0.1:$((first + i))"
    done
fi

# The router takes a replica that loads for one that is ready, and would send it requests for some seconds. So it starts last.
for worker in $workers; do
    until curl --silent --fail --noproxy '*' --max-time 5 --output /dev/null "$worker/ready"; do
        for pid in ${pids[@]+"${pids[@]}"}; do
            kill -0 "$pid" 2>/dev/null || { echo "serve.sh: a replica has ended before it was ready" >&2; exit 1; }
        done
        sleep 0.5
    done
done

# A proxy has no business between the router and its replicas, and tokenizers from a hub are of no use to it.
export no_proxy="127.0.0.1,localhost${no_proxy:+,$no_proxy}"
export NO_PROXY=$no_proxy

# /ready and not /health: a replica that drains is healthy, and wants nothing new. The last two outwait long prompts.
# shellcheck disable=SC2086  # the words of these variables are arguments
start router "$smg" launch --host "$host" --port "$port" --worker-urls $workers --policy "$policy" \
    --prometheus-host 127.0.0.1 --prometheus-port "${METRICS_PORT:-29000}" --log-level warn \
    --health-check-endpoint /ready --health-check-interval-secs 2 --health-success-threshold 1 \
    --worker-startup-check-interval 1 --load-monitor-interval 2 --worker-wedge-secs 120 --request-timeout-secs 86400 \
    --disable-tokenizer-autoload ${SMG_ARGS:-}
router=$!
echo "serve.sh: http://$host:$port sends to:$(printf ' %s' $workers)" >&2
wait "$router"
