"""The page's first visit, in a browser of this machine on loopback: first paint, transfer, requests.

    python benchmarks/page.py --json benchmarks/results/page.json

Each visit is a fresh profile, so nothing is cached. Transfer counts headers and bodies of all that the visit loads.
"""

import argparse
import json
import shutil
import statistics
from pathlib import Path

from playwright.sync_api import Browser, sync_playwright
from start import conditions, server

VISITS = 20
PAINT = "performance.getEntriesByName('first-contentful-paint')[0]?.startTime ?? null"
SIZES = "performance.getEntries().map((entry) => entry.transferSize ?? 0)"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, help="write the figures here")
    arguments = parser.parse_args()
    with server("-m", "remote_vae.cli.main", "serve", "--port") as port, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        visits = [visit(browser, f"http://127.0.0.1:{port}") for _ in range(VISITS)]
        found = conditions("starlette", "uvicorn", "playwright")
        found["browser"] = browser.version
    paints = sorted(paint for paint, _ in visits)
    figures = {
        "visits": VISITS,
        "first_paint_median_ms": round(statistics.median(paints), 1),
        "first_paint_worst_ms": round(paints[-1], 1),
        "transfer_bytes": max(sum(sizes) for _, sizes in visits),
        "requests": max(sum(size > 0 for size in sizes) for _, sizes in visits),
    }
    print(json.dumps(figures, indent=2))
    if arguments.json is not None:
        arguments.json.write_text(json.dumps({"conditions": found, "first visit": figures}, indent=2) + "\n")


def visit(browser: Browser, url: str) -> tuple[float, list[int]]:
    context = browser.new_context()
    page = context.new_page()
    page.goto(url)
    page.locator("#models tr").first.wait_for()
    while (paint := page.evaluate(PAINT)) is None:
        page.wait_for_timeout(10)
    found = float(paint), list(page.evaluate(SIZES))
    context.close()
    return found


if __name__ == "__main__":
    main()
