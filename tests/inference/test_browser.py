"""Tests of the search page in a browser: typing a text, choosing a file, dropping a file."""

import shutil

from PIL import Image
import pytest

from clip_jax.data.decode import decode
from clip_jax.inference.web_ui import SearchServer
from running_server import running

selenium = pytest.importorskip("selenium", reason="selenium is not installed: pip install selenium")
from selenium import webdriver  # noqa: E402
from selenium.webdriver.common.by import By  # noqa: E402
from selenium.webdriver.support.ui import WebDriverWait  # noqa: E402

SECONDS = 30
DROP = """
  const bytes = new Uint8Array(arguments[0]), data = new DataTransfer();
  data.items.add(new File([bytes], "dropped.png", {type: "image/png"}));
  for (const kind of ["dragover", "drop"])
    document.body.dispatchEvent(new DragEvent(kind, {dataTransfer: data, bubbles: true,
                                                     cancelable: true}));
"""


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
  folder = tmp_path_factory.mktemp("pictures")
  paths = []
  for name, colour in (("red.png", "red"), ("<b>blue & green.png", "blue"), ("lime.png", "lime")):
    Image.new("RGB", (60, 30), colour).save(folder / name)
    paths.append(str(folder / name))
  return paths


@pytest.fixture(scope="module")
def page(pictures):
  names = ["red", "blue", "lime"]

  def by_text(text):
    return sorted(((k, float(name in text)) for k, name in enumerate(names)), key=lambda p: -p[1])

  def by_image(content):
    channel = (0, 2, 1)
    pixel = decode(content)[0, 0]
    return sorted(((k, float(pixel[channel[k]]) / 255) for k in range(3)), key=lambda p: -p[1])

  with running(SearchServer("my pictures", pictures, by_text, by_image, port=0)) as made:
    yield made


@pytest.fixture(scope="module")
def browser():
  """Headless Chromium."""
  driver, chromium = shutil.which("chromedriver"), shutil.which("chromium")
  if not (driver and chromium):
    pytest.skip("needs chromium and chromedriver; on Debian: apt-get install chromium-driver")
  options = webdriver.ChromeOptions()
  options.binary_location = chromium
  for flag in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu"):
    options.add_argument(flag)
  options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
  browser = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
  yield browser
  browser.quit()


@pytest.fixture
def opened(browser, page):
  browser.get(page.address)
  yield browser
  assert browser.get_log("browser") == []  # No missing files or failed scripts.


def found(browser, what):
  """Waits for the results and returns the captions below the images."""
  says = browser.find_element(By.ID, "says")
  WebDriverWait(browser, SECONDS).until(lambda _: says.text == f"3 best matches for {what}")
  return [caption.text for caption in browser.find_elements(By.TAG_NAME, "figcaption")]


def test_search_by_text_shows_the_best_first(opened, pictures):
  box = opened.switch_to.active_element  # The search box has the focus.
  box.send_keys("a blue thing\n")
  captions = found(opened, "“a blue thing”")
  assert captions[0] == f"1.000 {pictures[1]}"  # Markup in a file name is escaped.
  assert len(captions) == 3 and captions[1].startswith("0.000")
  images = opened.find_elements(By.CSS_SELECTOR, "figure img")
  WebDriverWait(opened, SECONDS).until(
    lambda _: all(
      opened.execute_script("return arguments[0].naturalWidth", image) == 60 for image in images
    )
  )


def test_search_by_chosen_file(opened, pictures):
  opened.find_element(By.CSS_SELECTOR, "input[type=file]").send_keys(pictures[2])
  assert found(opened, "lime.png")[0] == f"1.000 {pictures[2]}"


def test_search_by_dropped_image(opened, pictures):
  with open(pictures[0], "rb") as f:
    opened.execute_script(DROP, list(f.read()))
  assert found(opened, "dropped.png")[0] == f"1.000 {pictures[0]}"


def test_a_dropped_file_that_is_not_an_image_is_reported(browser, page):
  browser.get(page.address)
  browser.execute_script(DROP, list(b"no picture"))
  says = browser.find_element(By.ID, "says")
  WebDriverWait(browser, SECONDS).until(lambda _: "Not a readable image" in says.text)
  assert [entry["source"] for entry in browser.get_log("browser")] == ["network"]  # The HTTP error.
