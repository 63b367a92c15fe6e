"""The HTML pages: well-formed, in need of nothing else, names harmless, everything told that must be."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from livery_loadtest.compare import compare
from livery_loadtest.record import Hooked, Run
from livery_loadtest.report.comparison import comparison_page, write_comparison_page
from livery_loadtest.report.overview import overview
from livery_loadtest.report.page import page, workload_yaml, write_page
from livery_loadtest.report.plots import exact, linear, logarithmic, nines
from livery_loadtest.report.result import Result, Server, make_result
from livery_loadtest.report.sweeps import swept
from livery_loadtest.spec import parse_workload
from livery_loadtest.verify import Compared, Finding, Verification
from loadtest.made_runs import BUSY, GOOD, Making, made_run, workload
from loadtest.test_result_document import ORIGIN, made_result

EVIL = '"><script>alert(1)</script><img src=x onerror=alert(2)>&'
VOID = {"meta", "br", "img", "path", "rect", "input", "link", "hr"}


class Page(HTMLParser):
    """Which elements a page has, with their attributes; fails where they aren't closed in order."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        names = [name for name, _ in attrs]
        assert len(set(names)) == len(names), (tag, names)
        self.found.append((tag, dict(attrs)))
        if tag not in ("meta", "br"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open, tag
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if not self.open or self.open[-1] not in ("style", "script"):
            self.texts.append(data)

    @property
    def text(self) -> str:
        return " ".join(self.texts)


def self_contained(text: str) -> Page:
    """Parsed; whatever a browser would fetch or run that isn't in the page fails."""
    parsed = Page(text)
    assert text.startswith("<!doctype html>")
    for tag, attributes in parsed.found:
        assert tag not in ("link", "iframe", "object", "embed", "base", "form", "img"), tag
        assert not any(name.startswith("on") for name in attributes), attributes
        for name in ("src", "srcset", "action", "xlink:href", "poster"):
            assert name not in attributes
        assert (attributes.get("href") or "#").startswith("#")
    for style in re.findall(r"<style>(.*?)</style>", text, re.S):
        assert "url(" not in style and "@import" not in style
    (script,) = re.findall(r"<script>(.*?)</script>", text, re.S)
    assert not re.search(r"fetch\(|import|XMLHttp|innerHTML|eval", script)
    policy = [one for tag, one in parsed.found if tag == "meta" and one.get("http-equiv")]
    assert policy and "default-src 'none'" in str(policy[0]["content"])
    return parsed


@pytest.fixture(scope="module")
def made() -> Result:
    return made_result(repeats=2)


def test_a_page_is_whole_and_needs_nothing_else(made: Result) -> None:
    parsed = self_contained(page([made], "An evening's load"))
    for told in (
        *("An evening's load", "ours", "theirs", "Output tokens per second", "Time to first token", "p99"),
        *("http 503", "the server <is> full", "Jain's index", "adapter-0", "gold", "cold starts", "seconds after"),
        *("bootstrap", "livery bench run load.yaml", "kind: poisson", "A CPU", "because"),
    ):
        assert told in parsed.text, told
    assert sum(tag == "svg" for tag, _ in parsed.found) > 10
    assert all(one.get("aria-label") for tag, one in parsed.found if tag == "svg")
    assert "Invalid" not in parsed.text
    assert "nan" not in re.sub(r"<script>.*?</script>", "", page([made]), flags=re.S).split()


def test_names_and_messages_from_outside_are_harmless() -> None:
    run = made_run(Making(requests=60, failing=0.2, tenants=(EVIL, "other")), EVIL)
    for record in run.records:
        record.planned = type(record.planned)(**{**_fields(record.planned), "model": f"{record.planned.model}{EVIL}"})
        if record.error:
            record.error, record.error_message = f"http 503 {EVIL}", EVIL
    evil = Run(
        EVIL, 0, run.started, run.seconds, run.records, BUSY, run.samples, run.loads, [Hooked(1, EVIL, 1, 0, EVIL)]
    )
    load = workload(name=f"load {EVIL}", tenants=[])
    servers = [Server(name=EVIL, url="http://host", version=EVIL, settings={EVIL: EVIL})]
    answers = (Compared(0, EVIL, Finding.WRONG_ADAPTER, 0, EVIL, EVIL, EVIL),)
    found = make_result(load, servers, [evil], ORIGIN, {EVIL: Verification(EVIL, 1, answers)})
    for text in (page([found], EVIL), comparison_page(compare(found, found))):
        parsed = self_contained(text)
        assert "<script>alert" not in text
        assert parsed.text.count("<script>alert(1)</script>") > 0  # told, as text
        assert sum(tag == "script" for tag, _ in parsed.found) == 1


def _fields(planned: object) -> dict[str, object]:
    return {name: getattr(planned, name) for name in planned.__dataclass_fields__}  # type: ignore[attr-defined]


def test_an_invalid_or_interrupted_run_says_so_first() -> None:
    run = made_run(Making(requests=30), "ours", 0, BUSY)
    cut = Run("ours", 0, run.started, run.seconds, run.records, BUSY, interrupted=True)
    parsed = self_contained(page([make_result(workload(), [Server(name="ours", url="http://host")], [cut], ORIGIN)]))
    text = parsed.text
    assert text.index("Invalid: the client was the bottleneck") < text.index("Output tokens per second")
    assert BUSY.reasons[0] in text
    assert "Interrupted" in text


def test_wrong_adapters_are_told_first(made: Result) -> None:
    answers = (
        Compared(7, "pirate", Finding.WRONG_ADAPTER, 2, "arr", "hello", "json"),
        Compared(8, "pirate", Finding.NOT_LOOKED_INTO, 3, "hear", "hello"),
    )
    runs = [made_run(Making(requests=30), "ours")]
    verified = {"ours": Verification("the same server, quiet", 3, answers)}
    found = make_result(workload(), [Server(name="ours", url="http://host")], runs, ORIGIN, verified)
    text = self_contained(page([found])).text
    assert text.index("1 of 2 checked requests as another model") < text.index("Output tokens per second")
    assert "1 more that differ were not looked into" in text
    assert "request 7 asked pirate and was answered as json" in text
    assert "1 of 2 by another model, 1 that differ not looked into, against the same server, quiet" in text


@pytest.mark.parametrize("count", [0, 1])
def test_hardly_anything_measured_makes_a_page_too(count: int) -> None:
    run = made_run(Making(requests=30), "ours")
    few = Run("ours", 0, run.started, 0.0 if not count else 3.0, run.records[:count], GOOD)
    self_contained(page([make_result(workload(), [Server(name="ours", url="http://host")], [few], ORIGIN)]))
    self_contained(page([make_result(workload(), [], [], ORIGIN)]))


def test_only_failures_make_a_page_too() -> None:
    run = made_run(Making(requests=30, failing=1.0), "ours")
    text = self_contained(page([make_result(workload(), [Server(name="ours", url="http://host")], [run], ORIGIN)])).text
    assert "http 503" in text


def at_rate(rate: float) -> Result:
    runs = [made_run(Making(requests=40, rate=rate), name) for name in ("ours", "theirs")]
    servers = [Server(name=name, url="http://host") for name in ("ours", "theirs")]
    return make_result(
        workload(name=f"{rate:g} a second", arrivals={"kind": "poisson", "rate": rate}), servers, runs, ORIGIN
    )


def test_several_rates_become_curves() -> None:
    several = [at_rate(5), at_rate(20), at_rate(10)]
    assert swept(several) == ("requests per second asked for", [5.0, 20.0, 10.0])
    text = self_contained(page(several, "standard")).text
    assert "Over requests per second asked for" in text
    assert text.index("standard") < text.index("In short") < text.index("Over requests per second")
    short = overview(several)
    assert short is not None
    assert [row[:2] for row in short.rows[:3]] == [
        ["5 a second", "ours"],
        ["5 a second", "theirs"],
        ["20 a second", "ours"],
    ]
    assert [row[-1] for row in short.rows] == [str(one.failed) for result in several for one in result.summary]
    assert short.colours == [0, 1] * 3
    assert overview(several[:1]) is None
    for name in ("5 a second", "10 a second", "20 a second"):
        assert name in text
    assert swept(several[:1]) is None
    assert swept([several[0], several[0]]) is None


def test_the_workload_in_a_page_runs_again() -> None:
    load = workload(popularity={"kind": "zipf", "exponent": 1.5}, prompt={"kind": "lognormal", "median": 9, "sigma": 1})
    assert parse_workload(workload_yaml(load)) == load


def test_a_comparison_is_a_page(tmp_path: Path) -> None:
    made = made_result(repeats=6)
    write_comparison_page(compare(made, made, "ours", "theirs"), tmp_path / "deep" / "c.html")
    write_page([made], tmp_path / "deep" / "r.html")
    parsed = self_contained((tmp_path / "deep" / "c.html").read_text())
    for told in ("theirs beside ours", "TTFT p50", "slower", "B / A", "flips of their signs"):
        assert told in parsed.text
    self_contained((tmp_path / "deep" / "r.html").read_text())


@given(st.floats(1e-3, 1e6), st.floats(1.0001, 1e6))
def test_axes_have_ticks_within_them_and_places_in_order(low: float, times: float) -> None:
    high = low * times
    for axis in (
        linear("", low, high, str),
        exact("", low, high, str),
        logarithmic("", low, high, str),
    ):
        assert 1 <= len(axis.ticks) <= 9 or (isinstance(axis, object) and len(axis.ticks) == 0)
        places = [axis.place(value) for value, _ in axis.ticks]
        assert places == sorted(places)
        assert all(0 <= place <= 100 for place in places)
        assert axis.place(low) <= axis.place(high)


def test_nines_are_as_far_apart_as_each_other() -> None:
    axis = nines("", 0.999)
    assert axis.place(0.9) == pytest.approx(100 / 3, abs=0.01)
    assert axis.place(0.99) == pytest.approx(200 / 3, abs=0.01)
    assert axis.place(0.9999) == 100


def test_answers_that_come_all_at_once_have_a_place_on_the_plots() -> None:
    """Their tokens have nothing between them."""
    results = [
        make_result(
            workload(name=f"at-{rate}", arrivals={"kind": "poisson", "rate": rate}, tenants=[]),
            [Server(name="x", url="http://host")],
            [made_run(Making(requests=30, gap_s=0.0, tenants=()), "x")],
            ORIGIN,
        )
        for rate in (5, 10)
    ]
    assert "Between tokens, p99" in self_contained(page(results)).text
