"""The playground in a real browser. If GENFLOW_PICTURES names a folder, the tests save screenshots there."""

import base64
import io
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
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


def test_the_same_model_twice(tab: browser.Page) -> None:
    """The second pane has its own settings, which its name and the link say."""
    choose(tab, "#other", "flow")
    tab.until("document.querySelectorAll('figure').length === 2 && !document.querySelector('#othersettings').hidden")
    choose(tab, "#steps2", "1")
    choose(tab, "#label2", "7")
    tab.until("[...document.querySelectorAll('figcaption b')].map(b => b.innerText).join('|') ==="
              " 'flow|flow, steps 1, class 7'")  # fmt: skip
    tab.until("document.querySelectorAll('.sheet')[1].querySelector('img').alt.endsWith('class 7')")
    tab.until("location.hash.includes('steps2=1') && location.hash.includes('label2=7')")
    assert tab.run("document.querySelectorAll('.sheet')[1].querySelector('img').src") != tab.run(FIRST)
    save_screenshot(tab, "twice")
    choose(tab, "#steps2", "")
    choose(tab, "#label2", "")


def test_real_pictures_are_compared(tab: browser.Page) -> None:
    """Held-out pictures of the drawn classes are shown next to the samples; names are under all pictures."""
    choose(tab, "#other", ":real")
    tab.until("/^Real picture, class/.test((document.querySelectorAll('.sheet')[1] || document.body)"
              ".querySelector('img').alt)")  # fmt: skip
    tab.until("[...document.querySelectorAll('.sheet small')].every(n => n.innerText)")
    names = "[...document.querySelectorAll('.sheet')].map(s => [...s.querySelectorAll('small')].map(n => n.innerText))"
    drawn, real = tab.run(names)
    assert drawn == real
    assert len(drawn) == 16
    assert "real pictures of digits" in tab.run("document.querySelectorAll('figcaption b')[1].innerText")
    save_screenshot(tab, "real")
    choose(tab, "#other", "")
    tab.until(f"document.querySelectorAll('figure').length === 1 && {DRAWN}")


def test_no_class_is_cut_off(tab: browser.Page) -> None:
    """Every chip is inside the group without scrolling, and very many classes are a list."""
    assert tab.run("(c => c.scrollHeight <= c.clientHeight + 1 && c.scrollWidth <= c.clientWidth + 1)"
                   "(document.querySelector('#chips'))")  # fmt: skip
    many = "card().data.classes = Array.from({length: 200}, (_, i) => `kind ${i}`)"
    tab.run(f"keptClasses = card().data.classes; {many}; updateSettings()")
    assert tab.run("document.querySelectorAll('#chips option').length") == 202
    tab.run("document.querySelector('#chips select').value = '7'")
    assert tab.run("label()") == "7"
    tab.run("card().data.classes = keptClasses; updateSettings()")


OWN = """(async () => {{ const c = document.createElement('canvas'); c.width = c.height = 40;
const d = c.getContext('2d'); d.fillRect(0, 0, 40, 40); d.fillStyle = '#fff'; d.fillRect({x}, 4, 8, 32);
const b = await new Promise(done => c.toBlob(done)), t = new DataTransfer(); t.items.add(new File([b], 'own.png'));
const f = document.querySelector('#file'); f.files = t.files; f.dispatchEvent(new Event('change')); }})()"""


def test_ones_own_pictures(tab: browser.Page) -> None:
    """A picture is rebuilt by the model; walks to a second one and to a real one; the nearest training pictures."""
    tab.run(OWN.format(x=16))
    tab.until("document.querySelectorAll('#own img').length === 2")
    tab.run(OWN.format(x=4))
    tab.until("document.querySelectorAll('#own img').length === 4 && !document.querySelector('#ownwalk').hidden")
    tab.click("#ownwalk")
    tab.until("document.querySelectorAll('#ownstrip img').length === 12")
    rebuilt = "[...document.querySelectorAll('#own img')].filter(i => /rebuilds/.test(i.alt)).map(i => i.src)"
    ends = "[...document.querySelectorAll('#ownstrip img')].filter((_, i) => i % 11 === 0).map(i => i.src)"
    assert tab.run(ends) == tab.run(rebuilt)
    tab.click("#ownnearest")
    tab.until("document.querySelectorAll('#near img').length === 8")
    apart = tab.run("[...document.querySelectorAll('#near small')].map(s => +/(\\d+) %/.exec(s.innerText)[1])")
    assert apart == sorted(apart)
    save_screenshot(tab, "own")
    tab.run("document.querySelector('#ownstrip').replaceChildren()")
    tab.click("#ownreal")
    tab.until("document.querySelectorAll('#ownstrip img').length === 12")
    tab.run("card().abilities.encode = false; showOwn()")
    assert "Flow matching cannot encode pictures" in tab.run("document.querySelector('#ownhint').innerText")
    assert tab.run("document.querySelector('#ownwalk').hidden")
    tab.run("card().abilities.encode = true; showOwn()")


def gif(tab: browser.Page, script: str) -> Image.Image:
    """The picture of a script that gives the bytes of a GIF."""
    text = tab.run(f"(async () => btoa([...await {script}].map(b => String.fromCharCode(b)).join('')))()")
    found = Image.open(io.BytesIO(base64.b64decode(text)))
    found.load()
    return found


def test_watch_and_walk_are_saved_as_gif(tab: browser.Page) -> None:
    """Pillow reads both; the last frame of Watch is the sheet, the first one of Walk the first sample."""
    tab.click("#watch")
    tab.until("!document.querySelector('#time').hidden && document.querySelector('#stepout').value === 'done'")
    watched = gif(tab, "watchGif(panes[0])")
    assert watched.n_frames == 5  # four evaluations, and the samples
    watched.seek(4)
    sheet = np.asarray(watched.convert("L"), int)
    first = png(tab.run(FIRST))
    scale = len(sheet) // 32
    assert sheet.shape == (32 * scale, 32 * scale)
    assert np.abs(sheet[: 8 * scale : scale, : 8 * scale : scale] - first).max() <= 8  # 5 bits a channel
    tab.run("document.querySelector('#strip').replaceChildren()")
    tab.click(".sheet button:nth-child(1)")
    tab.click(".sheet button:nth-child(6)")
    tab.until("document.querySelectorAll('#strip img').length === 12 && !document.querySelector('#walkgif').hidden")
    walk = gif(tab, "walkGif(walked, card())")
    assert walk.n_frames == 22
    assert np.abs(np.asarray(walk.convert("L"), int)[::32, ::32] - first).max() <= 8


def png(source: str) -> np.ndarray:
    """The grey levels of an image's data URI."""
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(source.split(",")[1]))).convert("L"), int)


def test_the_game_keeps_a_score(tab: browser.Page) -> None:
    """Twelve pictures are judged; the score of the model counts them, and half of them were drawn."""
    tab.click("#playgame")
    tab.until("!document.querySelector('#turn').hidden && document.querySelector('#turnpicture').complete")
    save_screenshot(tab, "game")
    for i in range(12):
        tab.click("#isreal" if i % 2 else "#isdrawn")
    tab.until("document.querySelector('#turn').hidden")
    row = tab.run("[...document.querySelectorAll('#score td')].map(c => c.innerText)")
    assert row[0] == "flow"
    assert row[1].endswith("of 12")
    assert row[2].endswith("of 6")


def test_an_error_is_shown(tab: browser.Page) -> None:
    """The page shows the server's error message, and the next request hides it."""
    tab.until(DRAWN)
    tab.run("document.querySelector('#further').open = true")
    tab.run("document.querySelector('#option-eta').removeAttribute('max')")
    tab.run("document.querySelector('#option-eta').value = 7; document.querySelector('#draw').click()")
    tab.until("!document.querySelector('#error').hidden")
    assert "Eta: must be at most 1." in tab.run("document.querySelector('#error').innerText")
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
    tab.click("#watch")
    tab.until("!document.querySelector('#time').hidden && document.querySelector('#stepout').value === 'done'")
    assert tab.run("['watchgif', 'owncard', 'gamecard'].every(id => document.getElementById(id).hidden)")
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
