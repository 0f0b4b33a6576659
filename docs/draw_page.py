"""Draw the search page in each of its states, on a desktop and on a phone: OUT/STATE-SCREEN.png.

python docs/draw_page.py --index=INDEX --out=OUT
"""

import argparse
import contextlib
import shutil
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote_plus

from playwright.sync_api import Browser, Page, Route, sync_playwright

from ivt_jax.retrieval.searcher import Searcher
from ivt_jax.serve.app import create_app
from ivt_jax.serve.server import make_server
from ivt_jax.serve.settings import Settings

SCREENS = {"desktop": {"width": 1366, "height": 768}, "phone": {"width": 390, "height": 844}}
HOSTS = frozenset({"127.0.0.1"})


@contextlib.contextmanager
def served(index: str) -> Iterator[str]:
    """Serves an index while the block runs; yields the address."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        settings = Settings(Path(index).name, HOSTS)
        server = make_server(create_app(Searcher.open(index), settings))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
        thread.start()
        while not server.started:
            time.sleep(0.05)
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        server.should_exit = True
        thread.join(10)


def visit(browser: Browser, address: str, screen: str, dark: bool) -> Page:
    """Opens an empty page on a screen."""
    scheme = "dark" if dark else "light"
    size, phone = SCREENS[screen], screen == "phone"
    page = browser.new_page(viewport=size, color_scheme=scheme, has_touch=phone, is_mobile=phone, device_scale_factor=2)
    page.goto(address)
    page.wait_for_selector("body[data-state=empty]")
    return page


def search(page: Page, fragment: str, state: str = "found") -> None:
    """Opens a query and waits for its state, and for the thumbnails in view."""
    page.goto(page.url.partition("#")[0] + "#" + fragment)
    page.wait_for_selector(f"body[data-state={state}]", timeout=120_000)
    page.wait_for_timeout(800)


def draw_screen(page: Page, screen: str, args: argparse.Namespace) -> None:
    """Draws all states on one screen."""

    def shoot(state: str) -> None:
        page.screenshot(path=args.out / f"{state}-{screen}{'-dark' if args.dark else ''}.png")

    shoot("empty")
    asked = f"text={quote_plus(args.sentence)}"
    held: list[Route] = []
    page.route("**/api/search", lambda route: held.append(route))
    search(page, asked, "loading")
    shoot("loading")
    held[0].continue_()
    page.wait_for_selector("body[data-state=found]", timeout=120_000)
    page.unroute("**/api/search")
    search(page, asked + f"&term=2:{quote_plus(args.phrase)}&term=-1:{quote_plus(args.unwanted)}")
    shoot("chips")
    page.click("#filter")
    page.click("summary >> text=Advanced")
    page.wait_for_timeout(800)
    shoot("filter")
    search(page, asked + "&where=camera+%7E+2", "error")
    shoot("error")
    page.click("#filter")
    search(page, f"text={quote_plus(args.weak)}")
    shoot("weak")
    search(page, asked)
    shoot("results")
    page.hover(".crop >> nth=1")
    shoot("card")
    page.click(".crop >> nth=0")
    page.wait_for_selector("#heat figure:not(.waits)", timeout=120_000)
    page.wait_for_timeout(500)
    shoot("detail")


def main() -> None:
    """Runs the command line."""
    parser = argparse.ArgumentParser(description="Draw the search page in each of its states.")
    add = parser.add_argument
    add("--index", required=True, help="folder or address of an index")
    add("--out", required=True, type=Path, help="folder for the pictures")
    add("--sentence", default="a woman in a red coat and black trousers, with a backpack", help="a query")
    add("--phrase", default="white shoes", help="a phrase with weight 2")
    add("--unwanted", default="a hat", help="an unwanted phrase")
    add("--weak", default="a photo of a mountain lake at dawn", help="a query that nothing in the index fits")
    add("--dark", action="store_true", help="with the dark colours")
    add("--chromium", default=shutil.which("chromium"), help="path of the browser")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    with served(args.index) as address, sync_playwright() as started:
        browser = started.chromium.launch(executable_path=args.chromium, args=["--no-sandbox"])
        for screen in SCREENS:
            draw_screen(visit(browser, address, screen, args.dark), screen, args)
        browser.close()


if __name__ == "__main__":
    main()
