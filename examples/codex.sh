#!/usr/bin/env bash
# OpenAI's codex against Pippin, which it asks through /v1/responses. Further arguments are those of `codex exec`.
#
# pippin serve MODEL                                 # in one terminal; its context should be 64k tokens or more
# npm install -g @openai/codex                       # once
# examples/codex.sh http://127.0.0.1:8080 'Say what this folder is for.'
set -euo pipefail

url=${1:-http://127.0.0.1:8080}
shift || true

# For good, these lines go into ~/.codex/config.toml
CODEX_HOME=$(mktemp -d)
export CODEX_HOME
trap 'rm -rf "$CODEX_HOME"' EXIT
model=$(curl -fsS "$url/v1/models" | grep -o '"id":"[^"]*"' | head -n 1 | cut -d '"' -f 4)
cat >"$CODEX_HOME/config.toml" <<TOML
model = "$model"
model_provider = "pippin"

[model_providers.pippin]
name = "Pippin"
base_url = "$url/v1"
wire_api = "responses"
TOML

codex exec --skip-git-repo-check "$@" </dev/null
