"""The report as a reader meets it: in Chromium."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.report.test_report import HOSTILE, benchmark, conformance_record, record
from wasmgraph.report import build_report

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
AXE = Path(__file__).parent.parent / "js" / "node_modules" / "axe-core" / "axe.min.js"
SERIOUS = ("serious", "critical")


@pytest.fixture(scope="module")
def browser() -> Iterator[sync_api.Browser]:
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    if chromium is None:
        pytest.skip("there is no Chromium on the PATH (Debian: apt-get install chromium)")
    with sync_api.sync_playwright() as playwright:
        found = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        yield found
        found.close()


def kernel(name: str, seconds: float, rule: str = "direct-conv2d") -> dict[str, object]:
    figures = {"calls": 2, "share": 0.3, "gflops_per_s": 20.0, "roofline_share": 0.8}
    work = {"seconds": seconds, "flops": 10**9, "traffic_bytes": 10**7}
    return {"kernel": name, "operator": "conv2d", "rule": rule} | figures | work


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Everything that a page can hold; a model whose names are scripts."""
    entries = []
    sizes = {"module_bytes": 900, "param_bytes": 2_000_000, "work_fuel": 10**9}
    for number, (name, median) in enumerate(
        (
            ("wasm32-simd128@wasmtime", 0.4),
            ("native@native", 0.09),
            ("wasm32@wasmtime", 1.2),
            ("onnxruntime", 0.08),
        )
    ):
        ratio = {"reference": "onnxruntime", "ratio": median / 0.08, "ratio_low": 1.0, "ratio_high": 20.0}
        spread = {"p90_s": median, "p99_s": median, "mad_s": 0.01, "warmup_rounds": 1, "outliers": 2,
                  "unstable": "rounds differ by 9% from their median: measure more"}  # fmt: skip
        known = (
            ratio
            | spread
            | {k: v * (number + 1) for k, v in sizes.items()}
            | {"inputs": 20, "top1": 19 - number}
        )
        made = record(name, **known, peak_gflops=25.0, read_gb_s=9.0, sessions=2, runs_per_s=3.0)
        entries.append(benchmark("test_latency", made, [median, median * 1.1]))
    entries[0]["extra_info"]["profile"] = [
        kernel(HOSTILE, 0.02),
        kernel("b", 0.01, "dense"),
        kernel("c", 0.03),
    ]
    doubt = {"photo": HOSTILE, "label": HOSTILE, "top": [[HOSTILE, 0.6], ["cat", 0.4]]}
    entries[0]["extra_info"]["doubts"] = [doubt | {"reference_top": [["dog", 0.9]]}]
    entries.append(benchmark("test_latency", record(HOSTILE, model=HOSTILE), [1.0]))
    data = {"benchmarks": entries, "wasmgraph": {"skipped": {HOSTILE: HOSTILE}, "notices": [HOSTILE]},
            "machine_info": {"cpu": {"brand_raw": HOSTILE}}, "commit_info": {}}  # fmt: skip
    directory = tmp_path_factory.mktemp("report")
    (directory / "r.json").write_text(json.dumps(data))
    operators = conformance_record(directory / "c.json")
    return build_report([directory / "r.json"], directory / "out", conformance=operators)


@pytest.fixture
def page(browser: sync_api.Browser, report: Path) -> Iterator[sync_api.Page]:
    """The report, opened; whatever it asks the network for or complains about fails the test."""
    context = browser.new_context(permissions=["clipboard-read", "clipboard-write"])
    opened = context.new_page()
    said: list[str] = []
    opened.on("console", lambda message: said.append(message.text))
    opened.on("pageerror", lambda error: said.append(str(error)))
    opened.on("dialog", lambda dialog: (said.append(f"dialog: {dialog.message}"), dialog.dismiss()))
    asked: list[str] = []
    opened.on("request", lambda request: asked.append(request.url))
    opened.goto(report.as_uri())
    yield opened
    assert said == []
    assert [url for url in asked if not url.startswith(("data:", report.as_uri()))] == []
    context.close()


def column(table: sync_api.Locator, number: int) -> list[str]:
    return table.locator(f"tbody tr td:nth-child({number})").all_inner_texts()


def test_it_opens_without_complaints_and_without_the_network(page: sync_api.Page) -> None:
    assert page.title().startswith("What a WASM graph costs")
    assert page.locator("section h2").count() >= 4


def test_names_are_text(page: sync_api.Page) -> None:
    assert page.locator("script").count() == 1
    assert page.get_by_text(HOSTILE).count() >= 5


def test_tables_sort_by_click_and_by_keyboard(page: sync_api.Page) -> None:
    table = page.locator("table.data").filter(has_text="over reference").first
    heading = table.locator("th").nth(1)
    heading.locator("button").click()
    assert heading.get_attribute("aria-sort") == "ascending"
    assert column(table, 2) == ["80", "90", "400", "1,200"]
    heading.locator("button").focus()
    page.keyboard.press("Enter")
    assert heading.get_attribute("aria-sort") == "descending"
    assert column(table, 2) == ["1,200", "400", "90", "80"]
    table.locator("th button").first.click()
    assert column(table, 1) == sorted(column(table, 1))
    assert heading.get_attribute("aria-sort") is None


def test_bytes_sort_by_size_not_by_digits(page: sync_api.Page) -> None:
    table = page.locator("table.data").filter(has_text="without parameters").first
    heading = table.locator("th", has_text="without parameters")
    heading.locator("button").click()
    assert column(table, 5) == ["900 B", "1.8 kB", "2.7 kB", "3.6 kB"]


def test_a_table_is_copied_as_tab_separated_values(page: sync_api.Page) -> None:
    page.locator(".copy").nth(0).click()
    copied = page.evaluate("navigator.clipboard.readText()")
    rows = [line.split("\t") for line in copied.split("\n")]
    assert len({len(row) for row in rows}) == 1
    assert len(rows) == 5


def test_the_contents_lead_to_every_section(page: sync_api.Page) -> None:
    targets = page.locator("nav a").evaluate_all("links => links.map(a => a.getAttribute('href'))")
    assert len(targets) == len(set(targets)) > 8
    for target in targets:
        assert page.locator(f"[id='{target[1:]}']").count() == 1
    page.locator("nav a", has_text="Accuracy").first.click()
    assert page.locator("h3", has_text="Accuracy").first.is_visible()


@pytest.mark.parametrize("width", [360, 800, 1400])
def test_it_fits_its_window(page: sync_api.Page, width: int) -> None:
    page.set_viewport_size({"width": width, "height": 800})
    page.evaluate("document.querySelectorAll('details').forEach(d => { d.open = true; })")
    assert page.evaluate("document.documentElement.scrollWidth") <= width


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_is_accessible(page: sync_api.Page, scheme: str) -> None:
    if not AXE.exists():
        pytest.skip("axe-core is not installed (npm ci --prefix tests/js; `make test` does it)")
    page.emulate_media(color_scheme=scheme)
    page.evaluate("document.querySelectorAll('details').forEach(d => { d.open = true; })")
    page.add_script_tag(content=AXE.read_text())
    found = page.evaluate("axe.run()")["violations"]
    assert [f"{v['id']}: {v['nodes'][0]['html'][:200]}" for v in found if v["impact"] in SERIOUS] == []
