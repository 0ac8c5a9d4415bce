"""Look at a report as a browser shows it: pictures at three widths in light and dark, and checks that fail loudly.

    python benchmarks/report_screens.py runs/demo/report.html --out docs/report [--axe axe.min.js]

Needs Playwright and a Chromium (`--browser`). Checked at every width: no message on the console, no request, nothing
wider than the page, folded or unfolded; axe-core's rules where `--axe` names its file. Once: sorting and enlarging by
keyboard alone.
With `--whole` the pictures show the whole page, else its first screen, and at 400 px the first images.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

WIDTHS, SCHEMES = (400, 800, 1400), ("light", "dark")
GALLERY_WIDTH = 400  # at which the images have a picture of their own
_HEIGHT = 800  # px of a picture that does not show the whole page
_COLOURS = 32  # of a picture's palette


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("report", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--browser", default="/usr/bin/chromium")
    parser.add_argument("--axe", type=Path, help="axe.min.js of the npm package axe-core")
    parser.add_argument("--whole", action="store_true", help="the whole page in a picture, in all its colours")
    given = parser.parse_args()
    from playwright.sync_api import sync_playwright

    given.out.mkdir(parents=True, exist_ok=True)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=given.browser, args=["--no-sandbox"])
        for scheme in SCHEMES:
            for width in WIDTHS:
                page = open_page(browser, given.report, width, scheme)
                picture = given.out / f"{given.report.stem}-{width}-{scheme}.png"
                page.screenshot(path=picture, full_page=given.whole)
                if not given.whole:
                    reduce(picture)
                if width == GALLERY_WIDTH and not given.whole and page.query_selector("#cards"):
                    gallery = picture.with_stem(f"{given.report.stem}-images-{scheme}")
                    page.eval_on_selector("#cards", "cards => cards.scrollIntoView()")
                    page.screenshot(path=gallery)
                    reduce(gallery)
                page.evaluate("document.querySelectorAll('details').forEach((folded) => { folded.open = true; })")
                check_width(page, width)
                if given.axe is not None:
                    check_rules(page, given.axe)
                page.close()
        page = open_page(browser, given.report, 800, "light")
        if page.query_selector("#cards"):  # a page of `dinv compare` or of a sweep has none
            check_keyboard(page)
        browser.close()
    rules = "not checked by axe-core" if given.axe is None else "no breach of axe-core's rules"
    print(f"pictures in {given.out}; no messages, no requests, nothing too wide, keyboard works, {rules}")


def open_page(browser: Any, report: Path, width: int, scheme: str) -> Any:
    """The report in a window of this width; stops where it says something, asks for something or is too wide."""
    page = browser.new_page(viewport={"width": width, "height": _HEIGHT}, color_scheme=scheme)
    said: list[str] = []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("request", lambda request: said.append(request.url[:80]) if not _own(request.url) else None)
    page.goto(report.resolve().as_uri())
    page.wait_for_timeout(200)
    check_width(page, width)
    if said:
        raise SystemExit(f"{report} at {width} px, {scheme}, said {said}")
    return page


def check_width(page: Any, width: int) -> None:
    """Stop where anything is wider than the window."""
    wide = page.evaluate("document.documentElement.scrollWidth")
    if wide > width:
        raise SystemExit(f"the page is {wide} px wide in a window of {width} px")


def _own(address: str) -> bool:
    return address.startswith(("file:", "data:"))


def check_rules(page: Any, axe: Path) -> None:
    """Stop where axe-core finds a breach of an accessibility rule."""
    page.evaluate(axe.read_text(encoding="utf-8"))
    found = page.evaluate("axe.run().then((result) => result.violations)")
    lines = [f"{one['id']} ({len(one['nodes'])}): {one['help']}: {one['nodes'][0]['html'][:160]}" for one in found]
    if lines:
        raise SystemExit("\n".join(["axe-core:", *lines]))


def check_keyboard(page: Any) -> None:
    """Stop where cards cannot be sorted, a picture enlarged and put away, or the command copied, by keys alone."""
    page.focus("#order")
    page.keyboard.press("End")  # the last choice: by class
    classes = page.eval_on_selector_all(".card", "cards => cards.map((card) => Number(card.dataset.class))")
    if classes != sorted(classes):
        raise SystemExit(f"cards by class come as {classes}")
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    first = page.eval_on_selector("dialog[open] img", "image => image.alt")
    page.keyboard.press("ArrowRight")
    second = page.eval_on_selector("dialog[open] img", "image => image.alt")
    page.keyboard.press("Escape")
    focused = page.evaluate("document.activeElement.querySelector('img').alt")
    if first == second or page.query_selector("dialog[open]") or focused != second:
        raise SystemExit(f"enlarging by keyboard: {first!r}, then {second!r}; the focus is on {focused!r}")
    page.focus(".copy")
    page.keyboard.press("Enter")
    page.wait_for_timeout(200)
    if (answer := page.inner_text(".copy")) == "Copy the command":
        raise SystemExit(f"the button still says {answer!r}: nothing was copied or selected")


def reduce(picture: Path) -> None:
    """Write a picture again with few colours."""
    from PIL import Image

    with Image.open(picture) as shown:
        small = shown.convert("RGB").quantize(_COLOURS, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE)
    small.save(picture, optimize=True)


if __name__ == "__main__":
    main()
