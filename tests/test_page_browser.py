"""The page in a real browser, headless: what hands do there; nothing goes wrong, nothing leaves the file."""

import contextlib
import csv
import importlib.util
import json
import re
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest

from headjax.grid import HeadGrid, category_counts, head_categories
from headjax.report.page.write import write_page
from headjax.report.parts import Rows, plain
from headjax.stats import wilson
from tests.helpers.page_runs import page_run

with contextlib.suppress(ImportError):  # then all is skipped
    from selenium import webdriver
    from selenium.common.exceptions import NoSuchElementException
    from selenium.webdriver.common.action_chains import ActionChains
    from selenium.webdriver.common.by import By
    from selenium.webdriver.common.keys import Keys
    from selenium.webdriver.support.ui import Select


BROWSER, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
pytestmark = pytest.mark.skipif(
    not (BROWSER and DRIVER and importlib.util.find_spec("selenium")),
    reason="needs chromium, its driver (Debian: chromium-driver) and the package selenium",
)
EVIL = "</script><img src=x onerror=alert(1)>"
SWITCHES = (
    *("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
    "--window-size=1300,1000",
)


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """One browser for all tests; it logs its console and every request."""
    options = webdriver.ChromeOptions()
    options.binary_location = BROWSER
    profile = tmp_path_factory.mktemp("profile")
    for switch in (*SWITCHES, f"--user-data-dir={profile}"):
        options.add_argument(switch)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    made = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    yield made
    made.quit()


@pytest.fixture(scope="module")
def runs() -> list[Any]:
    """Two runs of one size and different numbers; some of their text would like to be markup."""
    first = page_run(6, 5, name="before", relations=("country_to_capital", EVIL))
    second = page_run(6, 5, name="after", seed=1)
    first[0]["parts"].append(plain(Rows(EVIL, (EVIL,), ((EVIL,),))))
    first[0]["models"][0]["relations"][0]["examples"] = [[EVIL, EVIL]]
    return [first, second]


@pytest.fixture(scope="module")
def page(runs: list[Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_page(tmp_path_factory.mktemp("page") / "report.html", runs, EVIL)


@pytest.fixture
def opened(driver: Any, page: Path, tmp_path: Path) -> Iterator[Any]:
    """The page, just opened; afterwards the console must be silent and nothing asked from elsewhere."""
    driver.execute_cdp_cmd(
        "Browser.setDownloadBehavior", {"behavior": "allow", "downloadPath": str(tmp_path)}
    )
    for log in ("browser", "performance"):  # what was before
        driver.get_log(log)
    driver.get(page.as_uri())
    wait_for(lambda: driver.execute_script("return document.documentElement.dataset.ready"))
    yield driver
    assert [entry["message"] for entry in driver.get_log("browser")] == []
    events = [json.loads(entry["message"])["message"] for entry in driver.get_log("performance")]
    asked = {e["params"]["request"]["url"] for e in events if e["method"] == "Network.requestWillBeSent"}
    # A browser that starts slowly may still have been opening its own empty tab.
    inside = ("data:", "blob:", "chrome:", "chrome-untrusted:")
    assert {url for url in asked if not url.startswith(inside)} <= {page.as_uri()}
    assert asked  # or the log would tell nothing


def wait_for(found: Callable[[], Any], seconds: float = 10) -> Any:
    """What `found` gives, once it gives something."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if value := found():
            return value
        time.sleep(0.02)
    raise AssertionError("waited in vain")


def one(driver: Any, selector: str) -> Any:
    return driver.find_element(By.CSS_SELECTOR, selector)


def cell(driver: Any, layer: int, head: int, n_heads: int = 5) -> Any:
    """The cell of a head on the map; cells are in (layer, head) order."""
    return driver.find_elements(By.CSS_SELECTOR, "#map-svg g.heads rect")[layer * n_heads + head]


def choose(driver: Any, control: str, text: str) -> None:
    Select(one(driver, f"#map-controls [data-control='{control}']")).select_by_visible_text(text)


def readout(driver: Any) -> str:
    return one(driver, "#readout").text


def search(driver: Any, text: str) -> Any:
    box = one(driver, "[data-control=search]")
    box.clear()
    box.send_keys(text, Keys.ENTER)
    return one(driver, "[data-control=search]")


def grid(runs: list[Any], **coordinates: str) -> HeadGrid:
    (found,) = runs[0][1].select(**coordinates)
    return found


def outlined(driver: Any) -> int:
    return int(re.search(r"(\d+) of 30 heads are above", one(driver, "#map-title").text)[1])


def test_hover_shows_head_value_error_and_n(opened, runs):
    scores = grid(runs, kind="static", relation=shown_relation(opened))
    head = scores.top(1)[0][0]
    ActionChains(opened).move_to_element(cell(opened, *head)).perform()
    tip = wait_for(lambda: one(opened, "#map-svg g[aria-label=tip]").text)
    value = scores.scores[head]
    low, high = wilson(value, 60).tolist()
    for text in (tip, readout(opened)):
        assert str(head) in text
        assert f"{value:.2f} [{low:.2f}, {high:.2f}]" in text
        assert "n = 60" in text
    choose(opened, "score", "head ablation: ablation logprob (mean, last)")
    effects = grid(runs, kind="ablation_logprob", relation=scores.relation)
    head = np.unravel_index(np.abs(effects.scores).argmax(), effects.scores.shape)
    ActionChains(opened).move_to_element(cell(opened, *head)).perform()
    value, error = re.search(r"L\d+H\d+, ([+\N{MINUS SIGN}].*) ± (.*), n = 40", readout(opened)).groups()
    assert value == f"{effects.scores[head]:+.2f}".replace("-", "\N{MINUS SIGN}")
    assert float(error) == pytest.approx(effects.stderr[head], abs=0.006)


def shown_relation(driver: Any) -> str:
    """The relation of the map as the page begins."""
    name = Select(one(driver, "[data-control='relation or task']")).first_selected_option.text
    return EVIL if "script" in name else "country_to_capital"


def test_a_click_pins_a_head_and_opens_its_card(opened, runs):
    with pytest.raises(NoSuchElementException):
        one(opened, "#card")
    choose(opened, "relation or task", "Country to capital")
    scores = grid(runs, kind="static", relation="country_to_capital")
    head = scores.top(1)[0][0]
    cell(opened, *head).click()
    card = one(opened, "#card")
    assert card.get_attribute("data-head") == str(head)
    rows = {
        tuple(td.text for td in row.find_elements(By.TAG_NAME, "td"))
        for row in card.find_elements(By.CSS_SELECTOR, "tbody tr")
    }
    value = f"{scores.scores[head]:.2f} [{', '.join(f'{x:.2f}' for x in wilson(scores.scores[head], 60))}]"
    assert ("relation scores: static", "Country to capital", value, "1 of 30") in rows
    own = [row for row in rows if len(row) == 4 and row[0].startswith(("relation", "dynamic", "head"))]
    (top,) = [row for row in rows if row[0] == "Country to capital"]
    assert top[3] == f"{EVIL} → {EVIL}"  # example pairs
    assert len(own) + 1 == len(runs[0][1]) or len(own) == len(runs[0][1])
    assert card.find_elements(By.CSS_SELECTOR, ".pattern svg")
    search(opened, "L0H1")
    assert "dog" in one(opened, "#card").text  # its salient tokens
    one(opened, "[aria-label=unpin]").click()
    assert not opened.find_elements(By.CSS_SELECTOR, "#card")


@pytest.mark.parametrize("text", ["L2H3", "l2h3", "2.3", " (2, 3) "])
def test_search_finds_a_head_in_any_spelling(opened, text: str):
    assert search(opened, text).get_attribute("aria-invalid") == "false"
    assert one(opened, "#card").get_attribute("data-head") == "L2H3"
    assert readout(opened).startswith("L2H3: ")


@pytest.mark.parametrize(
    ("text", "rule"), [("L6H0", "has layers 0 to 5"), ("head 3", "is written L9H6, 9.6")]
)
def test_search_says_what_is_no_head(opened, text: str, rule: str):
    assert search(opened, text).get_attribute("aria-invalid") == "true"
    assert rule in readout(opened)
    assert not opened.find_elements(By.CSS_SELECTOR, "#card")


def test_the_threshold_counts_and_outlines(opened, runs):
    choose(opened, "relation or task", "Country to capital")
    scores = grid(runs, kind="static", relation="country_to_capital").scores
    assert outlined(opened) == (scores > np.float32(0.15)).sum()
    box = one(opened, "[data-control=threshold]")
    box.clear()
    box.send_keys("0.01")
    assert wait_for(lambda: outlined(opened) == (scores > np.float32(0.01)).sum())
    assert (scores > np.float32(0.01)).sum() > (scores > np.float32(0.15)).sum()


def test_categories_are_counted_as_headjax_counts_them(opened, runs):
    masks = head_categories(runs[0][1])
    counts = category_counts(masks)
    keys = one(opened, "[data-run='0'] .charts .key").text
    assert f"Unclassified: {counts[0]}" in keys
    for category, mask in masks.items():
        alone = mask & (np.sum(list(masks.values()), axis=0) == 1)
        assert f"{category}: {alone.sum()}" in keys
    one(opened, "[data-run='0'] input[type=checkbox]").click()
    counts = category_counts(head_categories(runs[0][1], count_suppression=False))
    assert f"Unclassified: {counts[0]}" in one(opened, "[data-run='0'] .charts .key").text


def test_scores_colours_and_marks_are_chosen(opened):
    before = cell(opened, 0, 0).get_attribute("fill")
    choose(opened, "colours", "Greys")
    assert cell(opened, 0, 0).get_attribute("fill") != before
    choose(opened, "marks", "ioi")
    assert len(opened.find_elements(By.CSS_SELECTOR, "#map-svg g[aria-label=dot] path")) == 2
    assert "Name movers" in one(opened, "#map").text
    choose(opened, "score", "dynamic scores: dynamic context")
    assert "dynamic context" in one(opened, "#map-title").text
    choose(opened, "run and model", "after: tiny")
    assert one(opened, "#map-title").text.startswith("after: tiny, dynamic scores: dynamic context")


def test_what_is_said_of_a_pinned_head_follows_what_the_map_shows(opened, runs):
    search(opened, "L3H2")
    for relation, name in (("country_to_capital", "Country to capital"), (EVIL, EVIL)):
        choose(opened, "relation or task", name)
        scores = grid(runs, kind="static", relation=relation).scores
        assert readout(opened).startswith(f"L3H2: {scores[3, 2]:.2f}")
    one(opened, "[aria-label=unpin]").click()
    choose(opened, "relation or task", "Country to capital")
    assert readout(opened) == ""


def test_two_runs_are_subtracted(opened, runs):
    choose(opened, "relation or task", "Country to capital")
    options = [o.text for o in Select(one(opened, "[data-control=minus]")).options]
    choose(opened, "minus", next(text for text in options if text == "after: tiny"))
    first, second = (of[1].select(kind="static", relation="country_to_capital").one.scores for of in runs)
    search(opened, "L3H2")
    expected = f"{first[3, 2]:.2f} \N{MINUS SIGN} {second[3, 2]:.2f}"
    assert expected in readout(opened)
    assert "after: tiny" in one(opened, "#card thead, #card").text


def test_the_map_is_walked_with_keys(opened):
    one(opened, "#map-svg").send_keys(Keys.ARROW_RIGHT)
    one(opened, "#map-svg").send_keys(Keys.ARROW_UP, Keys.ARROW_UP)
    assert readout(opened).startswith("L1H2, ")
    one(opened, "#map-svg").send_keys(Keys.ENTER)
    assert one(opened, "#card").get_attribute("data-head") == "L1H2"
    assert opened.switch_to.active_element.get_attribute("id") == "map-svg"


def test_the_grid_is_saved_as_csv(opened, runs, tmp_path: Path):
    choose(opened, "score", "head ablation: ablation logprob (mean, last)")
    choose(opened, "relation or task", "Country to capital")
    one(opened, "#csv").click()
    (file,) = wait_for(lambda: list(tmp_path.glob("*.csv")))
    with open(file, newline="", encoding="utf-8") as content:
        rows = list(csv.DictReader(content))
    effects = grid(runs, kind="ablation_logprob", relation="country_to_capital")
    assert [(int(row["layer"]), int(row["head"])) for row in rows] == list(np.ndindex(6, 5))
    assert [np.float32(row["score"]) for row in rows] == effects.scores.ravel().tolist()
    np.testing.assert_allclose([float(row["stderr"]) for row in rows], effects.stderr.ravel(), rtol=3e-4)
    assert {(row["model"], row["kind"], row["n"]) for row in rows} == {("tiny", "ablation_logprob", "40")}


def test_the_picture_is_saved_as_svg(opened, tmp_path: Path):
    one(opened, "#svg").click()
    (file,) = wait_for(lambda: list(tmp_path.glob("*.svg")))
    picture = ElementTree.parse(file).getroot()
    assert len(picture.findall(".//{http://www.w3.org/2000/svg}rect")) >= 30
    assert "tiny" in "".join(picture.itertext())


def test_attention_has_tokens_on_both_axes_and_marks(opened):
    section = one(opened, "[data-run='0']:has([data-control=pattern-heads])")
    box = section.find_element(By.CSS_SELECTOR, "[data-control=pattern-heads]")
    assert len(section.find_elements(By.CSS_SELECTOR, ".pattern")) == 3
    box.clear()
    box.send_keys("L5H4, 0.1", Keys.TAB)
    wait_for(lambda: len(section.find_elements(By.CSS_SELECTOR, ".pattern")) == 2)
    pattern = section.find_element(By.CSS_SELECTOR, ".pattern[data-head=L5H4]")
    assert pattern.text.count("␣France ●") == 2
    assert "“Paris” is the answer" in pattern.text
    assert len(pattern.find_elements(By.CSS_SELECTOR, "g.weights rect")) == 36
    box.send_keys(", L99H0", Keys.TAB)
    assert "heads are kept" in section.text


def test_every_part_is_drawn(opened):
    drawn = opened.find_elements(By.CSS_SELECTOR, "[data-run='0'] .drawn")
    assert len(drawn) == 6
    for box in drawn:
        assert box.find_elements(By.CSS_SELECTOR, "svg g[aria-label]")
    links = opened.find_elements(By.CSS_SELECTOR, "#sections a")
    targets = [link.get_attribute("href").rpartition("#")[2] for link in links]
    assert all(opened.find_elements(By.ID, target) for target in targets)
    assert "heads" in targets


def test_text_of_users_makes_no_element_and_runs_nothing(opened):
    choose(opened, "relation or task", EVIL[:1] + EVIL[1:].lower())
    search(opened, "L1H1")
    assert EVIL.lower() in one(opened, "#map-title").text.lower()
    assert not opened.find_elements(By.CSS_SELECTOR, "img")
    assert opened.title == f"{EVIL} - headjax"  # and no dialog is open, or this would raise


def test_it_is_not_wider_than_its_window(opened):
    wide = "return document.documentElement.scrollWidth - document.documentElement.clientWidth"
    search(opened, "L1H1")
    for width in (1300, 760, 420):
        opened.execute_cdp_cmd(
            "Emulation.setDeviceMetricsOverride",
            {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False},
        )
        time.sleep(0.3)
        assert opened.execute_script(wide) <= 0
    opened.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_it_is_readable_in_the_dark(opened):
    def contrast() -> float:
        colors = opened.execute_script(
            "const s = getComputedStyle(document.body); return [s.color, s.backgroundColor]"
        )
        light = [np.array([int(x) for x in re.findall(r"\d+", c)[:3]]) / 255 for c in colors]
        linear = [np.where(c <= 0.04045, c / 12.92, ((c + 0.055) / 1.055) ** 2.4) for c in light]
        y = sorted(float(c @ [0.2126, 0.7152, 0.0722]) for c in linear)
        return (y[1] + 0.05) / (y[0] + 0.05)

    assert contrast() > 10
    dark = {"features": [{"name": "prefers-color-scheme", "value": "dark"}]}
    opened.execute_cdp_cmd("Emulation.setEmulatedMedia", dark)
    background = "return getComputedStyle(document.body).backgroundColor"
    assert wait_for(lambda: opened.execute_script(background) == "rgb(21, 24, 28)")
    assert contrast() > 10
    opened.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})
