"""Tests of the search page in a browser, by mouse, keyboard and address."""

import shutil
from urllib.parse import quote

from PIL import Image
import pytest

from clip_jax.data.decode import decode
from running_server import running, search_server

selenium = pytest.importorskip("selenium", reason="selenium is not installed: pip install selenium")
from selenium import webdriver  # noqa: E402
from selenium.webdriver.common.by import By  # noqa: E402
from selenium.webdriver.common.keys import Keys  # noqa: E402
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
  (folder / "lime.txt").write_text("a <i>lime</i>")
  for k in range(40):
    Image.new("RGB", (60, 30), (50, 50, k)).save(folder / f"grey{k:02}.png")
    paths.append(str(folder / f"grey{k:02}.png"))
  return paths


@pytest.fixture(scope="module")
def page(pictures):
  names = ["red", "blue", "lime"]
  more = [(k, 0.0) for k in range(3, len(pictures))]

  def by_text(text):
    scores = [(k, float(name in text)) for k, name in enumerate(names)]
    return sorted(scores, key=lambda p: -p[1]) + (more if "all" in text else [])

  def by_image(content):
    channel = (0, 2, 1)
    pixel = decode(content)[0, 0]
    return sorted(((k, float(pixel[channel[k]]) / 255) for k in range(3)), key=lambda p: -p[1])

  with running(search_server("my pictures", pictures, by_text, by_image)) as made:
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
  browser.set_window_size(1000, 800)
  browser.get(page.address)
  yield browser
  assert browser.get_log("browser") == []  # No missing files or failed scripts.


def wait(browser, condition):
  return WebDriverWait(browser, SECONDS).until(lambda _: condition())


def texts(browser, selector):
  # At once, because the page may replace the elements in the meantime.
  return browser.execute_script(
    "return [...document.querySelectorAll(arguments[0])].map(e => e.textContent)", selector
  )


def found(browser, what):
  """Waits for the results and returns (score, name) of each."""
  wait(browser, lambda: texts(browser, "#says") == [f"3 best matches for {what}"])
  return list(zip(texts(browser, "#found .score"), texts(browser, "#found .name")))


def test_search_by_text_shows_the_best_first(opened):
  box = opened.switch_to.active_element  # The search box has the focus.
  box.send_keys("a blue thing\n")
  results = found(opened, "“a blue thing”")
  assert results[0] == ("1.000", "<b>blue & green.png")  # Markup in a file name is escaped.
  assert len(results) == 3 and results[1][0] == "0.000"
  assert texts(opened, "#found .caption") == ["a <i>lime</i>"]
  wait(
    opened,
    lambda: opened.execute_script("""
    return [...document.querySelectorAll("#found img")].every(image => image.naturalWidth === 60)
  """),
  )


def test_the_address_holds_the_search(opened, page):
  opened.get(page.address + "?q=" + quote("a red & blue thing"))
  found(opened, "“a red & blue thing”")
  box = opened.find_element(By.NAME, "q")
  assert box.get_attribute("value") == "a red & blue thing"
  box.clear()
  box.send_keys("lime\n")
  assert found(opened, "“lime”")[0][1] == "lime.png" and "?q=lime" in opened.current_url
  opened.back()
  found(opened, "“a red & blue thing”")


def test_the_start_page_shows_images_and_more_on_scrolling(opened):
  wait(opened, lambda: len(texts(opened, "#found .name")) >= 20)
  assert texts(opened, "#says") == ["Some of the images, at random"]

  def all_after_scrolling():
    opened.execute_script("scrollTo(0, document.body.scrollHeight)")
    return len(texts(opened, "#found .name")) == 43

  wait(opened, all_after_scrolling)
  assert len(set(texts(opened, "#found .name"))) == 43


def test_results_are_links_that_enlarge_by_keyboard(opened, page):
  opened.get(page.address + "?q=red")
  found(opened, "“red”")
  link = opened.find_element(By.CSS_SELECTOR, "#found a.open")
  link.send_keys(Keys.ENTER)
  caption = lambda: texts(opened, "dialog[open] figcaption")
  wait(opened, lambda: caption() == ["1.000 · red.png"])
  opened.switch_to.active_element.send_keys(Keys.ARROW_RIGHT)
  wait(opened, lambda: "blue" in caption()[0])
  opened.switch_to.active_element.send_keys(Keys.ESCAPE)
  wait(opened, lambda: caption() == [])
  assert opened.switch_to.active_element == link  # The focus is where it was.


def test_more_like_this_searches_by_the_image(opened, page):
  opened.get(page.address + "?q=lime")
  found(opened, "“lime”")
  opened.find_element(By.CSS_SELECTOR, "#found li > .more").click()
  wait(opened, lambda: opened.current_url.endswith("?like=2"))
  wait(opened, lambda: "image 2" in texts(opened, "#says")[0])
  wait(opened, lambda: "Similar to lime.png" in texts(opened, "#reference span")[0])


def test_a_narrow_window_does_not_scroll_sideways(browser, page):
  browser.set_window_size(390, 800)
  browser.get(page.address + "?q=red")
  found(browser, "“red”")
  assert browser.execute_script(
    "return document.documentElement.scrollWidth <= document.documentElement.clientWidth"
  )


def test_search_by_chosen_file(opened, pictures):
  opened.find_element(By.CSS_SELECTOR, "input[type=file]").send_keys(pictures[2])
  assert found(opened, "lime.png")[0] == ("1.000", "lime.png")


def test_search_by_dropped_image(opened, pictures):
  with open(pictures[0], "rb") as f:
    opened.execute_script(DROP, list(f.read()))
  assert found(opened, "dropped.png")[0] == ("1.000", "red.png")


def test_a_dropped_file_that_is_not_an_image_is_reported(browser, page):
  browser.get(page.address)
  browser.execute_script(DROP, list(b"no picture"))
  wait(browser, lambda: "Not a readable image" in texts(browser, "#says")[0])
  assert [entry["source"] for entry in browser.get_log("browser")] == ["network"]  # The HTTP error.
