"""Tags in a text that arrives in pieces. Knows characters only."""

from __future__ import annotations

from collections.abc import Sequence


def find_tag(text: str, tags: Sequence[str], start: int = 0) -> tuple[int, str | None]:
    """(where the first tag to be complete begins, that tag), or (from where on `text` may begin one, None).

    Looks from `start` on. No tag may be empty.
    """
    found = [(place + len(tag), place, tag) for tag in tags if (place := text.find(tag, start)) >= 0]
    if found:
        _, place, tag = min(found)
        return place, tag
    return min((_place_of_half(text, tag, start) for tag in tags), default=len(text)), None


def _place_of_half(text: str, tag: str, start: int) -> int:
    """Where the longest tail of `text` that begins `tag` begins; len(text) where none does."""
    place = text.find(tag[0], max(start, len(text) - len(tag) + 1))
    while place >= 0 and not tag.startswith(text[place:]):
        place = text.find(tag[0], place + 1)
    return place if place >= 0 else len(text)


def without_cut_tag(text: str, cut: str, tags: Sequence[str]) -> str:
    """`text` without half a tag at its end, where `cut`, which followed and was cut off, shows it to be one."""
    place, found = find_tag(text, tags)
    whole = text[place:] + cut
    is_tag = cut and found is None and place < len(text) and any(tag.startswith(whole[: len(tag)]) for tag in tags)
    return text[:place] if is_tag else text
