"""The page as somebody uses it, in a headless Chromium; skipped where there is none."""

import json
import re
import shutil
import subprocess

import pytest

from scored_runs import TITLE, make_run
from sfda.report.page import write_report

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
USE = """
<script>
addEventListener("load", () => setTimeout(() => {
  const names = () => [...document.querySelectorAll("#main tbody tr")].map(row => row.cells[0].textContent.trim());
  const buttons = [...document.querySelectorAll("#main th button")];
  const button = name => buttons.find(each => each.textContent.trim() === name);
  const heading = button("mIoU %"), found = {first: names()};
  button("fit s").click(); found.fit = names();
  heading.click(); found.down = names();
  heading.click(); found.up = names(); found.sort = heading.parentElement.getAttribute("aria-sort");
  document.querySelector("#columns input").click();
  found.hidden = getComputedStyle(document.querySelector("#main tbody tr").cells[1]).display;
  const section = document.querySelector(".image"), range = section.querySelector("input[type=range]");
  section.scrollIntoView();
  document.getElementById("left").value = "good";
  document.getElementById("kind").value = "errors";
  document.getElementById("kind").dispatchEvent(new Event("change"));
  range.value = 20; range.dispatchEvent(new Event("input"));
  setTimeout(() => {
    found.caption = section.querySelector(".stack + input + figcaption").textContent;
    found.over = section.querySelector(".over").naturalWidth;
    found.at = section.querySelector(".stack").style.getPropertyValue("--at");
    found.wide = document.documentElement.scrollWidth <= document.documentElement.clientWidth;
    const fetched = performance.getEntriesByType("resource").map(each => each.name);
    found.requests = fetched.filter(name => !name.startsWith("data:"));
    document.body.insertAdjacentHTML("beforeend", "<pre id=found></pre>");
    document.getElementById("found").textContent = JSON.stringify(found);
  }, 500);
}, 500));
</script>
"""


@pytest.mark.medium
@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium")
@pytest.mark.parametrize("width", [1400, 420])
def test_tables_sort_images_open_the_slider_moves_and_nothing_is_fetched(width, tmp_path):
    make_run(tmp_path, "source_only", 0.6, method="SourceOnly")
    make_run(tmp_path, "good", 0.9)
    make_run(tmp_path, "bad", 0.3, adapt_seconds=100.0)
    page = write_report([tmp_path], tmp_path / "report.html", title=TITLE)
    page.write_text(page.read_text().replace("</body>", USE + "</body>"))
    options = [
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--virtual-time-budget=8000",
        f"--window-size={width},900",
    ]
    command = [CHROMIUM, *options, f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom", page.as_uri()]
    dom = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout
    found = json.loads(re.search(r'<pre id="found">(.*?)</pre>', dom, re.DOTALL)[1])
    assert found["first"] == ["bad", "good", "source_only"]
    assert found["fit"] == ["good", "bad", "source_only"]  # 12, 100, none: as numbers, the least first
    assert found["down"] == ["good", "source_only", "bad"]
    assert (found["up"], found["sort"]) == (["bad", "source_only", "good"], "ascending")
    assert found["hidden"] == "none"
    assert found["caption"] == "errors: good | source_only"
    assert found["over"] > 0
    assert found["at"] == "20%"
    assert found["wide"]  # nothing sticks out of a telephone
    assert found["requests"] == []
