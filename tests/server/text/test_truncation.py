"""What goes first of a conversation, and what never goes."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from server.text.truncation import count_droppable, without_oldest


def message(role: str, content: str = "") -> dict[str, str]:
    return {"role": role, "content": content}


CHAT = [
    message("system", "be brief"),
    message("user", "weather in Rome?"),
    message("assistant", "(calls a tool)"),
    message("tool", "sunny"),
    message("assistant", "Sunny."),
    message("user", "and in Paris?"),
    message("assistant", "Rainy."),
    message("system", "be kind"),
    message("user", "thanks"),
]


def test_turns_go_whole_and_the_oldest_first() -> None:
    assert count_droppable(CHAT) == 2
    assert without_oldest(CHAT, 0) == tuple(CHAT)
    assert [m["content"] for m in without_oldest(CHAT, 1)] == [
        "be brief",
        "and in Paris?",
        "Rainy.",
        "be kind",
        "thanks",
    ]
    assert [m["content"] for m in without_oldest(CHAT, 2)] == ["be brief", "be kind", "thanks"]


def test_a_result_of_the_last_turn_stays_with_its_call() -> None:
    chat = CHAT[:4]
    assert count_droppable(chat) == 0


def test_what_an_assistant_says_first_is_a_turn() -> None:
    chat = [message("assistant", "Hello!"), message("user", "hi")]
    assert without_oldest(chat, count_droppable(chat)) == (chat[1],)


roles = st.lists(st.sampled_from(["system", "user", "assistant", "tool"]), max_size=12)


@given(roles, st.integers(0, 12))
def test_system_messages_and_the_last_turn_stay_whatever_goes(found: list[str], dropped: int) -> None:
    chat = [message(role, str(place)) for place, role in enumerate(found)]
    kept = without_oldest(chat, min(dropped, count_droppable(chat)))
    assert [m for m in chat if m["role"] == "system"] == [m for m in kept if m["role"] == "system"]
    if "user" in found:
        last = max(place for place, role in enumerate(found) if role == "user")
        assert set(range(last, len(chat))) <= {int(m["content"]) for m in kept}
    others = [m for m in kept if m["role"] != "system"]
    assert len(others) == 0 or others == [m for m in chat if m["role"] != "system"][-len(others) :]
