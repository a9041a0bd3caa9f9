"""Open WebUI's page in headless Chromium. Independent of Pippin; raises what Playwright raises."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from playwright.sync_api import Page, expect, sync_playwright

WAIT_MS = 60_000
SETTLE_MS = 500  # the page shows the last words after the button, and moves its hints and folds
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"]
ANSWER, DONE = ".chat-assistant", ".copy-response-button"  # the button is below each finished answer
WATCH = """index => {
    window.watcher?.disconnect();
    window.seen = [];
    window.watcher = new MutationObserver(() => {
        const text = document.querySelectorAll('.chat-assistant')[index]?.querySelector('.markdown-prose')?.innerText;
        if (text && text !== window.seen.at(-1)) window.seen.push(text);
    });
    window.watcher.observe(document.body, {subtree: true, childList: true, characterData: true});
}"""


class Chat:
    """The page; `shots` is the folder of its screenshots."""

    def __init__(self, page: Page, url: str, shots: Path) -> None:
        self._page, self._url, self._shots = page, url, shots
        page.goto(url)
        page.get_by_role("button", name="Okay, Let's Go!").click()  # dismisses the release notes

    def add_model(self, name: str, base: str, **custom: object) -> None:
        """Add a model to Open WebUI's workspace: `base`, with more fields in each request."""
        model = {"id": name, "name": name, "base_model_id": base, "params": {"custom_params": custom}, "meta": {}}
        expect(self._page.request.post(f"{self._url}/api/v1/models/create", data=model)).to_be_ok()

    def new(self, model: str) -> None:
        """Begin a conversation."""
        self._page.goto(f"{self._url}/?models={model}")
        expect(self._page.locator("#model-selector-model-button")).to_have_text(model)

    def send(self, question: str) -> None:
        """Send, and wait until the page has a place for the answer."""
        count = self._page.locator(ANSWER).count()
        self._page.evaluate(WATCH, count)
        self._page.locator("#chat-input").fill(question)
        self._page.locator("#send-message-button").click()
        expect(self._page.locator(ANSWER)).to_have_count(count + 1)

    def finish(self) -> list[str]:
        """Wait for the answer's end; return every text it had on the page, without reasoning, the whole one last."""
        expect(self._page.locator(DONE)).to_have_count(self._page.locator(ANSWER).count())
        self._page.wait_for_timeout(SETTLE_MS)
        seen: list[str] = self._page.evaluate("window.seen")
        return seen

    def ask(self, question: str) -> list[str]:
        self.send(question)
        return self.finish()

    def wait_for(self, text: str) -> None:
        expect(self._page.locator(ANSWER).last).to_contain_text(text)

    def open_reasoning(self) -> str:
        """Unfold the last answer's reasoning; return the lines that appear."""
        answer = self._page.locator(ANSWER).last
        fold = answer.get_by_role("button", name="Thought for", expanded=False)
        folded = answer.inner_text().splitlines()
        fold.click()
        expect(answer.get_by_role("button", name="Thought for", expanded=True)).to_be_visible()
        return "\n".join(line for line in answer.inner_text().splitlines() if line not in folded)

    def stop(self) -> None:
        self._page.get_by_role("button", name="Stop", exact=True).click()

    def screenshot(self, name: str) -> None:
        self._page.mouse.move(0, 450)  # away from buttons, whose hints would be in the picture
        self._page.wait_for_timeout(SETTLE_MS)
        self._page.screenshot(path=self._shots / f"{name}.png")


@contextmanager
def browsing(url: str, shots: Path) -> Iterator[Chat]:
    """Yield a browser with Open WebUI's page; a failure leaves the screenshot `failed`."""
    expect.set_options(timeout=WAIT_MS)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=FLAGS)
        page = browser.new_page(viewport={"width": 1280, "height": 900})
        page.set_default_timeout(WAIT_MS)
        try:
            yield Chat(page, url, shots)
        except Exception:
            page.screenshot(path=shots / "failed.png")
            raise
        finally:
            browser.close()
