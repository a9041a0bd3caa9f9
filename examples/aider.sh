#!/usr/bin/env bash
# aider against Pippin, by one of three APIs: chat, messages or ollama. Further arguments are aider's.
#
# pippin serve MODEL --aliases 'claude-*'            # in one terminal; the alias is for `messages` alone
# pip install aider-chat                             # once, in an environment of its own
# examples/aider.sh http://127.0.0.1:8080 chat hello.py
#
# `pippin launch aider` does the same, and tells aider the size of the context, too.
set -euo pipefail

url=${1:-http://127.0.0.1:8080}
api=${2:-chat}
shift $(($# < 2 ? $# : 2))

model=$(curl -fsS "$url/v1/models" | grep -o '"id":"[^"]*"' | head -n 1 | cut -d '"' -f 4)
case $api in
    chat) export OPENAI_API_BASE="$url/v1" OPENAI_API_KEY=none name="openai/$model" ;;
    messages) export ANTHROPIC_API_BASE="$url" ANTHROPIC_API_KEY=none name=anthropic/claude-local ;;
    ollama) export OLLAMA_API_BASE="$url" name="ollama_chat/$model" ;;
    *) echo "aider.sh: unknown API '$api'; use chat, messages or ollama" >&2; exit 2 ;;
esac
exec aider --model "$name" --no-show-model-warnings --no-check-update --analytics-disable "$@"
