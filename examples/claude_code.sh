#!/usr/bin/env bash
# Claude Code against Pippin. Further arguments are Claude Code's.
#
# pippin serve MODEL --aliases 'claude-*'            # in one terminal; its context should be 64k tokens or more
# npm install -g @anthropic-ai/claude-code           # once
# examples/claude_code.sh http://127.0.0.1:8080 -p 'Say what this folder is for.'
#
# `pippin launch claude` needs no alias, and keeps your own settings of Claude Code out of it.
set -euo pipefail

url=${1:-http://127.0.0.1:8080}
shift || true

export ANTHROPIC_BASE_URL="$url" ANTHROPIC_AUTH_TOKEN=none CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC=1
exec claude "$@"
