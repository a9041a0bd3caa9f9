"""litellm through the Ollama API of Pippin, as aider and others use it: an answer, and one that is streamed.

pip install litellm                                               # once
make serve                                                        # in one terminal
python examples/litellm_ollama.py http://127.0.0.1:8080           # in another; or set OLLAMA_API_BASE
"""

from __future__ import annotations

import sys
from typing import Any

import litellm

ASKED: Any = [{"role": "user", "content": "How many r's are in the word strawberry?"}]


def main(url: str = "http://127.0.0.1:8080") -> None:
    options: dict[str, Any] = {"model": "ollama_chat/pocket", "api_base": url, "messages": ASKED, "temperature": 0}
    answer: Any = litellm.completion(**options)
    print(f"[{answer.choices[0].message.reasoning_content}]{answer.choices[0].message.content}")
    chunks: Any = litellm.completion(**options, stream=True)
    print("".join(chunk.choices[0].delta.content or "" for chunk in chunks))


if __name__ == "__main__":
    main(*sys.argv[1:])
