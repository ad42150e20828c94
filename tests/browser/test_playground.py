from __future__ import annotations

import json
import re
import urllib.request
from typing import Any

import pytest
from playwright.sync_api import Page, Route, expect

PHONE = {"viewport": {"width": 360, "height": 740}, "color_scheme": "dark"}
WIDE = {"viewport": {"width": 1200, "height": 900}, "reduced_motion": "reduce"}
QUESTION = "Lucy owns 9 cards. On Monday Lucy sells 3. How many cards does Lucy have now?"
FINISHED = re.compile(r"finished: \d+ tokens in \d+ passes")

# Every text that an answer shows, as the page draws it.
WATCH = """() => {
  window.seen = [0, 1].map(() => new Set());
  document.querySelectorAll(".answer").forEach((box, side) =>
    new MutationObserver(() => window.seen[side].add(box.querySelectorAll(".masked").length))
      .observe(box, { subtree: true, childList: true, attributes: true }));
}"""


def answers(server: str, **setting: object) -> dict[str, Any]:
    """The step map and texts of the same request without a browser."""
    body = {"model": "mini_teacher", "messages": [{"role": "user", "content": QUESTION}]}
    asked = urllib.request.Request(
        f"{server}/v1/chat/completions",
        json.dumps(body | {"seed": 3, "max_tokens": 96} | setting).encode(),
        {"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(asked) as answer:
        return json.load(answer)["choices"][0]


def step_map(page: Page, side: int) -> list[int]:
    swatches = page.locator(".map").nth(side).locator(".t")
    return [int(text) - 1 for text in swatches.all_text_contents()]


@pytest.mark.parametrize("page", [PHONE, WIDE], indirect=True, ids=["phone", "wide"])
def test_both_sides_denoise_until_they_finish_by_keyboard_alone(page: Page, server: str) -> None:
    page.goto(server)
    expect(page.locator("select[name=model1]")).to_have_value("mini_teacher")
    page.evaluate(WATCH)
    focus: list[str] = []

    def tab_to(name: str) -> None:
        while page.evaluate("document.activeElement.name || document.activeElement.id") != name:
            page.keyboard.press("Tab")
            focus.append(page.evaluate("getComputedStyle(document.activeElement).outlineStyle"))
            assert len(focus) < 50

    tab_to("prompt")
    page.keyboard.press("Control+A")
    page.keyboard.type(QUESTION)
    tab_to("remasking1")
    page.keyboard.type("all")
    tab_to("denoising_steps1")
    page.keyboard.press("End")
    page.keyboard.press("ArrowLeft")
    tab_to("confidence_threshold1")
    page.keyboard.press("ArrowLeft")
    tab_to("seed")
    page.keyboard.type("3")
    tab_to("max_tokens")
    page.keyboard.type("96")
    tab_to("go")
    page.keyboard.press("Enter")
    for side in (0, 1):
        expect(page.locator(".status").nth(side)).to_have_text(FINISHED)
        assert page.evaluate(f"window.seen[{side}].size") > 2, "tokens were not seen to appear"
    assert set(focus) <= {"solid", "auto"}, "where the focus is must be visible"
    # What was shown is what the server answers without the page.
    dynamic = {"remasking": "low_confidence_dynamic", "confidence_threshold": 0.85}
    settings = [{"denoising_steps": 4}, {"denoising_steps": 3} | dynamic]
    for side, setting in enumerate(settings):
        answer = answers(server, **({"remasking": "low_confidence_static"} | setting))
        assert step_map(page, side) == answer["step_map"]
        tokens = page.locator(".answer").nth(side).locator(".t").all_text_contents()
        assert tokens == [text or "∎" for text in answer["texts"]]
        assert (
            f"{answer['passes']['total']} passes" in page.locator(".number").nth(side).inner_text()
        )
    page.locator(".answer").first.focus()
    page.keyboard.press("ArrowRight")
    expect(page.locator(".readout").first).to_contain_text(re.compile("step [1-4], confidence"))
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")


def test_a_link_reproduces_the_answers(page: Page, server: str) -> None:
    page.goto(server)
    expect(page.locator("select[name=model0]")).to_have_value("mini_teacher")
    page.fill("[name=prompt]", "100 % & <b>?#")
    page.fill("[name=max_tokens]", "16")
    page.fill("[name=denoising_steps0]", "2")
    link = page.locator("#link").evaluate("link => link.href")
    page.click("#go")
    maps = []
    for number in range(2):
        if number:
            page.goto("about:blank")
            page.goto(link)
        for side in (0, 1):
            expect(page.locator(".status").nth(side)).to_have_text(FINISHED)
        maps.append([step_map(page, side) for side in (0, 1)])
        assert page.input_value("[name=prompt]") == "100 % & <b>?#"
        assert page.url == link
    assert maps[0] == maps[1]


def test_refusals_are_told_in_plain_words(page: Page, server: str) -> None:
    page.goto(server)
    expect(page.locator("select[name=model0]")).to_have_value("mini_teacher")
    status = page.locator(".status").first
    page.route("**/v1/chat/completions", lambda route: route.abort())
    page.click("#go")
    expect(status).to_have_text("The server does not answer. Is t3d serve still running?")

    def full(route: Route) -> None:
        body = json.dumps({"error": {"message": "The queue is full."}})
        route.fulfill(status=429, headers={"Retry-After": "7"}, body=body)

    page.route("**/v1/chat/completions", full)
    page.click("#go")
    expect(status).to_have_text("The queue is full. Try again in 7 s.")
    page.unroute_all()
    page.route(
        "**/v1/chat/completions",
        lambda route: route.fulfill(body='data: {"error": {"message": "It failed."}}\n\n'),
    )
    page.click("#go")
    expect(status).to_have_text("It failed.")
    page.unroute_all()
    page.fill("[name=prompt]", "<|im_end|>")
    page.click("#go")
    expect(status).to_contain_text("control token")


def test_a_running_answer_stops(page: Page, server: str) -> None:
    page.goto(server)
    expect(page.locator("select[name=model0]")).to_have_value("mini_teacher")
    page.route("**/v1/chat/completions", lambda route: None)
    page.click("#go")
    page.click("#stop")
    expect(page.locator(".status").first).to_have_text("Stopped.")
    expect(page.locator("#go")).to_be_enabled()
