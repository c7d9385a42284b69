"""The documents' pictures of the report, from the folder of a finished demo:

    cjepa demo training.epochs=6 training.evaluate_every=1
    python -m benchmarks.pictures runs/demo

draws its report again, opens it in Chromium and writes docs/images/report-*.png, with palettes of 128 colours so that
they stay small.
"""

import argparse
import base64
import io
import shutil
import tempfile
from pathlib import Path
from typing import Any

from PIL import Image
from selenium import webdriver

from cjepa.runs import write_report

IMAGES = Path(__file__).parents[1] / "docs" / "images"
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
SHOTS = {
    "report-verdict": ("header", "#verdict h3", 1100, "light"),
    "report-comparison": ("#evaluations", "#curves", 1100, "light"),
    "report-representation": ("#representation", ".similarity", 1100, "light"),
    "report-phone": ("#curves", "#curves h3:nth-of-type(2)", 390, "dark"),
}
"""Name of a picture: where it begins, before what it ends, width in pixels, colour scheme."""


def shoot(browser: Any, page: Path, name: str, begin: str, end: str, width: int, scheme: str) -> Path:
    """One part of the page as a PNG."""
    size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    media = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", media)
    browser.get(page.resolve().as_uri())
    place = "return document.querySelector(arguments[0]).getBoundingClientRect().top + scrollY"
    top, bottom = (float(browser.execute_script(place, selector)) for selector in (begin, end))
    clip = {"x": 0, "y": max(top - 12, 0), "width": width, "height": bottom - top - 12, "scale": 1}
    shot = browser.execute_cdp_cmd("Page.captureScreenshot", {"captureBeyondViewport": True, "clip": clip})
    path = IMAGES / f"{name}.png"
    picture = Image.open(io.BytesIO(base64.b64decode(shot["data"]))).convert("RGB")
    picture.quantize(128).save(path, optimize=True)
    return path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("demo", type=Path, help="the folder that cjepa demo wrote")
    demo = parser.parse_args().demo
    page = write_report({"I-JEPA": demo / "ijepa", "C-JEPA": demo / "cjepa"}, demo / "report" / "index.html")
    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium") or shutil.which("chromium-browser") or ""
    with tempfile.TemporaryDirectory() as profile:
        for argument in (*ARGUMENTS, f"--user-data-dir={profile}"):
            options.add_argument(argument)
        browser = webdriver.Chrome(options=options, service=webdriver.ChromeService(shutil.which("chromedriver")))
        try:
            for name, (begin, end, width, scheme) in SHOTS.items():
                print(shoot(browser, page, name, begin, end, width, scheme))
        finally:
            browser.quit()


if __name__ == "__main__":
    main()
