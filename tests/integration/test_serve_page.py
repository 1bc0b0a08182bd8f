"""The built-in page in a headless Chromium: ask, stream, stop, history, side by side, key."""

import os
import threading
from collections import Counter
from pathlib import Path

import pytest
from browser import CHROMIUM, Browser
from chat_toy import PAIRS, ROUND
from served import running, wait_until

from medsft.inference.decoding import Decoder
from medsft.inference.responder import Responder, open_responder
from medsft.inference.server.limits import Limits

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")
QUESTION, ANSWER = PAIRS[1].query, PAIRS[1].response
LAST = (
    "[...document.querySelectorAll('.talk')].map(talk => talk.querySelector('.turns').lastChild?.innerText)"
)


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    browser = Browser(tmp_path_factory.mktemp("profile"))
    yield browser
    browser.close()


@pytest.fixture(scope="module")
def responder(chat_model_dir):
    return open_responder(chat_model_dir, device="cpu")


def ask(browser, question):
    browser.run("document.getElementById('question').focus()")
    browser.call("Input.insertText", text=question)
    browser.press("Enter", "\r", 13)


def set_value(browser, name, value):
    browser.run(f"document.getElementById('{name}').value = '{value}'")


def is_ready(columns):
    shown = f"document.querySelectorAll('.talk').length === {columns}"
    return f"{shown} && !document.getElementById('send').disabled"


def test_two_models_side_by_side(browser, responder, monkeypatch):
    step, num_steps, go_on = Decoder.step, Counter(), threading.Event()

    def step_when_it_may(self):
        """After three of its steps a model waits: what the page shows meanwhile can be looked at."""
        num_steps[self] += 1
        if num_steps[self] > 3:
            go_on.wait(120)
        return step(self)

    monkeypatch.setattr(Decoder, "step", step_when_it_may)
    with running({"base": responder, "tuned": responder}, Limits()) as server:
        browser.call("Page.navigate", url=f"{server.url}/")
        browser.wait_for(is_ready(2))
        assert "不构成医疗建议" in browser.run("document.getElementById('advice').innerText")
        assert browser.run("document.getElementById('advice').getBoundingClientRect().height") > 10
        set_value(browser, "temperature", 0)

        ask(browser, ROUND[0][0])
        browser.wait_for(f"{LAST}.every(text => text && !text.includes('tokens/s'))")  # while it streams
        go_on.set()
        browser.wait_for(f"{LAST}.every(text => text.includes('tokens/s'))")
        for text in browser.run(LAST):
            assert text.startswith(ROUND[0][1])
        browser.wait_for(is_ready(2))
        ask(browser, "然后呢？")  # answered so only after the first round
        browser.wait_for(f"{LAST}.every(text => text.includes('tokens/s'))")
        for text in browser.run(LAST):
            assert text.startswith(PAIRS[2].response)
        if folder := os.environ.get("MEDSFT_PICTURES"):  # how docs/pictures/serve.png is made
            browser.screenshot(Path(folder) / "serve.png")

        for name, value in {"temperature": 9, "top_p": 1, "seed": 1, "max_tokens": 200}.items():
            set_value(browser, name, value)
        browser.wait_for(is_ready(2))
        go_on.clear()
        ask(browser, "<img src=x onerror=alert(1)>")
        wait_until(lambda: all(each.engine.num_running for each in server.models))
        browser.run("document.getElementById('stop').click()")
        browser.wait_for(f"{LAST}.every(text => text.includes('stopped'))")
        go_on.set()
        wait_until(lambda: not any(each.engine.num_running for each in server.models))
        assert browser.run("document.querySelectorAll('#talks img').length") == 0

        browser.run("document.getElementById('clear').click()")
        assert browser.run("document.querySelectorAll('.turns p').length") == 0
        set_value(browser, "max_tokens", 5000)
        browser.wait_for(is_ready(2))
        ask(browser, QUESTION)
        browser.wait_for(f"{LAST}.every(text => text?.includes('this server writes at most 1024'))")


def test_rounds_are_told_to_models_that_were_taught_them(browser, responder):
    single = Responder(responder.model, responder.tokenizer, "med-chatglm")
    is_ticked = "document.getElementById('history').checked"
    with running({"base": responder, "tuned": single}, Limits()) as server:
        browser.call("Page.navigate", url=f"{server.url}/")
        browser.wait_for(is_ready(2))
        assert not browser.run(is_ticked)
        for name, expected in (("base", True), ("tuned", False), ("", True)):
            browser.run(
                f"element('beside').value = '{name}'; element('beside').dispatchEvent(new Event('change'))"
            )
            assert browser.run(is_ticked) == expected


def test_all_of_the_page_stays_in_sight_on_a_telephone(browser, responder):
    """However long the answers are: the line about advice above them, the question below."""
    size = {"height": 780, "deviceScaleFactor": 1, "mobile": False}
    browser.call("Emulation.setDeviceMetricsOverride", width=390, **size)
    with running({"base": responder, "tuned": responder}, Limits()) as server:
        browser.call("Page.navigate", url=f"{server.url}/")
        browser.wait_for(is_ready(2))
        for _ in range(2):
            ask(browser, "头痛\n" * 80)
            browser.wait_for(f"{LAST}.every(text => text?.includes('tokens/s'))")
            browser.wait_for(is_ready(2))
        assert browser.run("document.documentElement.scrollHeight") == 780
        assert browser.run(
            "[...document.querySelectorAll('.turns')].every(turns => turns.clientHeight > 100)"
        )
        set_value(browser, "temperature", 20)
        ask(browser, "头痛")
        browser.wait_for(f"{LAST}.every(text => text?.includes('less than or equal to 10'))")
        below = "turns.scrollHeight - turns.scrollTop - turns.clientHeight"
        assert browser.run(f"[...document.querySelectorAll('.turns')].every(turns => {below} < 30)")


def test_a_key_is_asked_for_once(browser, responder):
    with running({"toy": responder}, Limits(), key="s3cret") as server:
        script = "window.asked = 0; window.prompt = () => { window.asked += 1; return 'GIVEN'; }"
        # What no header can hold is not kept, so that it is asked for again.
        wrong = script.replace("GIVEN", "密钥")
        added = browser.call("Page.addScriptToEvaluateOnNewDocument", source=wrong)
        browser.call("Page.navigate", url=f"{server.url}/")
        browser.wait_for("window.asked === 1")
        browser.call("Page.removeScriptToEvaluateOnNewDocument", identifier=added["identifier"])
        right = script.replace("GIVEN", "s3cret")
        added = browser.call("Page.addScriptToEvaluateOnNewDocument", source=right)
        browser.call("Page.navigate", url=f"{server.url}/")
        browser.wait_for(is_ready(1))
        set_value(browser, "temperature", 0)
        ask(browser, QUESTION)
        browser.wait_for(f"{LAST}[0]?.includes('tokens/s')")
        assert browser.run(LAST)[0].startswith(ANSWER)
        assert browser.run("window.asked") == 1
        browser.call("Page.removeScriptToEvaluateOnNewDocument", identifier=added["identifier"])
