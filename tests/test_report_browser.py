"""The page of a real run in a real browser: Chromium opens it from the disk, and its parts react."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cjepa.config.presets import resolve
from cjepa.runs import pretrain, write_report
from tests.tiny_runs import write_config, write_images

webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed (extra: test)")
Select = pytest.importorskip("selenium.webdriver.support.ui").Select

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
DRIVER = shutil.which("chromedriver")
ARGUMENTS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
DESKTOP, PHONE = 1280, 390

pytestmark = pytest.mark.skipif(
    CHROMIUM is None or DRIVER is None,
    reason="chromium and chromedriver are not installed (apt: chromium, chromium-driver)",
)


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two runs on images in a folder with a hostile name."""
    folder = tmp_path_factory.mktemp("browser")
    images = write_images(folder / "images", ("a", "<img src=x onerror=alert(1)>", "c"))
    changes = [f"data={images}", "training.epochs=2", "training.evaluate_every=1", "logging.report=true"]
    changes += ["logging.report_share=0", "training.momentum.start=0.5"]  # so that few steps change the target encoder
    path = str(write_config(folder))
    runs = {"C-JEPA": folder / "cjepa", "I-JEPA <b>": folder / "ijepa"}
    pretrain(resolve(path, changes), runs["C-JEPA"])
    pretrain(resolve(path, [*changes, "objective=ijepa"]), runs["I-JEPA <b>"])
    return write_report(runs, folder / "page.html")


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM or ""
    for argument in (*ARGUMENTS, f"--user-data-dir={tmp_path_factory.mktemp('profile')}"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    driver.set_script_timeout(30)
    yield driver
    driver.quit()


def show(browser: Any, page: Path, width: int = DESKTOP, scheme: str = "light") -> None:
    size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width == PHONE}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    feature = {"name": "prefers-color-scheme", "value": scheme}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [feature]})
    browser.get(page.as_uri())
    browser.execute_script("sessionStorage.clear()")
    browser.get(page.as_uri())


def script(browser: Any, text: str, *arguments: Any) -> Any:
    return browser.execute_script(text, *arguments)


def element(browser: Any, selector: str) -> Any:
    return browser.find_element("css selector", selector)


def requested(browser: Any) -> set[str]:
    """Addresses that the browser asked for, of any kind but data."""
    messages = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    sent = [each for each in messages if each["method"] == "Network.requestWillBeSent"]
    addresses = {each["params"]["request"]["url"] for each in sent}
    return {address for address in addresses if not address.startswith("data:")}


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [DESKTOP, PHONE])
def test_the_page_opens_from_the_disk_without_an_error_or_a_request(
    browser: Any, page: Path, width: int, scheme: str, tmp_path: Path
) -> None:
    browser.get_log("performance")
    show(browser, page, width, scheme)
    assert browser.get_log("browser") == []
    assert requested(browser) == {page.as_uri()}
    assert script(browser, "return document.documentElement.scrollWidth") <= width, "nothing sticks out at the side"
    assert script(browser, "return [...document.images].every((image) => image.complete && image.naturalWidth > 0)")
    dark = script(browser, "return getComputedStyle(document.body).backgroundColor")
    assert dark == ("rgb(22, 22, 21)" if scheme == "dark" else "rgb(255, 255, 255)")
    assert "alert(1)" in element(browser, "main").text, "the hostile name is text"
    shot = tmp_path / "page.png"
    assert browser.save_screenshot(str(shot))
    assert shot.stat().st_size > 5000


def test_text_has_contrast_in_both_schemes(browser: Any, page: Path) -> None:
    """4.5 to 1 for text, by the formula of WCAG 2; it asks for 3 to 1 for lines of plots, which have 4 to 1 here."""
    for scheme in ("light", "dark"):
        show(browser, page, scheme=scheme)
        low = script(
            browser,
            """
            const style = getComputedStyle(document.documentElement);
            const light = (name) => {
              const hex = style.getPropertyValue(name).trim();
              const [r, g, b] = [1, 3, 5].map((i) => parseInt(hex.slice(i, i + 2), 16) / 255)
                .map((v) => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
              return 0.2126 * r + 0.7152 * g + 0.0722 * b;
            };
            const ratio = (one, other) => {
              const [low, high] = [light(one), light(other)].sort((a, b) => a - b);
              return (high + 0.05) / (low + 0.05);
            };
            const text = ["--ink", "--faint", "--accent", "--good", "--warn", "--bad", "--open"];
            const lines = [0, 1, 2, 3, 4, 5, 6].map((i) => `--c${i}`);
            const pairs = text.flatMap((name) => [[name, "--paper", 4.5], [name, "--card", 4.5]]);
            return [...pairs, ...lines.map((name) => [name, "--paper", 4.0])]
              .filter(([name, back, least]) => ratio(name, back) < least);
            """,
        )
        assert low == [], scheme


def test_the_axis_is_chosen_by_buttons(browser: Any, page: Path) -> None:
    show(browser, page)
    visible = "return [...document.querySelectorAll('[data-axis]')].filter((e) => !e.hidden).map((e) => e.dataset.axis)"
    assert set(script(browser, visible)) == {"steps"}
    for axis in ("hours", "epochs"):
        button = element(browser, f"#axes button[value={axis}]")
        button.send_keys("\ue007")  # the enter key
        assert set(script(browser, visible)) == {axis}
        assert button.get_attribute("aria-pressed") == "true"
    browser.get(page.as_uri())
    assert set(script(browser, visible)) == {"epochs"}, "a page that is read again stays as it was"


def test_the_theme_is_switched_by_a_button(browser: Any, page: Path) -> None:
    show(browser, page)
    button = element(browser, "#theme")
    button.click()
    assert script(browser, "return getComputedStyle(document.body).backgroundColor") == "rgb(22, 22, 21)"
    assert button.get_attribute("aria-pressed") == "true"
    button.click()
    assert script(browser, "return getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"


def test_the_slider_shows_other_checkpoints(browser: Any, page: Path) -> None:
    show(browser, page)
    over = "return getComputedStyle(document.querySelector('[data-overs] .tile span')).backgroundImage"
    last, slider = script(browser, over), element(browser, "input.checkpoint")
    assert last.startswith('url("data:image/png')
    assert element(browser, "output.checkpoint").text == "after step 6"
    slider.send_keys("\ue011")  # home
    assert element(browser, "output.checkpoint").text == "after step 0"
    assert slider.get_attribute("aria-valuetext") == "after step 0"
    assert script(browser, over) != last
    slider.send_keys("\ue010")  # end
    assert script(browser, over) == last


def test_patch_similarity_reacts_to_clicks_keys_and_choices(browser: Any, page: Path) -> None:
    show(browser, page)
    canvas, output = element(browser, ".similarity canvas"), element(browser, ".similarity output")
    picture = "return document.querySelector('.similarity canvas').toDataURL()"
    script(browser, "arguments[0].scrollIntoView({block: 'center', behavior: 'instant'})", canvas)
    seen = [script(browser, picture)]
    assert output.text.startswith("Patch in row 3, column 3: cosine ")
    canvas.send_keys("\ue013", "\ue012", "\ue012", "\ue012")  # up, and left beyond the edge
    assert output.text.startswith("Patch in row 2, column 1: ")
    seen.append(script(browser, picture))
    box = canvas.rect
    webdriver.ActionChains(browser).move_to_element_with_offset(
        canvas, round(0.4 * box["width"]), round(0.4 * box["height"])
    ).click().perform()
    assert output.text.startswith("Patch in row 4, column 4: ")
    seen.append(script(browser, picture))
    for selector, index in (("select.encoder", 1), ("select.image", 2)):
        Select(element(browser, f".similarity {selector}")).select_by_index(index)
        seen.append(script(browser, picture))
    assert len(set(seen)) == len(seen), "every action changes the picture"
    assert browser.get_log("browser") == []


def test_everything_is_reached_by_the_tabulator(browser: Any, page: Path) -> None:
    show(browser, page)
    script(browser, "window.scrollTo(0, 0)")
    reached: list[str] = []
    for _ in range(80):
        browser.switch_to.active_element.send_keys("\ue004")
        name = script(browser, "const e = document.activeElement; return e.id || e.className || e.value || e.tagName")
        if name == "BODY" or (reached and name == reached[0] and len(reached) > 10):
            break
        reached.append(name)
    assert {"skip", "theme", "hours", "encoder", "image", "strips"} <= set(reached)
    assert any(name.startswith("checkpoint-") for name in reached)
    assert "CANVAS" in reached


def test_without_scripts_the_page_is_still_read(browser: Any, page: Path) -> None:
    browser.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": True})
    try:
        browser.get(page.as_uri())
        assert "Verdict" in element(browser, "main").text
        assert "needs scripts" in element(browser, "noscript").get_attribute("textContent")
        assert element(browser, "[data-axis=steps] svg").is_displayed()
    finally:
        browser.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": False})
