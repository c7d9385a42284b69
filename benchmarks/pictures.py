"""The documents' pictures, from the runs in docs/runs/demo, which are those of `make demo` without their weights:

    python -m benchmarks.pictures                       draws docs/images/demo-curves.png and report-*.png again
    python -m benchmarks.pictures --keep runs/demo      first takes over what a finished demo left

The report is drawn and opened in Chromium; palettes of 128 colours keep the pictures small. What is kept of a run is
what its report needs: configuration, metrics, evaluations, the fixed images, and the first and the last snapshot of
what the encoder made of them. `make demo` makes the weights again, to the bit on the same machine and versions.
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
from cjepa.training.metrics import read_metrics
from cjepa.visualization import save, training_curves

ROOT = Path(__file__).parents[1]
IMAGES, RUNS = ROOT / "docs" / "images", ROOT / "docs" / "runs" / "demo"
NAMES = {"I-JEPA": "ijepa", "C-JEPA": "cjepa"}
KEPT = (
    *("config.yaml", "data.json", "environment.json", "metrics.jsonl", "evaluations.jsonl", "timing.jsonl"),
    "report/images.safetensors",
)
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


def keep(demo: Path) -> None:
    """Copy the small part of both runs, with the snapshots before and after the training."""
    for run in NAMES.values():
        shutil.rmtree(RUNS / run, ignore_errors=True)
        snapshots = sorted((demo / run / "report" / "snapshots").iterdir())
        for path in (*(demo / run / name for name in KEPT), snapshots[0], snapshots[-1]):
            place = RUNS / run / path.relative_to(demo / run)
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, place)


def draw_curves() -> Path:
    """The training curves of both runs."""
    path = IMAGES / "demo-curves.png"
    save(training_curves({name: read_metrics(RUNS / run / "metrics.jsonl") for name, run in NAMES.items()}), path)
    Image.open(path).convert("RGB").quantize(128).save(path, optimize=True)
    return path


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
    parser.add_argument("--keep", type=Path, metavar="DEMO", help="the folder that cjepa demo wrote")
    demo = parser.parse_args().keep
    if demo is not None:
        keep(demo)
    print(draw_curves())
    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium") or shutil.which("chromium-browser") or ""
    with tempfile.TemporaryDirectory() as scratch:
        folders = {name: (RUNS / run).relative_to(Path.cwd()) for name, run in NAMES.items()}
        page = write_report(folders, Path(scratch) / "index.html")
        for argument in (*ARGUMENTS, f"--user-data-dir={scratch}/profile"):
            options.add_argument(argument)
        browser = webdriver.Chrome(options=options, service=webdriver.ChromeService(shutil.which("chromedriver")))
        try:
            for name, (begin, end, width, scheme) in SHOTS.items():
                print(shoot(browser, page, name, begin, end, width, scheme))
        finally:
            browser.quit()


if __name__ == "__main__":
    main()
