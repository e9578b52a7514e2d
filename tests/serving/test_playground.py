"""The playground in a real browser. If GENFLOW_PICTURES names a folder, the tests save screenshots there."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support import browser, served

from genflow.serving.model_list import ServedModel

PROGRAM = browser.find_browser()
pytestmark = pytest.mark.skipif(not PROGRAM, reason="no Chromium on PATH: the playground is not tested")


@pytest.fixture(scope="module")
def tab(server: str) -> Iterator[browser.Page]:
    assert PROGRAM
    with browser.page(PROGRAM, server) as opened:
        opened.until(DRAWN)
        yield opened


DRAWN = "document.querySelectorAll('.sheet img[alt]').length > 0 && !document.querySelector('.waiting')"


def choose(tab: browser.Page, field: str, value: str) -> None:
    """Set the value of a control, and dispatch its input event."""
    tab.run(f"(e => {{ e.value = '{value}'; e.dispatchEvent(new Event('input', {{bubbles: true}})); }})"
            f"(document.querySelector('{field}'))")  # fmt: skip


FIRST = "document.querySelector('.sheet img').src"


def save_screenshot(tab: browser.Page, name: str) -> None:
    if folder := os.environ.get("GENFLOW_PICTURES"):
        tab.screenshot(Path(folder) / f"{name}.png")


def test_the_page_draws_on_load(tab: browser.Page) -> None:
    """On load the page shows 16 samples of the first model with alternative texts, and their cost."""
    assert tab.run("document.querySelectorAll('.sheet img').length") == 16
    assert tab.run("document.querySelector('.sheet img').alt") == "Sample of seed 1, class 0"
    tab.until("/ms · 4 evaluations each/.test(document.querySelector('figcaption').innerText)")
    assert tab.run("document.querySelector('#state').innerText") == "3 models"
    save_screenshot(tab, "desktop")


def test_a_class_and_a_seed(tab: browser.Page) -> None:
    """A chip selects its class, Shuffle sets another seed, and the URL contains both."""
    before = tab.run(FIRST)
    tab.click("#chips label:nth-child(5)")
    tab.until("document.querySelector('.sheet img').alt.endsWith('class 3')")
    tab.click("#dice")
    tab.until(f"{FIRST} !== {before!r}")
    tab.until("location.hash.includes('label=3')")
    tab.until("location.hash.includes('seed=' + document.querySelector('#seed').value)")


def test_watch(tab: browser.Page) -> None:
    """Watch ends with the samples, and the slider shows the earlier steps."""
    tab.until(DRAWN)
    last = tab.run(FIRST)
    tab.click("#watch")
    tab.until("!document.querySelector('#time').hidden")
    tab.until(f"document.querySelector('#stepout').value === 'done' && {FIRST} === {last!r}")
    choose(tab, "#step", "1")
    assert tab.run(FIRST) != last
    save_screenshot(tab, "watching")


def test_a_walk_between_two_samples(tab: browser.Page) -> None:
    """Two clicks on samples show twelve images that interpolate between them."""
    tab.click("#draw")
    tab.until(DRAWN)
    tab.click(".sheet button:nth-child(1)")
    tab.click(".sheet button:nth-child(6)")
    tab.until("document.querySelectorAll('#strip img').length === 12")
    assert tab.run("document.querySelector('#strip img').src") == tab.run(FIRST)
    assert tab.run("[...document.querySelectorAll('#strip img')].at(-1).src") == tab.run(
        "document.querySelector('.sheet button:nth-child(6) img').src"
    )


def test_two_models_side_by_side(tab: browser.Page) -> None:
    """A second model is shown in a second pane."""
    choose(tab, "#other", "vae")
    tab.until("document.querySelectorAll('figure').length === 2")
    tab.until(f"document.querySelectorAll('.sheet img[alt]').length === 32 && {DRAWN}")
    assert tab.run("[...document.querySelectorAll('figcaption b')].map(b => b.innerText)") == ["flow", "vae"]
    save_screenshot(tab, "two")
    choose(tab, "#other", "")
    tab.until("document.querySelectorAll('figure').length === 1")


def test_an_error_is_shown(tab: browser.Page) -> None:
    """The page shows the server's error message, and the next request hides it."""
    tab.until(DRAWN)
    tab.run("document.querySelector('#further').open = true")
    tab.run("document.querySelector('#option-eta').removeAttribute('max')")
    tab.run("document.querySelector('#option-eta').value = 7; document.querySelector('#draw').click()")
    tab.until("!document.querySelector('#error').hidden")
    assert "Eta: input should be less than or equal to 1." in tab.run("document.querySelector('#error').innerText")
    save_screenshot(tab, "error")
    tab.run("document.querySelector('#option-eta').value = 0; document.querySelector('#draw').click()")
    tab.until(f"document.querySelector('#error').hidden && {DRAWN}")


def test_by_keyboard_alone(tab: browser.Page) -> None:
    """The Tab key reaches the seed, and Enter draws."""
    tab.run("document.querySelector('#model').focus()")
    for _ in range(12):
        tab.key("Tab", 9)
        if tab.run("document.activeElement.id") == "seed":
            break
    assert tab.run("document.activeElement.id") == "seed"
    before = tab.run(FIRST)
    tab.run("document.activeElement.value = 4242")
    tab.key("Enter", 13, "\r")
    tab.until(f"{FIRST} !== {before!r} && {DRAWN}")


def test_every_control_has_a_name(tab: browser.Page) -> None:
    """Every visible control has a label, a text or an alternative text for screen readers."""
    assert tab.run(NAMELESS) == []


NAMELESS = (
    "[...document.querySelectorAll('input, select, textarea, button')].filter(e => !e.closest('[hidden]'))"
    ".filter(e => !(e.labels && e.labels.length) && !e.innerText.trim() && !e.getAttribute('aria-label')"
    " && !e.querySelector('img[alt]')).map(e => e.outerHTML.slice(0, 80))"
)


def test_points_of_the_plane(tab: browser.Page) -> None:
    """Points are drawn on a canvas with a label."""
    choose(tab, "#model", "ring")
    tab.until("/points of ring/.test((document.querySelector('canvas') || document.body).getAttribute('aria-label'))")
    save_screenshot(tab, "points")
    choose(tab, "#model", "flow")
    tab.until(DRAWN)


@pytest.mark.parametrize("dark", [False, True])
def test_a_phone(tab: browser.Page, dark: bool) -> None:
    """On a phone the page fits the width and shows the samples first; a dark scheme has light text."""
    tab.size(390, 844)
    tab.dark(dark)
    try:
        assert tab.run("document.documentElement.scrollWidth") <= 390
        top = "document.querySelector({!r}).getBoundingClientRect().top"
        order = [tab.run(top.format(place)) for place in (".sheet", "#form", "#walkcard")]
        assert order == sorted(order)
        light = tab.run("getComputedStyle(document.body).color.match(/\\d+/g).reduce((a, b) => a + +b, 0) > 380")
        assert light is dark
        save_screenshot(tab, f"phone-{'dark' if dark else 'light'}")
    finally:
        tab.size(1280, 1000)
        tab.dark(False)


@pytest.fixture(scope="module")
def words(captioned_store: tuple[Any, list[ServedModel], Path]) -> Iterator[browser.Page]:
    """The page of a server with a model of captions."""
    assert PROGRAM
    with served.server(captioned_store[1]) as url, browser.page(PROGRAM, url) as opened:
        opened.until(DRAWN)
        yield opened


def test_prompts_side_by_side(words: browser.Page) -> None:
    """Without a prompt the captions of held-out rows are drawn; two prompts have two panes, and a walk between them."""
    alt, hidden = "document.querySelector('.sheet img').alt", "document.querySelector('#classes').hidden"
    assert words.run(f"{hidden} && /Sample of seed 1: a (red|green) square, number/.test({alt})")
    words.click("#suggestions button")
    words.until("location.hash.includes('prompt=a+') && document.querySelectorAll('#history button').length === 1")
    choose(words, "#prompt", "a red tiger")
    choose(words, "#second", "a blue apple")
    choose(words, "#negative", "sep")
    words.click("#draw")
    words.until(f"document.querySelectorAll('figure').length === 2 && {DRAWN}")
    assert words.run("[...document.querySelectorAll('figcaption b')].map(b => b.innerText)") == [
        "a red tiger", "a blue apple",
    ]  # fmt: skip
    words.click("#walkprompts")
    words.until("document.querySelectorAll('#strip img').length === 12")
    assert words.run("document.querySelector('#strip img').src") == words.run(FIRST)
    ends = "[...document.querySelectorAll('#strip img')].at(-1).src === document.querySelectorAll('.sheet img')[{}].src"
    assert words.run(ends.format(words.run("document.querySelector('.sheet').children.length")))
    save_screenshot(words, "prompts")


def test_the_history_restores_a_prompt(words: browser.Page) -> None:
    """An entry of the history brings its prompt back; on a phone the page fits the width; no control is nameless."""
    words.until("document.querySelectorAll('#history button').length === 2")
    words.click("#history button:last-child")
    words.until(f"document.querySelectorAll('figure').length === 1 && {DRAWN}")
    assert words.run("document.querySelector('#second').value + document.querySelector('#negative').value") == ""
    assert words.run(NAMELESS) == []
    words.size(390, 844)
    assert words.run("document.documentElement.scrollWidth") <= 390
    save_screenshot(words, "prompts-phone")
    choose(words, "#model", "kinds")
    words.until("document.querySelector('#promptfield').hidden && !document.querySelector('#classes').hidden")
    words.until(f"/class green/.test(document.querySelector('.sheet img').alt) && {DRAWN}")
    assert words.errors == []


def test_the_page_reports_no_errors(tab: browser.Page) -> None:
    """The page raised no exception, and its console has no error except for the request that must fail."""
    assert [line for line in tab.errors if "422" not in line] == []
