"""Debian's Chromium, without a window, for tests and benchmarks of the report."""

import shutil
from typing import Any

from selenium import webdriver

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")


def there() -> bool:
    """Whether both packages are installed."""
    return bool(CHROMIUM and DRIVER)


def start(*words: str) -> Any:
    """A browser of one's own, which keeps what its console says; `words` are further options. Whoever starts it quits it."""
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM or ""
    for word in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--hide-scrollbars", *words):
        options.add_argument(word)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    return webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
