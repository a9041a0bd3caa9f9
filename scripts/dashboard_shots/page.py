"""The dashboard's page in headless Chromium: its content, and checks that always hold. Raises as Playwright does."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from playwright.sync_api import Browser, ConsoleMessage, Page, Request, expect, sync_playwright

WAIT_MS = 30_000
SETTLE_MS = 700
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"]
SIZES = {"desktop": (1280, 900), "phone": (390, 844)}

# Contrast (WCAG 2) of each visible text with its background, if it is too low.
FAINT_TEXT = """() => {
    const canvas = document.createElement('canvas').getContext('2d', {willReadFrequently: true});
    const rgba = text => {
        canvas.clearRect(0, 0, 1, 1); canvas.fillStyle = text; canvas.fillRect(0, 0, 1, 1);
        return [...canvas.getImageData(0, 0, 1, 1).data];
    };
    const light = ([r, g, b]) => [r, g, b].map(v => v / 255)
        .map(v => v <= .04045 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4)
        .reduce((sum, v, i) => sum + v * [.2126, .7152, .0722][i], 0);
    const behind = node => {
        for (; node; node = node.parentElement) {
            const found = rgba(getComputedStyle(node).backgroundColor);
            if (found[3] === 255) return found;
        }
        return [255, 255, 255, 255];
    };
    const faint = [];
    const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
    while (walker.nextNode()) {
        const node = walker.currentNode.parentElement;
        if (!walker.currentNode.data.trim() || !node.checkVisibility() || node.closest('.hidden, .skip')) continue;
        const [a, b] = [light(rgba(getComputedStyle(node).color)), light(behind(node))];
        const contrast = (Math.max(a, b) + .05) / (Math.min(a, b) + .05);
        if (contrast < 4.5) faint.push(`${contrast.toFixed(2)} ${walker.currentNode.data.trim().slice(0, 40)}`);
    }
    return faint;
}"""
# Elements that take input or clicks without a name for screen readers.
NAMELESS = """() => [...document.querySelectorAll('button, input, textarea, summary, [role=img], [role=progressbar]')]
    .filter(node => node.checkVisibility())
    .filter(node => !(node.getAttribute('aria-label') || node.innerText?.trim() || node.textContent.trim()
                      || node.labels?.length))
    .map(node => node.outerHTML.slice(0, 80))"""


class Dashboard:
    """One page; `complaints` lists its console messages, and every request to another host."""

    def __init__(self, browser: Browser, url: str, size: tuple[int, int], scheme: str) -> None:
        dark: Any = scheme
        self.context = browser.new_context(
            viewport={"width": size[0], "height": size[1]},
            color_scheme=dark,
            device_scale_factor=1 if size[0] > 500 else 2,
        )
        self.page: Page = self.context.new_page()
        self.page.set_default_timeout(WAIT_MS)
        self.complaints: list[str] = []
        self._url = url
        self.page.on("console", self._heard)
        self.page.on("pageerror", lambda error: self.complaints.append(f"exception: {error}"))
        self.page.on("request", self._asked)
        self.page.goto(url)

    def _heard(self, message: ConsoleMessage) -> None:
        if message.type in ("error", "warning"):
            self.complaints.append(f"console: {message.text} {message.location.get('url', '')}")

    def _asked(self, request: Request) -> None:
        if not request.url.startswith(self._url):
            self.complaints.append(f"asked elsewhere: {request.url}")

    def see(self, text: str, place: str = "#health-text") -> None:
        expect(self.page.locator(place)).to_contain_text(text)

    def is_wider_than_the_screen(self) -> bool:
        wide: bool = self.page.evaluate("document.documentElement.scrollWidth > document.documentElement.clientWidth")
        return wide

    def faint_texts(self) -> list[str]:
        found: list[str] = self.page.evaluate(FAINT_TEXT)
        return found

    def nameless(self) -> list[str]:
        found: list[str] = self.page.evaluate(NAMELESS)
        return found

    def send(self, text: str) -> None:
        self.page.locator("#chat-text").fill(text)
        self.page.locator("#chat-text").press("Enter")

    def answer(self) -> str:
        """Return the newest answer, once it has ended."""
        expect(self.page.locator(".theirs").last.locator(".stats")).to_be_visible()
        said: str = self.page.locator(".theirs > .said").last.inner_text()
        return said

    def screenshot(self, path: Path, *, whole: bool = True) -> None:
        self.page.mouse.move(2, 2)
        self.page.wait_for_timeout(SETTLE_MS)
        self.page.screenshot(path=path, full_page=whole)

    def close(self) -> None:
        self.context.close()


@contextmanager
def browsing() -> Iterator[Browser]:
    """Yield headless Chromium."""
    expect.set_options(timeout=WAIT_MS)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=FLAGS)
        try:
            yield browser
        finally:
            browser.close()
