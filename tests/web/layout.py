"""What is drawn where: texts that run out of their elements, or of the screen, and controls that no one sees."""

from __future__ import annotations

from playwright.sync_api import Page

HOLDERS = "td, th, dd, dt, li, h1, h2, pre, .pill, .badge, .notice, .lead, .card, .result > *, .columns > *, main"
"""What must not be left by its text."""
SCROLLS = "pre, textarea, .scroll, .readme, .account"
"""What scrolls its text, or shortens it, by design."""
HIDDEN = ".skip, .visually-hidden, .rows thead, option"
_MEASURE = """([holders, scrolls, hidden, isCutAllowed]) => {
    const problems = new Set();
    const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
    const range = document.createRange();
    const say = (what, node) =>
        problems.add(`${what}: ${node.parentElement.tagName} ${[...node.data.trim()].slice(0, 40).join("")}`);
    for (let node = walker.nextNode(); node; node = walker.nextNode()) {
        const parent = node.parentElement;
        if (!node.data.trim() || !parent.checkVisibility() || parent.closest(hidden)) continue;
        range.selectNodeContents(node);
        const area = range.getBoundingClientRect();
        let [left, right] = [area.left, area.right];
        for (let around = parent; around && around !== document.body; around = around.parentElement) {
            if (getComputedStyle(around).overflowX === "visible") continue;
            const frame = around.getBoundingClientRect();
            if (!isCutAllowed && !around.closest(scrolls) && (left < frame.left - 1 || right > frame.right + 1)) {
                say("cut", node);
            }
            [left, right] = [Math.max(left, frame.left - 6), Math.min(right, frame.right + 6)];
        }
        const holder = parent.closest(holders);
        const frame = (holder || document.documentElement).getBoundingClientRect();
        if (right > left && (left < frame.left - 7 || right > frame.right + 7)) say("outside of its element", node);
        if (right > left && (left < -1 || right > innerWidth + 1)) say("outside of the screen", node);
    }
    for (const control of document.querySelectorAll("button, input, select, textarea, summary, .button")) {
        const area = control.getBoundingClientRect();
        if (control.checkVisibility() && area.width && (area.left < -1 || area.right > innerWidth + 1)) {
            problems.add(`outside of the screen: ${control.outerHTML.slice(0, 80)}`);
        }
    }
    const wider = document.documentElement.scrollWidth - document.documentElement.clientWidth;
    if (wider > 0) problems.add(`the page is ${wider} px wider than the screen`);
    return [...problems].slice(0, 12);
}"""


def measure(page: Page, *, is_cut_allowed: bool = False) -> list[str]:
    """What is wrong with the layout of a page. `is_cut_allowed`: an element may cut a text that no line can break."""
    problems: list[str] = page.evaluate(_MEASURE, [HOLDERS, SCROLLS, HIDDEN, is_cut_allowed])
    return problems
