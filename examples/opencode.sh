#!/usr/bin/env bash
# opencode against Pippin. Further arguments are opencode's. PROVIDER names the API: @ai-sdk/openai-compatible for chat
# completions, @ai-sdk/anthropic for messages, @ai-sdk/openai for responses.
#
# pippin serve MODEL                                 # in one terminal; its context should be 32k tokens or more
# npm install -g opencode-ai                         # once
# examples/opencode.sh http://127.0.0.1:8080 run 'Say what this folder is for.'
#
# `pippin launch opencode` does the same, and tells opencode the size of the context, too.
set -euo pipefail

url=${1:-http://127.0.0.1:8080}
shift || true

# For good, these lines go into ~/.config/opencode/opencode.json
OPENCODE_CONFIG=$(mktemp)
export OPENCODE_CONFIG
trap 'rm -f "$OPENCODE_CONFIG"' EXIT
model=$(curl -fsS "$url/v1/models" | grep -o '"id":"[^"]*"' | head -n 1 | cut -d '"' -f 4)
cat >"$OPENCODE_CONFIG" <<JSON
{
  "model": "pippin/$model",
  "small_model": "pippin/$model",
  "provider": {
    "pippin": {
      "npm": "${PROVIDER:-@ai-sdk/openai-compatible}",
      "name": "Pippin",
      "options": {"baseURL": "$url/v1", "apiKey": "none"},
      "models": {"$model": {"name": "$model"}}
    }
  }
}
JSON

opencode "$@"
