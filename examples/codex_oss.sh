#!/usr/bin/env bash
# OpenAI's codex against Pippin, in place of an Ollama. Further arguments are those of `codex exec`.
#
# pippin serve MODEL                                 # in one terminal; its context should be 64k tokens or more
# npm install -g @openai/codex                       # once
# examples/codex_oss.sh http://127.0.0.1:8080 'Say what this folder is for.'
set -euo pipefail

url=${1:-http://127.0.0.1:8080}
shift || true

# The name has to be one that the server lists, or codex would have it pulled.
model=$(curl -fsS "$url/v1/models" | grep -o '"id":"[^"]*"' | head -n 1 | cut -d '"' -f 4)
export CODEX_OSS_BASE_URL="$url/v1"
exec codex exec --oss --local-provider ollama --model "$model" --skip-git-repo-check "$@" </dev/null
