"""The playground, in a real browser, by clicks. Set GENFLOW_PICTURES to a folder to look at what was seen."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from support import browser

PROGRAM = browser.found()
pytestmark = pytest.mark.skipif(not PROGRAM, reason="no Chromium on PATH: the playground is not clicked through")


@pytest.fixture(scope="module")
def tab(server: str) -> Iterator[browser.Page]:
    assert PROGRAM
    with browser.page(PROGRAM, server) as opened:
        opened.until(DRAWN)
        yield opened


DRAWN = "document.querySelectorAll('.sheet img[alt]').length > 0 && !document.querySelector('.waiting')"


def choose(tab: browser.Page, field: str, value: str) -> None:
    """Choose from a list, as a hand does: the page hears of it."""
    tab.run(f"(e => {{ e.value = '{value}'; e.dispatchEvent(new Event('input', {{bubbles: true}})); }})"
            f"(document.querySelector('{field}'))")  # fmt: skip


FIRST = "document.querySelector('.sheet img').src"


def look(tab: browser.Page, name: str) -> None:
    if folder := os.environ.get("GENFLOW_PICTURES"):
        tab.picture(Path(folder) / f"{name}.png")


def test_it_draws_by_itself(tab: browser.Page) -> None:
    """16 samples of the first model, each with words for those who do not see it; and says what they cost."""
    assert tab.run("document.querySelectorAll('.sheet img').length") == 16
    assert tab.run("document.querySelector('.sheet img').alt") == "Sample of seed 1, class 0"
    tab.until("/ms · 4 evaluations each/.test(document.querySelector('figcaption').innerText)")
    assert tab.run("document.querySelector('#state').innerText") == "3 models"
    look(tab, "desktop")


def test_a_class_and_a_seed(tab: browser.Page) -> None:
    """A chip draws its class, Shuffle another seed, and the address remembers both."""
    before = tab.run(FIRST)
    tab.click("#chips label:nth-child(5)")
    tab.until("document.querySelector('.sheet img').alt.endsWith('class 3')")
    tab.click("#dice")
    tab.until(f"{FIRST} !== {before!r}")
    tab.until("location.hash.includes('label=3')")
    tab.until("location.hash.includes('seed=' + document.querySelector('#seed').value)")


def test_watching(tab: browser.Page) -> None:
    """Noise becomes samples, evaluation by evaluation; the slider goes back in time."""
    tab.until(DRAWN)
    last = tab.run(FIRST)
    tab.click("#watch")
    tab.until("!document.querySelector('#time').hidden")
    tab.until(f"document.querySelector('#stepout').value === 'done' && {FIRST} === {last!r}")
    choose(tab, "#step", "1")
    assert tab.run(FIRST) != last
    look(tab, "watching")


def test_a_walk_between_two_samples(tab: browser.Page) -> None:
    """Two clicks on samples: twelve pictures from the one to the other."""
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
    """From the same seeds, in two panes."""
    choose(tab, "#other", "vae")
    tab.until("document.querySelectorAll('figure').length === 2")
    tab.until(f"document.querySelectorAll('.sheet img[alt]').length === 32 && {DRAWN}")
    assert tab.run("[...document.querySelectorAll('figcaption b')].map(b => b.innerText)") == ["flow", "vae"]
    look(tab, "two")
    choose(tab, "#other", "")
    tab.until("document.querySelectorAll('figure').length === 1")


def test_an_error_in_plain_words(tab: browser.Page) -> None:
    """What the server refuses is said where the eye is; the next try takes it away."""
    tab.until(DRAWN)
    tab.run("document.querySelector('#further').open = true")
    tab.run("document.querySelector('#option-eta').removeAttribute('max')")
    tab.run("document.querySelector('#option-eta').value = 7; document.querySelector('#draw').click()")
    tab.until("!document.querySelector('#error').hidden")
    assert "Eta: input should be less than or equal to 1." in tab.run("document.querySelector('#error').innerText")
    look(tab, "error")
    tab.run("document.querySelector('#option-eta').value = 0; document.querySelector('#draw').click()")
    tab.until(f"document.querySelector('#error').hidden && {DRAWN}")


def test_by_keyboard_alone(tab: browser.Page) -> None:
    """Tab reaches the seed, Enter draws."""
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
    """For those who hear the page."""
    nameless = tab.run(
        "[...document.querySelectorAll('input, select, button')].filter(e => !e.closest('[hidden]'))"
        ".filter(e => !(e.labels && e.labels.length) && !e.innerText.trim() && !e.getAttribute('aria-label')"
        " && !e.querySelector('img[alt]')).map(e => e.outerHTML.slice(0, 80))"
    )
    assert nameless == []


def test_points_of_the_plane(tab: browser.Page) -> None:
    """A canvas, and no sheet."""
    choose(tab, "#model", "ring")
    tab.until("/points of ring/.test((document.querySelector('canvas') || document.body).getAttribute('aria-label'))")
    look(tab, "points")
    choose(tab, "#model", "flow")
    tab.until(DRAWN)


@pytest.mark.parametrize("dark", [False, True])
def test_a_phone(tab: browser.Page, dark: bool) -> None:
    """Nothing is wider than the screen, the samples come first; in the dark, ink is light."""
    tab.size(390, 844)
    tab.dark(dark)
    try:
        assert tab.run("document.documentElement.scrollWidth") <= 390
        top = "document.querySelector({!r}).getBoundingClientRect().top"
        order = [tab.run(top.format(place)) for place in (".sheet", "#form", "#walkcard")]
        assert order == sorted(order)
        light = tab.run("getComputedStyle(document.body).color.match(/\\d+/g).reduce((a, b) => a + +b, 0) > 380")
        assert light is dark
        look(tab, f"phone-{'dark' if dark else 'light'}")
    finally:
        tab.size(1280, 1000)
        tab.dark(False)


def test_nothing_went_wrong_meanwhile(tab: browser.Page) -> None:
    """No exception in the page, and no error in its console but the request that was meant to fail."""
    assert [line for line in tab.complaints if "422" not in line] == []
