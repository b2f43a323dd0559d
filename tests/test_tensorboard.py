"""What TensorBoard shows: the event files read back, and every tab in a real browser."""

import contextlib
import io
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.request

import numpy as np
import pytest
from PIL import Image

import quatrains
from conftest import ROOT, SMALL, arguments

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
DRIVER = shutil.which("chromedriver")
CORPUS = ROOT / "data" / "quatrains.txt"
TRAINING = SMALL | {"runs": 3, "embedding_dim": 50, "gru_dim": 32, "batch_size": 512}
LAYERS = {
    "weights/embedding/embeddings",
    "weights/GRU/kernel",
    "weights/GRU/recurrent_kernel",
    "weights/GRU/bias",
    "weights/dense/kernel",
    "weights/dense/bias",
}


def train(folder, **settings):
    command = [sys.executable, str(ROOT / "quatrains.py"), *arguments(**settings)]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True)
    return done.stdout


@pytest.fixture(scope="module")
def logs(tmp_path_factory):
    """Two trainings into one folder: three runs, then two with other settings."""
    folder = tmp_path_factory.mktemp("watched")
    first = train(folder, **TRAINING, corpus=CORPUS)
    second = train(folder, **TRAINING | {"runs": 2, "gru_dim": 48}, corpus=CORPUS)
    trainings = sorted(path.parent for path in folder.glob("logs/**/words.tsv"))
    current = next(path for path in trainings if path.parent.name == "logs")
    earlier = next(path for path in trainings if path != current)
    return folder / "logs", current, earlier, first, second


def read_events(folder):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    assert len(list(folder.glob("events*"))) == 1
    return EventAccumulator(str(folder), size_guidance={"tensors": 0}).Reload()


def test_every_training_keeps_its_folders(logs):
    root, current, earlier, _, second = logs
    assert re.fullmatch(r"\d{6}-\d{6}", current.name)
    assert earlier.parent == root / "earlier" / earlier.name
    assert f"now in logs/earlier/{earlier.name}." in second.replace("\\", "/")
    assert {path.name for path in root.iterdir()} == {
        *("0", "1", "earlier", "projector_config.pbtxt", current.name)
    }
    assert {path.name for path in earlier.parent.iterdir()} == {"0", "1", "2", earlier.name}


@pytest.mark.parametrize("which", ["current", "earlier"])
def test_events_hold_every_tab(logs, which):
    import tensorflow as tf
    from tensorboard.plugins.hparams import plugin_data_pb2

    _, current, earlier, first, second = logs
    folder, printed = (current, second) if which == "current" else (earlier, first)
    events = read_events(folder)
    ends = [1, 3] if which == "current" else [1, 3, 5]

    tags = set(events.Tags()["tensors"])
    assert LAYERS | {f"quatrain {n}" for n in (1, 2, 3)} | {"val_loss", "val_acc"} <= tags
    for tag in LAYERS | {"quatrain 1", "val_loss"}:
        assert [event.step for event in events.Tensors(tag)] == ends
    by_layer = {tag: events.SummaryMetadata(tag).plugin_data.plugin_name for tag in LAYERS}
    assert set(by_layer.values()) == {"histograms"}

    for number in (1, 2, 3):
        events_of_one = events.Tensors(f"quatrain {number}")
        written = [tf.make_ndarray(event.tensor_proto).item().decode() for event in events_of_one]
        assert len(written) == len(ends)
        for text in written:
            verse = "\n".join(line[2:].rstrip() for line in text.split("\n"))
            assert verse in printed
            assert all(line.startswith("> ") for line in text.split("\n"))

    losses = re.findall(r"Epoch 2/2 .* val_loss: ([\d.]+)", printed)
    logged = [tf.make_ndarray(event.tensor_proto).item() for event in events.Tensors("val_loss")]
    assert logged == pytest.approx([float(loss) for loss in losses], abs=1e-4)

    nodes = {node.name.split("/")[0] for node in events.Graph().node}
    assert {"words", "embedding", "GRU", "dense"} <= nodes

    start = plugin_data_pb2.HParamsPluginData.FromString(
        events.SummaryMetadata("_hparams_/session_start_info").plugin_data.content
    ).session_start_info
    assert start.hparams["gru_dim"].number_value == (48 if which == "current" else 32)
    assert start.hparams["use_gpu"].bool_value is False
    assert start.group_name == folder.name


def test_the_projector_lists_both_trainings(logs):
    from google.protobuf import text_format
    from tensorboard.plugins.projector import ProjectorConfig

    root, current, earlier, _, _ = logs
    text = (root / "projector_config.pbtxt").read_text(encoding="utf-8")
    config = text_format.Parse(text, ProjectorConfig())
    names = [embedding.tensor_name for embedding in config.embeddings]
    assert names == [f"{current.name}, run 1", f"earlier {earlier.name}, run 2"]
    for embedding in config.embeddings:
        data = (root / embedding.tensor_path).read_bytes()
        words = (root / embedding.metadata_path).read_text(encoding="utf-8").splitlines()
        assert words[0] == "<BREAK>"
        assert "king" in words
        assert list(embedding.tensor_shape) == [len(words), 50]
        assert data[0] == 0xFF
        vectors = np.frombuffer(data, np.float32).reshape(len(words), 50)
        assert 0.1 < vectors.std() < 1
    assert len(list(current.glob("embedding-*"))) == 1


# ==== In the browser ====

# The text of the page, through shadow roots and frames.
PAGE_TEXT = """
function walk(node) {
  let text = node.shadowRoot ? walk(node.shadowRoot) : '';
  if (node.tagName === 'IFRAME') text += walk(node.contentDocument.body);
  for (const child of node.childNodes) {
    if (child.nodeType === 3) text += child.textContent + ' ';
    else if (child.nodeType === 1 && !/STYLE|SCRIPT/.test(child.tagName)) text += walk(child);
  }
  return text;
}
return walk(document.body).replace(/\\s+/g, ' ');
"""
# Finds the first element of a selector, through shadow roots and frames.
FIND = """
function find(node, selector) {
  for (const root of [node, node.shadowRoot, node.contentDocument]) {
    if (!root) continue;
    const found = root.querySelector(selector);
    if (found) return found;
    for (const child of root.querySelectorAll('*')) {
      const inside = (child.shadowRoot || child.contentDocument) && find(child, selector);
      if (inside) return inside;
    }
  }
  return null;
}
"""


class Page:
    """A browser on a TensorBoard."""

    def __init__(self, driver, address, pictures):
        self.driver, self.address, self.pictures = driver, address, pictures

    def open(self, tab, *expected):
        """Open a tab, wait until it shows all that is expected, and take its picture."""
        self.driver.get("about:blank")
        self.driver.get(f"{self.address}/#{tab}")
        text = self.wait(lambda: self.shows(*expected), f"{tab} does not show {expected}")
        self.picture(tab)
        return text

    def picture(self, tab):
        time.sleep(2)  # for what is drawn after the page has its text
        shot = Image.open(io.BytesIO(self.driver.get_screenshot_as_png()))
        shot.convert("RGB").quantize(48).save(self.pictures / f"{tab}.png", optimize=True)

    def run(self, code):
        return self.driver.execute_script(FIND + code)

    def shows(self, *expected):
        text = self.driver.execute_script(PAGE_TEXT)
        return text if all(part in text for part in expected) else None

    def wait(self, condition, complaint):
        end = time.monotonic() + 60
        while time.monotonic() < end:
            with contextlib.suppress(Exception):
                if found := condition():
                    return found
            time.sleep(0.5)
        raise AssertionError(complaint)


@pytest.fixture(scope="module")
def page(logs, tmp_path_factory, request):
    if not (CHROMIUM and DRIVER):
        pytest.skip("no Chromium: `apt-get install chromium chromium-driver`")
    from selenium import webdriver

    root = logs[0]
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    address = f"http://127.0.0.1:{port}"
    command = [sys.executable, "-m", "tensorboard.main", f"--logdir={root}", f"--port={port}"]
    board = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for switch in (
        "headless no-sandbox disable-gpu disable-quic no-first-run disable-background-networking "
        "disable-component-update disable-sync window-size=1280,800 "
        "use-angle=swiftshader enable-unsafe-swiftshader"
    ).split():
        options.add_argument("--" + switch)
    driver = webdriver.Chrome(options, webdriver.ChromeService(DRIVER))
    pictures = request.config.getoption("--pictures") or tmp_path_factory.mktemp("pictures")
    try:
        shown = Page(driver, address, ROOT / pictures)
        shown.wait(lambda: urllib.request.urlopen(address).status == 200, "no TensorBoard")
        yield shown
    finally:
        driver.quit()
        board.terminate()
        board.wait()


def test_time_series_shows_training_and_validation(page, logs):
    earlier = f"earlier/{logs[2].name}"
    runs = [f"{part}/{half}" for part in "01" for half in ("train", "validation")]
    runs += [f"{earlier}/{part}/{half}" for part in "012" for half in ("train", "validation")]
    text = page.open("timeseries", "loss", "acc", *runs)
    assert "learning_rate" not in text
    assert "iterations" not in text


def test_scalars_show_both_halves_on_one_chart(page):
    page.open("scalars", "0/train", "1/validation", "tag: loss", "tag: acc")


def test_graphs_shows_the_layers_with_shapes(page):
    page.open("graphs", "words", "embedding", "GRU", "dense", "512\u00d74\u00d750", "512\u00d748")


@pytest.mark.parametrize("tab", ["histograms", "distributions"])
def test_weights_are_named_by_layer(page, logs, tab):
    page.open(tab, *LAYERS, logs[1].name)


def test_text_shows_the_quatrains_as_verse(page, logs):
    verse = logs[4].strip().split("\n\n")[-5].split("\n")
    assert 2 <= len(verse) <= 4
    page.open("text", "quatrain 1", *verse)


def test_projector_finds_a_word_and_its_neighbours(page, logs):
    page.open("projector", "Points: 5392", "Dimension: 50", ", run 1", ", run 2")
    page.run(
        "const input = find(document.body, '#search-box').shadowRoot.querySelector('paper-input');"
        "input.value = 'king'; input.dispatchEvent(new Event('input'));"
    )
    page.wait(lambda: page.shows("(click to apply): king kingdom"), "king is not found")
    page.run(
        "find(document.body, 'vz-projector-inspector-panel').shadowRoot"
        ".querySelector('.matches-list .label').click()"
    )
    known = set(quatrains.load_corpus(CORPUS).words)
    heading = "Nearest points in the original space:"
    page.wait(
        lambda: len(known & set(page.shows().split(heading)[1].split()[:40])) > 10,
        "king has no neighbours",
    )
    page.picture("projector")


def test_hparams_has_a_row_for_each_training(page, logs):
    page.open("hparams", logs[1].name, logs[2].name, "gru_dim", "val_loss", "val_acc")
