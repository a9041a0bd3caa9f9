"""`pippin chat`: chat with a server, on a terminal or through a pipe. Options and exit codes."""

from __future__ import annotations

import os
import sys

import typer

from server.config import ConfigError

DEFAULT_URL = "http://127.0.0.1:8080"

Url = typer.Option(DEFAULT_URL, "--url", metavar="URL", help="Server: Pippin, or another with OpenAI's API.")
Model = typer.Option(None, "--model", help="Model. Default: the first one served.", show_default=False)
System = typer.Option(None, "--system", metavar="TEXT", help="System prompt.", show_default=False)
Key = typer.Option(None, "--key", help="API key, or @FILE with the key.", show_default=False)
KeepsHistory = typer.Option(True, "--history/--no-history", help="Keep the input history between sessions.")


def chat(
    url: str = Url,
    model: str | None = Model,
    system: str | None = System,
    key: str | None = Key,
    history: bool = KeepsHistory,
) -> None:
    """Chat with a model. Without a terminal, answer standard input on standard output."""
    from server.client.chat import ChatError, Conversation
    from server.client.terminal import answer_once, talk
    from server.client.wire import read_key

    try:
        conversation = Conversation(url, model=model, key=read_key(key), system=system)
    except (OSError, ValueError) as error:
        raise ConfigError(str(error)) from None
    with conversation:
        try:
            if sys.stdin.isatty() and sys.stdout.isatty():
                talk(conversation, keeps_history=history)
            else:
                answer_once(conversation, sys.stdin.read(), sys.stdout)
        except ChatError as error:
            print(f"pippin: {error}", file=sys.stderr)
            raise typer.Exit(1) from None
        except KeyboardInterrupt:
            raise typer.Exit(130) from None
        except BrokenPipeError:  # the reader closed the pipe
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
