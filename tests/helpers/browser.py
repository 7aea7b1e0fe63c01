"""Chromium, for the tests and the benchmark of the page."""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path
from typing import Any

FLAGS = (
    *("headless", "no-sandbox", "disable-gpu", "disable-quic", "no-first-run"),
    *("disable-background-networking", "disable-component-update", "disable-sync"),
)


class Browser:
    """Chromium, and what it was heard to do."""

    def __init__(self, profile: Path) -> None:
        from selenium import webdriver
        from selenium.webdriver.chrome.service import Service

        options = webdriver.ChromeOptions()
        options.binary_location = shutil.which("chromium") or ""
        for flag in FLAGS:
            options.add_argument(f"--{flag}")
        options.add_argument(f"--user-data-dir={profile}")
        options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
        self.driver = webdriver.Chrome(options=options, service=Service(shutil.which("chromedriver")))
        self.driver.get("about:blank")  # away from the browser's own first page, which asks for things of its own

    def open(self, page: Path, width: int = 1280) -> None:
        size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        self.driver.get(page.as_uri())
        self.until("return document.documentElement.dataset.ready === 'yes'")

    def run(self, script: str, *arguments: Any) -> Any:
        return self.driver.execute_script(script, *arguments)

    def until(self, script: str, *arguments: Any, seconds: float = 20) -> None:
        end = time.monotonic() + seconds
        while not self.run(script, *arguments):
            assert time.monotonic() < end, script
            time.sleep(0.02)

    def click(self, selector: str, text: str = "") -> None:
        """Press the first element that the selector finds, with this text if any."""
        for node in self.driver.find_elements("css selector", selector):
            if text in node.text:
                self._press(node)
                return
        raise AssertionError(f"no {selector} with '{text}'")

    def _press(self, node: Any) -> None:
        from selenium.common.exceptions import ElementClickInterceptedException

        end = time.monotonic() + 5
        while True:  # a page that is still being laid out moves what was scrolled to
            self.run("arguments[0].scrollIntoView({block: 'center', behavior: 'instant'})", node)
            try:
                node.click()
                return
            except ElementClickInterceptedException:
                if time.monotonic() > end:
                    raise
                time.sleep(0.05)

    def type(self, *keys: str) -> None:
        from selenium.webdriver import ActionChains

        ActionChains(self.driver).send_keys(*keys).perform()

    def texts(self, selector: str) -> list[str]:
        found = self.run("return [...document.querySelectorAll(arguments[0])].map((n) => n.textContent)", selector)
        return [str(text) for text in found]

    def complaints(self) -> list[str]:
        return [entry["message"] for entry in self.driver.get_log("browser")]

    def requests(self) -> list[str]:
        """Every address that was asked for since the last call."""
        messages = [json.loads(entry["message"])["message"] for entry in self.driver.get_log("performance")]
        sent = [m["params"] for m in messages if m["method"] == "Network.requestWillBeSent"]
        return [str(params["request"]["url"]) for params in sent]
