"""The page in a browser: the system's chromium, without one these tests are skipped."""

import csv
import json
import os
import shutil
import subprocess
import sys
import types
import urllib.parse
from pathlib import Path

import pytest

from ivt_jax.pages.render import INTENDED_USE
from ivt_jax.retrieval.searcher import Searcher
from ivt_jax.serve import limits
from ivt_jax.serve.settings import read_public_url
from tests.conftest import needs_tensorflow
from tests.serve.conftest import FIELDS, PERSONS, WORN, Person, StandIn, jpeg, served

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser")
playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
pytestmark = pytest.mark.skipif(not BROWSER, reason="there is no chromium: apt install chromium")
ONLY_HERE = "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1"  # requests to other hosts fail
SENTENCE = "a man in a red coat and blue trousers"


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=BROWSER, args=["--no-sandbox", ONLY_HERE])
        yield browser
        browser.close()


@pytest.fixture
def open_page(browser, address):
    """open_page(fragment, ...) -> a page; at the end its console must be empty and all its requests to the server."""
    contexts, problems = [], []

    def visit(fragment="", at=address, console=True, ready="body[data-state]", **options):
        context = browser.new_context(**{"viewport": {"width": 1280, "height": 900}, **options})
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(30_000)  # a real searcher's first answers are compiled, beside other tests
        if console:
            page.on("console", lambda message: problems.append(message.text))
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on(
            "request", lambda request: request.url.startswith((at, "data:", "blob:")) or problems.append(request.url)
        )
        page.goto(f"{at}/{fragment}")
        page.wait_for_selector(ready)  # its script is there and listens
        return page

    yield visit
    for context in contexts:
        context.close()
    assert problems == []


def ask(page, sentence=SENTENCE):
    page.fill("#text", sentence)
    page.keyboard.press("Enter")
    page.wait_for_selector("body[data-state=found]")


def until(page, holds):
    """Waits for `holds()`; wait_for_function is what the page's policy forbids."""
    for _ in range(1500):
        if holds():
            return
        page.wait_for_timeout(20)
    pytest.fail("it has not come in 30 s")


def cards(page):
    return page.locator("#grid .path").all_text_contents()


def test_a_sentence_shows_the_right_person_first(open_page):
    page = open_page()
    page.wait_for_selector("body[data-state=empty]")
    until(page, lambda: "12 pictures in people.index, model 3fa9c1d2e8b4" in page.inner_text("#about"))
    assert page.inner_text("footer p") == f"Intended use. {INTENDED_USE}" and page.title() == "Find a person"
    ask(page)
    assert cards(page)[0] == "red/blue_1.jpg" and len(cards(page)) == 12
    assert page.title() == f"{SENTENCE} \N{MIDDLE DOT} Find a person"
    first = page.locator("#grid li").first
    fits = "man above 50% red coat above 99% blue trousers above 99%"
    name = f"1: red/blue_1.jpg score 0.833 {fits} 90% likely right, if present camera 1"
    first.get_by_role("button", name=name, exact=True).wait_for()
    assert [first.locator(part).inner_text() for part in (".badge", ".places")] == [
        "90% likely right, if present", "camera 1",
    ]  # fmt: skip
    assert page.locator("#grid li").nth(1).locator(".places").inner_text().split("\n") == [
        "camera 0", "2024-05-01 12:30",
    ]  # fmt: skip
    over = first.locator(".over")
    assert over.evaluate("it => getComputedStyle(it).opacity") == "0"
    page.hover("#grid .crop >> nth=0")
    assert over.evaluate("it => getComputedStyle(it).opacity") == "1"
    page.focus("#grid .crop >> nth=1")
    page.keyboard.press("ArrowLeft")
    assert over.evaluate("it => getComputedStyle(it).opacity") == "1"
    assert [bar.evaluate("bar => bar.style.width") for bar in first.locator(".fit i").all()] == ["50%", "100%", "100%"]
    assert page.inner_text("#status").startswith("12 pictures in ") and not page.is_visible("#notice")
    page.click("#why summary")
    facts = page.inner_text("#basis").split("\n")
    assert facts[:6] == [
        "searched", "12 of 12 pictures", "first picture", "90% likely right, if present",
        "estimate", "90% likely that the first picture is right, if the person is in the index",
    ]  # fmt: skip
    until(page, lambda: page.evaluate("document.querySelector('#grid img').naturalWidth") == 64)


def test_below_the_path_of_a_proxy(open_page):
    public = read_public_url("https://search.example.com/people")
    token = "a-token-of-some-length"
    with served(StandIn(), public=public, token=token) as address:
        page = open_page(at=f"{address}/people", console=False, ready="#login[open]")
        page.fill("#token", token)
        page.keyboard.press("Enter")
        page.wait_for_selector("#login", state="hidden")  # until then the keyboard is the dialog's
        ask(page)
        until(page, lambda: page.evaluate("document.querySelector('#grid img').naturalWidth") == 64)
        assert page.url.startswith(f"{address}/people/#text=")
        page.click("footer a")
        page.wait_for_url(f"{address}/people/openapi.json")


def test_an_example_a_word_that_is_not_read_and_nobody_who_fits(open_page):
    page = open_page()
    page.click("#example")
    page.wait_for_selector("body[data-state=found]")
    assert cards(page)[0] in [person.path for person in PERSONS if person.top == "red"]
    ask(page, "a man in a red coat, grün")
    until(page, lambda: page.text_content("#refused") == 'not read: "grün" (unknown to the model)')
    ask(page)
    until(page, lambda: page.text_content("#refused") == "")
    ask(page, "a rde coat")
    until(page, lambda: page.inner_text("#meant") == "Did you mean a red coat?")
    page.click("#mended")
    until(page, lambda: page.input_value("#text") == "a red coat" and not page.is_visible("#meant"))
    page.fill("#text", "a yellow coat")
    page.keyboard.press("Enter")
    page.wait_for_selector("body.warned")
    assert page.inner_text("#notice") == "Weak match: closest pictures below. Name clothes, colours and bags."
    colours = {page.eval_on_selector(name, "it => getComputedStyle(it).color") for name in (".badge", "#notice")}
    assert len(colours) == 1 and page.get_attribute("#notice", "role") == "status"  # amber, and no alarm


def test_phrases_are_chips_with_weight_and_sign(open_page):
    page = open_page()
    ask(page, "a red coat")
    page.fill("#phrase", "not blue trousers")
    page.keyboard.press("Enter")
    page.wait_for_selector("li.chip.unwanted")
    page.wait_for_selector("#grid .fit.unwanted", state="attached")  # the answer to both
    assert cards(page)[0] == "red/green_0.jpg"
    assert page.locator("#grid .fit.unwanted .text").first.text_content() == "not blue trousers"
    switch = page.get_by_role("switch", name="not: blue trousers")
    assert switch.inner_text() == "not" and switch.get_attribute("aria-checked") == "true"
    switch.click()
    until(page, lambda: cards(page)[0] == "red/blue_1.jpg")
    assert switch.get_attribute("aria-checked") == "false"
    page.fill("li.chip .weight", "3")
    page.keyboard.press("Enter")
    until(page, lambda: cards(page)[1] == "green/blue_4.jpg")
    assert page.inner_text("li.chip .times") == "x" and page.input_value("li.chip .weight") == "3"
    page.click("li.chip .remove")
    until(page, lambda: cards(page)[0] == "red/green_0.jpg")
    assert page.query_selector_all("li.chip") == []


def test_a_sentence_is_split_into_its_phrases(open_page):
    page = open_page()
    ask(page)
    page.click("#split")
    page.wait_for_selector("li.chip >> nth=2")
    assert [chip.inner_text() for chip in page.query_selector_all("li.chip .text")] == [
        "man",
        "red coat",
        "blue trousers",
    ]
    assert page.input_value("#text") == ""
    ask(page, "a man with a gun, without glasses")
    page.click("#split")
    page.wait_for_selector("li.chip >> nth=4")
    until(page, lambda: page.input_value("#text") == "gun")
    assert page.locator("li.chip.unwanted .text").all_inner_texts() == ["glasses"]
    page.wait_for_selector("#grid .fit.unwanted", state="attached")
    assert page.locator("#grid .fit.unwanted .share").first.text_content() == "cannot tell"


def test_filters_and_their_mistakes(open_page):
    page = open_page(console=False)  # chromium tells of the answer 422 there
    ask(page)
    page.click("#filter")
    page.click("#advanced summary")
    page.fill("#where", "camera = 2")
    page.keyboard.press("Enter")
    until(page, lambda: len(cards(page)) == 4)
    page.fill("#where", "camera ~ 2")
    page.keyboard.press("Enter")
    page.wait_for_selector("body[data-state=error]")
    assert "at character 8, '~ 2': cannot be read" in page.text_content("#reason")
    assert page.inner_text("#pointed") == "camera ~ 2" and page.inner_text("#pointed mark") == "~"
    assert page.evaluate("[where.selectionStart, where.selectionEnd, where.ariaInvalid]") == [7, 8, "true"]
    page.get_by_label("gate").check()  # the server's position now counts a parenthesis
    page.wait_for_selector("body[data-state=error]")
    until(page, lambda: "at character 9, " in page.text_content("#reason"))
    assert page.inner_text("#pointed mark") == "~"
    page.fill("#where", "camera =")
    page.keyboard.press("Enter")
    until(page, lambda: "camera is compared with a whole number" in page.text_content("#reason"))
    assert page.text_content("#pointed mark") == "\N{NO-BREAK SPACE}"  # the end
    page.click("#clear")
    page.wait_for_selector("body[data-state=found]")
    assert page.text_content("#pointed") == "" and page.evaluate("where.ariaInvalid") is None
    page.click("#names button >> text=seen")
    assert page.input_value("#where") == "seen "


def test_what_the_index_has_is_chosen_and_joined_with_what_is_typed(open_page):
    page, asked = open_page(console=False), []
    ask(page)
    page.on("request", lambda request: "search" in request.url and asked.append(request.post_data_json["where"]))

    def sent(where):
        until(page, lambda: asked and asked[-1] == where)
        page.wait_for_selector("#grid[aria-busy=false]", state="attached")

    page.click("#filter")
    page.wait_for_selector("#known [type=checkbox]")
    assert [group.split("\n")[0] for group in page.locator("#known fieldset").all_inner_texts()] == [
        "camera", "zone", "seen (UTC)",
    ]  # fmt: skip
    assert page.locator("#known label").all_inner_texts()[:4] == ["0\n4", "1\n4", "2\n4", "gate\n6"]
    page.get_by_label("2 4").check()
    sent("camera = 2")
    assert len(cards(page)) == 4 and page.input_value("#where") == ""
    page.click("#advanced summary")
    page.fill("#where", "not camera = 2 or zone = 'a'")
    page.get_by_label("gate").check()
    sent("(not camera = 2 or zone = 'a') and camera = 2 and zone = 'gate'")
    page.get_by_label("0 4").check()
    sent("(not camera = 2 or zone = 'a') and camera in (0, 2) and zone = 'gate'")
    for box in ("0 4", "2 4", "gate"):
        page.get_by_label(box).uncheck()
    sent("not camera = 2 or zone = 'a'")
    assert page.input_value("#where") == "not camera = 2 or zone = 'a'"
    page.click("#clear")
    sent("")
    page.fill("[name=seen] >> nth=0", "2024-05-02T00:00")
    page.keyboard.press("Tab")
    sent("seen >= '2024-05-02T00:00'")
    page.fill("[name=seen] >> nth=1", "2024-05-06T00:00")
    page.keyboard.press("Tab")
    sent("seen >= '2024-05-02T00:00' and seen <= '2024-05-06T00:00'")
    assert cards(page) == ["green/blue_4.jpg"]  # of the pictures with a time: 0, 4 and 8
    page.reload()
    page.wait_for_selector("body[data-state=found]")
    page.wait_for_selector("#known [type=checkbox]")
    assert page.input_value("[name=seen] >> nth=1") == "2024-05-06T00:00" and cards(page) == ["green/blue_4.jpg"]


def test_a_link_with_a_filter_shows_that_it_has_one(open_page):
    page = open_page("#text=a+red+coat&field.camera=1&group=zone&distinct=no")
    page.wait_for_selector("body[data-state=found]")
    page.wait_for_selector("#known [type=checkbox]")
    assert page.get_by_label("1 4").is_checked() and page.inner_text("#chosen") == "camera = 1"
    assert page.input_value("#group") == "zone" and not page.is_checked("#distinct")
    assert cards(page) == ["red/blue_1.jpg", "green/blue_4.jpg", "black/green_10.jpg"]  # 7 is folded under 1
    page.click("#filter")
    assert not page.is_visible("#options") and page.is_visible("#chosen")
    page.goto(page.url.partition("#")[0] + "#text=a+red+coat&where=camera+%3D+7")
    page.wait_for_selector("body.warned")
    assert page.inner_text("#notice") == "No picture meets the filter. Remove a condition."


def test_an_unfinished_index_is_noticed_whatever_is_found(open_page, monkeypatch):
    monkeypatch.setattr(StandIn, "unfinished", "the index is unfinished")
    page = open_page()
    for where in ("", "&where=camera+%3D+7"):
        page.goto(f"{page.url.partition('#')[0]}#text=a+red+coat{where}")
        until(page, lambda: len(cards(page)) == (0 if where else 12))  # noqa: B023
        page.wait_for_selector("body.warned")
        assert page.inner_text("#notice") == "Not all pictures are in the index yet. the index is unfinished"


def test_a_picture_is_uploaded_and_is_not_in_the_address(open_page):
    page = open_page()
    crop = {"name": "crop.jpg", "mimeType": "image/jpeg", "buffer": jpeg(PERSONS[4].image)}
    page.set_input_files("#file", files=[crop])
    page.wait_for_selector("body[data-state=found]")
    assert [path.split("/")[0] for path in cards(page)[:3]] == ["green"] * 3
    assert page.inner_text("li.chip .text") == "crop.jpg" and "#" not in page.url


def test_the_detail_has_heat_maps_the_original_and_more_like_this(open_page):
    page = open_page()
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    ask(page)
    page.click("#grid .crop >> nth=1")
    page.wait_for_selector("#heat figure:not(.waits) >> nth=2")
    shown = cards(page)[1]
    assert page.inner_text("#name") == shown and "2 of 12" in page.inner_text("#place")
    assert page.locator("#heat .text").all_inner_texts() == ["man", "red coat", "blue trousers"]
    assert page.locator("#heat .share").all_inner_texts() == ["above 50%", "above 99%", "above 0%"]
    assert page.inner_text("#facts").split()[:2] == ["score", "0.5000"]
    until(page, lambda: page.inner_text("#size") == "128 \N{MULTIPLICATION SIGN} 256 pixels")
    assert page.evaluate("large.naturalWidth") == 128 and page.get_attribute("#full", "href") == "./api/originals/0"
    page.click("#copy")
    until(page, lambda: page.inner_text("#copy") == "Copied")
    assert page.evaluate("navigator.clipboard.readText()") == shown
    page.click("#unlike")
    page.wait_for_selector("li.chip.unwanted")
    until(page, lambda: shown not in cards(page) and len(cards(page)) == 11)
    assert page.inner_text("li.chip .text") == "1 picture" and page.url.endswith("&unlike=0")
    page.get_by_role("switch", name="not: 1 picture").click()
    until(page, lambda: len(cards(page)) == 12)
    page.click("#grid .crop >> nth=1")
    page.click("#like")
    page.wait_for_selector("li.chip img")
    until(page, lambda: not page.query_selector("dialog[open]"))
    page.wait_for_selector("body[data-state=found]")
    assert shown not in cards(page) and len(cards(page)) == 11


def test_the_keyboard_is_enough(open_page):
    page = open_page()
    page.click("h1")
    page.keyboard.press("/")
    page.keyboard.type(SENTENCE)
    page.keyboard.press("Enter")
    page.wait_for_selector("body[data-state=found]")
    page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Enter")
    page.wait_for_selector("#detail[open]")
    assert "2 of 12" in page.inner_text("#place")
    page.keyboard.press("ArrowRight")
    assert "3 of 12" in page.inner_text("#place")
    page.keyboard.press("Escape")
    until(page, lambda: not page.query_selector("dialog[open]"))
    until(page, lambda: page.evaluate("document.activeElement.innerText").startswith("3: "))


def test_the_address_is_the_query(open_page):
    page = open_page()
    ask(page)
    page.fill("#phrase", "white shoes")
    page.keyboard.press("Enter")
    page.wait_for_selector("#grid .fit >> text=white shoes", state="attached")
    again = open_page(page.url[page.url.index("#") :])
    again.wait_for_selector("body[data-state=found]")
    assert again.input_value("#text") == SENTENCE and again.inner_text("li.chip .text") == "white shoes"
    assert cards(again) == cards(page)
    page.go_back()
    until(page, lambda: not page.query_selector("li.chip"))


def test_what_is_found_is_exported(open_page):
    page = open_page()
    ask(page)
    with page.expect_download() as download:
        page.click("#csv")
    lines = download.value.path().read_text().splitlines()
    assert lines[0] == "rank,id,path,score,probability,folded_under,camera,zone,seen,man,red coat,blue trousers"
    assert lines[1] == f"1,1,red/blue_1.jpg,{2.5 / 3},0.9,,1,gate,,0.5,1,1" and len(lines) == 13
    with page.expect_download() as download:
        page.click("#json")
    assert json.loads(download.value.path().read_text())[0]["path"] == "red/blue_1.jpg"


def test_text_is_text(open_page):
    page = open_page()
    ask(page, "<img src=x onerror=alert(1)> red coat")
    page.fill("#phrase", "<b>hat</b>")
    page.keyboard.press("Enter")
    page.wait_for_selector("li.chip")
    assert page.inner_text("li.chip .text") == "<b>hat</b>" and page.query_selector("li.chip b") is None


def test_a_phone_shows_it_whole(open_page):
    page = open_page(viewport={"width": 360, "height": 740}, has_touch=True, is_mobile=True)
    ask(page, "a man in a red coat and blue trousers with a hat, a bag and a watch")
    assert page.evaluate("document.documentElement.scrollWidth") == 360
    page.set_viewport_size({"width": 390, "height": 844})
    page.tap("#grid .crop >> nth=0")
    page.wait_for_selector("#heat figure:not(.waits) >> nth=5")
    bounds = page.locator("#heat img").evaluate_all("all => all.map(it => it.getBoundingClientRect().bottom)")
    assert len(bounds) == 6 and max(bounds) <= 844
    assert page.evaluate("document.getElementById('detail').getBoundingClientRect().right") <= 390
    narrowest = "Math.min(...[...document.querySelectorAll('#facts dd')].map((dd) => dd.getBoundingClientRect().width))"
    assert page.evaluate(narrowest) > 120


def test_results_begin_above_the_fold_and_all_states_are_accessible(open_page):
    """Walks through the states, each light and dark, on a desktop and on a phone."""
    from axe_playwright_python.sync_playwright import Axe

    page, heights, papers = open_page(console=False), {}, set()
    rules = {"label-content-name-mismatch": {"enabled": True}}  # off by default
    options = {"resultTypes": ["violations"], "preload": False, "iframes": False, "rules": rules}
    page.evaluate(Axe().axe_script)

    def check(state):
        page.wait_for_timeout(200)  # a transition of opacity
        for size in ((1366, 768), (390, 844)):
            page.set_viewport_size({"width": size[0], "height": size[1]})
            for scheme in ("light", "dark"):
                page.emulate_media(color_scheme=scheme)
                found = page.evaluate("options => axe.run(options)", options)["violations"]
                nodes = [(rule["id"], node["html"], node["failureSummary"]) for rule in found for node in rule["nodes"]]
                assert not nodes, (state, size, scheme)
                papers.add(page.evaluate("getComputedStyle(document.body).backgroundColor"))
            assert page.evaluate("document.documentElement.scrollWidth") == size[0], state
            first = page.locator("#grid .crop >> nth=0")
            heights[state, size[0]] = first.bounding_box()["y"] if first.count() else None

    check("empty")
    ask(page)
    check("results")
    base = page.url.partition("#")[0]
    chips = "#text=a+yellow+coat&term=2:yellow+trousers&term=-1:green+shirt&term=1:a+purple+skirt+and+more+words"
    page.goto(base + chips)
    page.wait_for_selector("body.warned")
    page.focus(".crop >> nth=0")
    check("chips and a weak match")
    page.click("#grid .crop >> nth=0")
    page.wait_for_selector("#heat figure:not(.waits)")
    check("detail")
    page.keyboard.press("Escape")
    page.goto(f"{base}#text=a+red+coat&where=camera+~+2")
    page.wait_for_selector("body[data-state=error]")
    page.wait_for_selector("#known [type=checkbox]")
    check("filter and its error")
    page.evaluate("login.showModal()")
    check("login")
    page.keyboard.press("Escape")
    for state in ("results", "chips and a weak match"):
        assert heights[state, 1366] < 250 and heights[state, 390] < 320, heights
    assert len(papers) == 2 and heights["results", 1366] < 160 and heights["results", 390] < 190, heights
    page.goto(f"{base}#text=a+red+coat")
    page.wait_for_selector("body[data-state=found]")
    page.click("#filter")
    page.mouse.wheel(0, 400)
    until(page, lambda: page.evaluate("scrollY") > 50)
    assert page.locator("#text").bounding_box()["y"] < 20  # it stays in view


def test_more_come_as_one_scrolls_and_repeats_are_folded(open_page):
    crowd = [Person(id, *WORN[id % 12]) for id in range(180)]  # each outfit is worn by fifteen
    with served(StandIn(crowd)) as address:
        page, asked = open_page("#text=a+red+coat&distinct=no", at=address, console=False, ready="#grid .crop"), []
        page.on("request", lambda request: "search" in request.url and asked.append(request.post_data_json["top"]))
        before = cards(page)
        assert len(before) >= 48
        page.evaluate("scrollTo(0, document.body.scrollHeight)")
        until(page, lambda: len(cards(page)) > len(before))
        assert cards(page)[: len(before)] == before
        for _ in range(3):
            page.evaluate("scrollTo(0, document.body.scrollHeight)")
            page.wait_for_timeout(200)
        until(page, lambda: len(cards(page)) == 180)
        assert asked == [96, 192] and not page.is_visible("#more") and len({*cards(page)}) == 180
        page.goto(f"{address}#text=a+red+coat")
        until(page, lambda: len(cards(page)) == 12 and page.inner_text(".folded >> nth=0") == "+14 folded")
        page.click(".folded >> nth=0")
        assert cards(page)[:15] == [crowd[12 * place].path for place in range(15)]
        page.click("#grid .crop >> nth=14")
        assert page.inner_text("#place") == "15 of 26"
        page.keyboard.press("Escape")
        page.click(".folded >> nth=0")
        assert len(cards(page)) == 12
        asked.clear()
        page.click("#filter")
        page.select_option("#group", "camera")
        until(page, lambda: len(cards(page)) == 3)
        assert asked[0] == 48


def test_a_track_is_folded_by_default(open_page, monkeypatch):
    monkeypatch.setitem(FIELDS, "track_id", "text")
    crowd = [Person(id, *worn) for id, worn in enumerate(WORN)]
    for person in crowd:
        person.metadata["track_id"] = f"t{person.id // 6}"
    with served(StandIn(crowd)) as address:
        page = open_page("#text=a+red+coat", at=address, console=False, ready="#grid .crop")
        assert page.locator(".places").last.inner_text().endswith("track_id t1") and len(cards(page)) == 2
        page.click("#filter")
        assert page.input_value("#group") == "track_id"
        page.select_option("#group", "")
        until(page, lambda: len(cards(page)) == 12)
        assert page.url.endswith("&group=")


def test_a_result_beyond_the_bound_is_not_asked_for(open_page, monkeypatch):
    monkeypatch.setattr(limits, "MAX_TOP", 60)
    with served(StandIn([Person(id, *WORN[id % 12]) for id in range(70)])) as address:
        page = open_page("#text=a+red+coat", at=address, console=False, ready="#grid .crop")
        until(page, lambda: page.inner_text("#end") == "The first 60 pictures are shown.")


def test_a_server_that_is_gone_is_told_and_asked_again(open_page):
    with served(StandIn()) as address:
        page = open_page(at=address, console=False)
        ask(page)
        page.route("**/api/search", lambda route: route.abort())
        page.click("#ask .main")
        page.wait_for_selector("body[data-state=error]")
        assert "the server does not answer" in page.text_content("#error")
        page.unroute("**/api/search")
        page.click("#again")
        page.wait_for_selector("body[data-state=found]")


def test_a_link_survives_a_server_that_fails_at_first(open_page):
    with served(StandIn()) as address:
        page = open_page(at=address, console=False)
        failing = [True]

        def answer(route):
            route.fulfill(status=503, json={"error": "wait"}) if failing else route.continue_()

        page.route("**/api/about", answer)
        page.goto(f"{address}/?#text=a+red+coat&field.camera=1")
        page.wait_for_selector("body[data-state=error]")
        failing.clear()
        page.click("#again")
        page.wait_for_selector("body[data-state=found]")
        assert page.input_value("#text") == "a red coat" and len(cards(page)) == 4
        assert page.text_content("#about").startswith("12 pictures in ")


def test_a_picture_that_is_refused_takes_nothing_away(open_page):
    page = open_page(console=False)
    ask(page)
    page.set_input_files("#file", files=[{"name": "a.mp4", "mimeType": "video/mp4", "buffer": b"film"}])
    until(page, lambda: "the file is not a picture" in page.text_content("#refused"))
    assert len(cards(page)) == 12 and page.query_selector_all("li.chip") == []
    page.set_input_files("#file", files=[{"name": "a.png", "mimeType": "image/png", "buffer": b"no picture"}])
    page.wait_for_selector("body[data-state=error]")
    page.click("#without")
    page.wait_for_selector("body[data-state=found]")
    assert page.query_selector_all("li.chip") == [] and page.input_value("#text") == SENTENCE


def focused(page):
    return page.evaluate("document.activeElement.id || document.activeElement.className")


def test_the_keyboard_never_loses_its_place(open_page):
    page = open_page()
    ask(page)
    page.focus("#grid .crop >> nth=1")
    page.keyboard.press("Enter")
    for key, place in [("ArrowLeft", 1), ("ArrowLeft", 1), ("ArrowRight", 2), ("ArrowRight", 3), ("ArrowLeft", 2)]:
        page.keyboard.press(key)
        assert page.inner_text("#place") == f"{place} of 12"
    page.focus("#before")
    page.keyboard.press("Enter")
    assert page.inner_text("#place") == "1 of 12" and focused(page) == "before"
    page.focus("#like")
    page.keyboard.press("Enter")
    until(page, lambda: page.query_selector("li.chip img") and len(cards(page)) == 11)
    until(page, lambda: focused(page) == "crop")
    page.fill("#text", SENTENCE)
    page.keyboard.press("Enter")
    page.wait_for_selector("#split:not([hidden])")
    page.focus("#split")
    page.keyboard.press("Enter")
    until(page, lambda: focused(page) == "sign")


def hold(page, path):
    """The requests of this path, from now on: they wait for their `continue_()`."""
    held = []
    page.route(f"**{path}", lambda route: held.append(route))
    return held


def test_what_is_typed_before_the_server_has_answered_stays(open_page):
    page = open_page("#term=2:red+coat&group=zone&field.camera=1", ready="body[data-state=found]")
    held = hold(page, "/api/about")
    page.reload()
    page.fill("#text", SENTENCE)
    page.fill("li.chip .weight", "3")
    until(page, lambda: held)
    held[0].continue_()
    page.wait_for_selector("body[data-state=found]")
    assert page.input_value("#text") == SENTENCE and page.input_value("li.chip .weight") == "3"
    assert page.input_value("#group") == "zone" and page.inner_text("#chosen") == "camera = 1"


def test_a_sentence_that_is_not_asked_any_more_is_not_split(open_page):
    page = open_page()
    ask(page)
    held = hold(page, "/api/phrases")
    page.click("#split")
    until(page, lambda: held)
    with page.expect_event("requestfailed", lambda request: request.url.endswith("/api/phrases")):
        page.fill("#text", "a green skirt")
        page.keyboard.press("Enter")
    page.unroute("**/api/phrases")
    page.wait_for_selector("#grid .fit >> text=green skirt", state="attached")
    assert page.input_value("#text") == "a green skirt" and page.query_selector_all("li.chip") == []
    page.dblclick("#split")
    page.wait_for_selector("li.chip")
    page.wait_for_selector("body[data-state=found]")
    assert [chip.inner_text() for chip in page.query_selector_all("li.chip .text")] == ["green skirt"]


def test_a_refusal_that_comes_too_late_is_not_told(open_page):
    page = open_page()
    page.add_init_script("""
        const ask = fetch;  // /api/search refuses, and the reason does not come before the request is given up
        const late = ({signal}) => new ReadableStream(
            {start(body) { signal.onabort = () => body.error(signal.reason); }});
        window.fetch = async (path, how) =>
            path === "./api/search" ? new Response(late(how), {status: 422}) : ask(path, how);
    """)  # fmt: skip
    page.reload()
    page.fill("#text", SENTENCE)
    page.keyboard.press("Enter")
    page.wait_for_selector("body[data-state=loading]")
    page.go_back()
    page.wait_for_selector("body[data-state=empty]")
    assert page.text_content("#error span") == ""


def test_of_two_pictures_the_later_counts(open_page):
    page = open_page(console=False)
    page.evaluate("""() => {
        for (const [name, size] of [["large.png", 7_000_000], ["small.png", 1000]]) {
            const dataTransfer = new DataTransfer();
            dataTransfer.items.add(new File([new Uint8Array(size)], name, {type: "image/png"}));
            document.dispatchEvent(new DragEvent("drop", {dataTransfer, cancelable: true}));
        }
    }""")
    page.wait_for_selector("body[data-state=error]")  # neither is a picture
    page.wait_for_timeout(500)  # and the other one has been read by now, if at all
    assert page.inner_text("li.chip .text") == "small.png"


def test_a_weight_of_nothing_is_none_and_tab_goes_on(open_page):
    page = open_page("#term=2:red+coat")
    page.wait_for_selector("body[data-state=found]")
    for typed, weight in [("0", "2"), ("", "2"), ("3", "3")]:
        page.fill("li.chip .weight", typed)
        page.keyboard.press("Tab")
        assert page.input_value("li.chip .weight") == weight and focused(page) == "remove"
    assert page.url.endswith("#term=3%3Ared+coat")
    page.keyboard.press("Enter")
    assert focused(page) == "phrase"


def test_signs_are_those_of_the_terms(open_page):
    page = open_page("#term=1:coat&term=-1:red+coat")
    page.wait_for_selector("#grid .fit", state="attached")  # before, there are cards that wait
    signs = {fit.query_selector(".text").text_content(): "unwanted" in fit.get_attribute("class")
             for fit in page.query_selector_all("#grid li:first-child .fit")}  # fmt: skip
    assert signs == {"coat": False, "not red coat": True}


def test_a_token_that_is_not_given_can_be_given_later(open_page):
    with served(StandIn(), token="a-token-of-some-length") as address:
        page = open_page("#text=a+red+coat", at=address, console=False, ready="#login[open]")
        page.keyboard.press("Escape")
        page.keyboard.press("Escape")
        page.wait_for_selector("body[data-state=error]")
        assert "the server requires a token" in page.text_content("#error")
        page.click("#again")
        page.fill("#token", "a-token-of-some-length")
        page.keyboard.press("Enter")
        page.wait_for_selector("body[data-state=found]")


def test_a_token_is_asked_for_once(open_page):
    with served(StandIn(), token="a-token-of-some-length") as address:
        page = open_page("#text=a+red+coat", at=address, console=False, ready="#login[open]")
        page.fill("#token", "wrong")
        page.keyboard.press("Enter")
        until(page, lambda: page.text_content("#wrong") == "the token is wrong")
        page.fill("#token", "a-token-of-some-length")
        page.keyboard.press("Enter")
        page.wait_for_selector("body[data-state=found]")
        assert "token" not in page.url and page.evaluate("document.cookie") == ""
        page.reload()
        page.wait_for_selector("body[data-state=found]")


# ---- the whole way, with nothing standing for anything

LEARNER = [
    "--config=configs/synth.py", "--config.data.batch_size=16", "--config.train.steps=300",
    "--config.train.eval_every=300", "--config.model.image_size=(48,24)", "--config.model.width=64",
    "--config.model.depth=2", "--config.model.num_heads=2", "--config.model.remat=False",
    "--config.mla.levels=('sentence','phrase')", "--config.bmm.align=off", "--config.bmm.word_weight=0.0",
    "--config.bmm.patch_weight=0.0", "--config.evaluation.robustness=False",
]  # fmt: skip


def run(module, *flags):
    """A command as a user gives it: on one device, compiled as it should be."""
    environment = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    root = Path(__file__).parent.parent.parent
    done = subprocess.run([sys.executable, "-m", module, *flags], cwd=root, env=environment, capture_output=True)
    assert done.returncode == 0, done.stderr.decode()[-3000:]


@pytest.fixture(scope="module")
def learned(tmp_path_factory):
    """Eight drawn persons whom a small tower has learned, in an index that is served: address, records."""
    folder = tmp_path_factory.mktemp("learned")
    persons = ["--persons=20", "--val_persons=4", "--test_persons=8", "--images_per_person=2", "--size=48x24"]
    run("input_pipeline.synthetic", f"--out={folder}/data", *persons)
    run("ivt_jax.main", *LEARNER, f"--config.data.root={folder}/data", f"--workdir={folder}/run")
    records = json.loads((folder / "data/reid_raw.json").read_text())
    records = [record for record in records if record["split"] == "train"]
    with (folder / "list.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("path", "person"), *((r["file_path"], r["id"]) for r in records)])
    named = [f"--list={folder}/list.csv", f"--images={folder}/data/imgs", f"--index={folder}/index"]
    run("ivt_jax.index", f"--workdir={folder}/run", *named)
    with served(Searcher.open(folder / "index")) as address:
        yield types.SimpleNamespace(address=address, records=records)


@needs_tensorflow
def test_persons_are_found_by_their_descriptions(open_page, learned):
    person_of = {record["file_path"]: record["id"] for record in learned.records}
    assert len(person_of) == 16 and len({*person_of.values()}) == 8
    found = []
    for record in learned.records[::2]:
        fragment = f"#text={urllib.parse.quote_plus(record['captions'][0])}"
        page = open_page(fragment, at=learned.address, ready="body[data-state=found]")
        assert page.text_content("#about").startswith("16 pictures in people.index")
        found.append(person_of[cards(page)[0]] == record["id"])
    assert sum(found) >= 7 and len(found) == 8  # of 32 such sentences all were right where this was written


@needs_tensorflow
def test_a_learned_person_is_explained_and_leads_to_others(open_page, learned):
    record = learned.records[0]
    page = open_page(f"#text={urllib.parse.quote_plus(record['captions'][0])}", at=learned.address, ready="#grid .crop")
    page.click("#grid .crop >> nth=0")
    page.wait_for_selector("#heat figure:not(.waits)")
    assert len(page.query_selector_all("#heat figure:not(.waits)")) >= 3
    first = cards(page)[0]
    page.click("#like")
    until(page, lambda: cards(page) and first not in cards(page))
    page.click("#filter")
    page.click("#advanced summary")
    page.fill("#where", f"person = {record['id']}")
    page.keyboard.press("Enter")
    until(page, lambda: len(cards(page)) == 1)  # the other picture of this person


def test_names_of_javascript_may_be_fields_of_a_link(open_page):
    page = open_page(
        "#text=a+red+coat&field.constructor=1&field.__proto__=1&from.toString=2024-05-01T00:00", console=False
    )
    page.wait_for_selector("body[data-state=error]")
    assert "the index has no such field" in page.text_content("#reason")


def test_the_chip_of_rejected_pictures_has_no_weight(open_page):
    page = open_page("#text=a+red+coat&unlike=0&unlike=1")
    assert page.inner_text("li.chip .text") == "2 pictures" and not page.is_visible("li.chip .weight")


def test_where_all_pictures_are_rejected_that_is_the_reason(open_page):
    rejected = "".join(f"&unlike={person.id}" for person in PERSONS)
    page = open_page(f"#text=a+red+coat{rejected}")
    page.wait_for_selector("body[data-state=found]")
    assert page.inner_text("#notice") == "No other picture is left. Take back some that you rejected."


def test_a_split_into_too_many_phrases_keeps_the_sentence(open_page):
    sentence = ", ".join(f"{colour} {thing}" for colour in ("red", "blue", "black") for thing in ("coat", "hat", "bag"))
    page = open_page(f"#text={urllib.parse.quote(sentence)}" + "".join(f"&term=1:shoes+{i}" for i in range(9)))
    page.wait_for_selector("body[data-state=found]")
    page.click("#split")
    until(page, lambda: "at most 16 parts" in page.text_content("#refused"))
    assert page.input_value("#text") == sentence


def test_what_the_model_cannot_leave_out_is_said(open_page):
    page = open_page("#text=a+red+coat&term=-1:glasses")
    page.wait_for_selector("body[data-state=found]")
    assert page.inner_text("#refused") == "this model cannot tell: glasses"
