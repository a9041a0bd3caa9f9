#!/usr/bin/env bash
# Continue's command line against Pippin. Further arguments are those of `cn`.
#
# pippin serve MODEL                                 # in one terminal
# npm install -g @continuedev/cli                    # once
# examples/continue.sh http://127.0.0.1:8080 -p 'Say what this folder is for.'
set -euo pipefail

url=${1:-http://127.0.0.1:8080}
shift || true

# For good, these lines go into ~/.continue/config.yaml
config=$(mktemp -d)
trap 'rm -rf "$config"' EXIT
model=$(curl -fsS "$url/v1/models" | grep -o '"id":"[^"]*"' | head -n 1 | cut -d '"' -f 4)
cat >"$config/config.yaml" <<YAML
name: Pippin
version: 1.0.0
schema: v1
models:
  - name: $model
    provider: openai
    model: $model
    apiBase: $url/v1
    apiKey: none
    roles: [chat]
    capabilities: [tool_use]
YAML

cn --config "$config/config.yaml" "$@"
