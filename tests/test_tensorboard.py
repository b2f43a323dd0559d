"""What TensorBoard shows: the event files read back, and every tab in a real browser."""

import contextlib
import io
import json
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.parse
import urllib.request
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from PIL import Image

import quatrains
from conftest import ROOT, SMALL, arguments, read_curve

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
DRIVER = shutil.which("chromedriver")
CORPUS = ROOT / "data" / "quatrains.txt"
TRAINING = SMALL | {"embedding_dim": 50, "gru_dim": 32, "batch_size": 512, "corpus": CORPUS}
TAGS = ("loss", "acc", "cross_entropy")
LAYERS = {
    "weights/embedding/0_embeddings",
    "weights/GRU/0_kernel",
    "weights/GRU/1_recurrent_kernel",
    "weights/GRU/2_bias",
    "weights/dense/0_kernel",
    "weights/dense/1_bias",
}


class Training(NamedTuple):
    """A training's folder, what it printed, its recipe, and how many epochs and runs it has."""

    folder: Path
    printed: str
    recipe: str
    epochs: int
    runs: int

    def ends(self):
        """The last epoch of each run."""
        return [(run + 1) * self.epochs - 1 for run in range(self.runs)]


def train(logs, **settings):
    """Train in this process; return the training's folder and what was printed."""
    with contextlib.redirect_stdout(io.StringIO()) as out:
        assert quatrains.main(arguments(logs=logs, **settings)) == 0
    return max(logs.iterdir()), out.getvalue()


@pytest.fixture(scope="module")
def trainings(tmp_path_factory, request):
    """Two trainings in one folder: one of two runs and, resumed, a third; one of recipe verse."""
    logs = tmp_path_factory.mktemp("watched") / "logs"
    epochs = 10 if request.config.getoption("--pictures") else 2  # More are nicer to look at.
    settings = TRAINING | {"epochs_per_run": epochs, "runs": 2}
    first, began = train(logs, **settings)
    same, went_on = train(logs, resume=True, runs=3)
    assert same == first
    second, printed = train(logs, **settings, recipe="verse")
    return [
        Training(first, began + went_on, "2017", epochs, 3),
        Training(second, printed, "verse", epochs, 2),
    ]


@pytest.fixture(params=["resumed", "whole"])
def training(request, trainings):
    return trainings[request.param == "whole"]


def test_every_training_has_one_folder(training):
    assert re.fullmatch(r"\d{6}-\d{6}", training.folder.name)
    assert {path.name for path in training.folder.iterdir() if "events" not in path.name} == {
        *("train", "validation", "checkpoint.keras", "lock"),
        *("embedding.bytes", "words.tsv", "projector_config.pbtxt"),
    }


def test_curves_are_unbroken_and_what_was_printed(training):
    figures = "".join(f" - {half}{tag}: ([\\d.]+)" for half in ("", "val_") for tag in TAGS)
    printed = re.findall(figures, training.printed)
    epochs = training.runs * training.epochs
    assert len(printed) == epochs
    curves = [(half, tag) for half in ("train", "validation") for tag in TAGS]
    for (half, tag), column in zip(curves, zip(*printed, strict=True), strict=True):
        curve = read_curve(training.folder / half, tag)
        assert [*curve] == [*range(epochs)]
        assert [*curve.values()] == pytest.approx([*map(float, column)], abs=5.1e-5)


def test_events_hold_every_tab(training):
    import tensorflow as tf
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.plugins.hparams import plugin_data_pb2

    events = EventAccumulator(str(training.folder), size_guidance={"tensors": 0}).Reload()
    best = [f"best/val_{tag}" for tag in TAGS]
    texts = [f"quatrain {number}" for number in (1, 2, 3)]
    assert {*LAYERS, *texts, *best, "quote"} <= {*events.Tags()["tensors"]}
    for tag in (*LAYERS, *texts[:3], *best, "quote"):
        assert [event.step for event in events.Tensors(tag)] == training.ends()
    by_layer = {tag: events.SummaryMetadata(tag).plugin_data.plugin_name for tag in LAYERS}
    assert {*by_layer.values()} == {"histograms"}

    for tag in texts:
        for event in events.Tensors(tag):
            text = tf.make_ndarray(event.tensor_proto).item().decode()
            assert all(line.startswith("> ") for line in text.split("\n"))
            assert "\n".join(line[2:].rstrip() for line in text.split("\n")) in training.printed

    nodes = {node.name.split("/")[0] for node in events.Graph().node}
    assert {"words", "embedding", "GRU", "dense"} <= nodes

    start = plugin_data_pb2.HParamsPluginData.FromString(
        events.SummaryMetadata("_hparams_/session_start_info").plugin_data.content
    ).session_start_info
    values = {name.split()[-1]: value for name, value in start.hparams.items()}
    assert {*values} == {*quatrains.FIXED}
    assert values["recipe"].string_value == training.recipe
    assert start.group_name == training.folder.name


def test_the_best_of_all_epochs_is_kept(training):
    for name, best_of in (("loss", min), ("acc", max), ("cross_entropy", min)):
        curve = read_curve(training.folder / "validation", name)
        expected = {end: best_of([*curve.values()][: end + 1]) for end in training.ends()}
        assert read_curve(training.folder, f"best/val_{name}") == expected


def test_the_projector_has_all_words(training):
    from google.protobuf import text_format
    from tensorboard.plugins.projector import ProjectorConfig

    text = (training.folder / "projector_config.pbtxt").read_text(encoding="utf-8")
    (embedding,) = text_format.Parse(text, ProjectorConfig()).embeddings
    data = (training.folder / embedding.tensor_path).read_bytes()
    metadata = (training.folder / embedding.metadata_path).read_text(encoding="utf-8")
    quatrain_texts = quatrains.read_corpus(CORPUS)
    words = quatrains.index_corpus(quatrain_texts, training.recipe == "verse").words
    assert metadata.splitlines() == words
    assert [*embedding.tensor_shape] == [len(words), 50]
    assert data[0] == 0xFF
    assert 0.1 < np.frombuffer(data, np.float32).reshape(-1, 50).std() < 1


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
# Finds the elements of a selector, through shadow roots and frames.
FIND = """
function findAll(node, selector) {
  const found = new Set();
  for (const root of [node, node.shadowRoot, node.contentDocument]) {
    if (!root) continue;
    root.querySelectorAll(selector).forEach(element => found.add(element));
    for (const child of root.querySelectorAll('*'))
      if (child.shadowRoot || child.contentDocument)
        findAll(child, selector).forEach(element => found.add(element));
  }
  return [...found];
}
"""


class Page:
    """A browser on a TensorBoard."""

    def __init__(self, driver, address, pictures):
        self.driver, self.address, self.pictures = driver, address, pictures

    def open(self, tab, *expected, options="", query=""):
        """Open a tab, wait until it shows all that is expected, and take its picture."""
        self.driver.get("about:blank")
        self.driver.get(f"{self.address}/{query}#{tab}{options}")
        text = self.wait(lambda: self.shows(*expected), f"{tab} does not show {expected}")
        self.picture(tab)
        return text

    def fetch(self, path, **query):
        """Fetch what TensorBoard's pages fetch."""
        address = f"{self.address}/data/{path}?{urllib.parse.urlencode(query)}"
        return json.load(urllib.request.urlopen(address))

    def picture(self, tab):
        if self.pictures:
            time.sleep(3)  # for what is drawn after the page has its text
            shot = Image.open(io.BytesIO(self.driver.get_screenshot_as_png()))
            shot.convert("RGB").quantize(128).save(self.pictures / f"{tab}.png", optimize=True)

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
def page(trainings, request):
    if not (CHROMIUM and DRIVER):
        pytest.skip("no Chromium: `apt-get install chromium chromium-driver`")
    from selenium import webdriver

    root = trainings[0].folder.parent
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
    pictures = request.config.getoption("--pictures")
    try:
        shown = Page(driver, address, pictures and ROOT / pictures)
        shown.wait(lambda: urllib.request.urlopen(address).status == 200, "no TensorBoard")
        yield shown
    finally:
        driver.quit()
        board.terminate()
        board.wait()


# What the Scalars and Time Series tabs show of all that there is.
CURVES = urllib.parse.quote("^(acc|loss)$")


def entries(trainings):
    """What TensorBoard lists: three entries a training."""
    return [
        f"{training.folder.name}{part}"
        for training in trainings
        for part in ("", "/train", "/validation")
    ]


def test_time_series_has_three_entries_a_training(page, trainings):
    assert page.fetch("runs") == entries(trainings)
    listed = " ".join(entries(trainings))
    text = page.open("timeseries", f"Run {listed} All Scalars", query=f"?tagFilter={CURVES}")
    assert text.index(" acc ") < text.index(" loss ")
    page.wait(
        lambda: page.run("return document.querySelectorAll('line-chart').length == 2"), "charts"
    )
    for training in trainings:
        for half in ("train", "validation"):
            name = f"{training.folder.name}/{half}"
            for tag in ("loss", "acc"):
                points = page.fetch("plugin/scalars/scalars", run=name, tag=tag)
                steps = [step for _, step, _ in points]
                assert steps == [*range(training.runs * training.epochs)]


def test_scalars_draw_unbroken_curves(page, trainings):
    page.open(
        "scalars", *entries(trainings), "tag: acc", "tag: loss", options=f"&tagFilter={CURVES}"
    )
    code = (
        "return findAll(document.body, 'vz-line-chart2').slice(0, 2).map(chart =>"
        "[[...chart.shadowRoot.querySelectorAll('path.line')].map(path => path.getAttribute('d')),"
        "Object.entries(chart._chart.name2datasets).map("
        "([name, points]) => [JSON.parse(name)[1], points.data().map(point => point.step)])])"
    )
    expected = {
        f"{training.folder.name}/{half}": [*range(training.runs * training.epochs)]
        for training in trainings
        for half in ("train", "validation")
    }

    def drawn():
        charts = page.run(code)
        assert [dict(points) for _, points in charts] == [expected] * 2
        for paths, _ in charts:
            assert len(paths) == 2 * len(expected)  # Smoothed, and as they are.
            assert all(path.count("M") == 1 for path in paths)
        return charts

    page.wait(drawn, "not two charts of four whole curves")


def test_graphs_shows_the_layers_with_shapes(page):
    page.open("graphs", "words", "embedding", "GRU", "dense", "512\u00d74\u00d750", "512\u00d732")


@pytest.mark.parametrize("tab", ["histograms", "distributions"])
def test_weights_are_named_by_layer_and_shown_of_every_run(page, trainings, tab):
    page.open(tab, *LAYERS, *(training.folder.name for training in trainings))
    if tab == "histograms":
        count = (
            "return findAll(document.body, 'vz-histogram-timeseries').slice(0, 4).map(chart =>"
            "chart.shadowRoot.querySelectorAll('.histogram').length)"
        )
        page.wait(lambda: page.run(count) == [3, 2, 3, 2], "not a histogram for each run")


def test_text_shows_the_quatrains_of_every_run_as_verse(page, trainings):
    expected = []
    for training in trainings:
        runs = re.split(r"\nRun \d+\n", training.printed)[1:]
        verses = [" ".join(run.split("\n\n")[1].split()) for run in runs]
        steps = [f"step {end} {verse}" for end, verse in zip(training.ends(), verses, strict=True)]
        heading = f"{training.folder.name} tag: quatrain 1"
        expected.append(" ".join([heading, *reversed(steps)]))
    page.open("text", *expected)


def test_projector_lists_the_trainings_and_finds_a_words_neighbours(page, trainings):
    names = " ".join(training.folder.name for training in trainings)
    page.open("projector", "Points: 5392", "Dimension: 50", f"2 runs found {names} 1 tensor found")
    page.run(
        "const box = findAll(document.body, '#search-box')[0].shadowRoot;"
        "const input = box.querySelector('paper-input');"
        "input.value = 'king'; input.dispatchEvent(new Event('input'));"
    )
    page.wait(lambda: page.shows("(click to apply): king kingdom"), "king is not found")
    page.run(
        "findAll(document.body, 'vz-projector-inspector-panel')[0].shadowRoot"
        ".querySelector('.matches-list .label').click()"
    )
    known = {*quatrains.index_corpus(quatrains.read_corpus(CORPUS)).words}
    heading = "Nearest points in the original space:"
    page.wait(
        lambda: len(known & set(page.shows().split(heading)[1].split()[:40])) > 10,
        "king has no neighbours",
    )
    page.picture("projector")


def test_hparams_shows_what_changes_and_what_came_of_it(page, trainings):
    rows = []
    for training in trainings:
        values = [32, 0.003, 0.5, 0.02 if training.recipe == "2017" else 0]
        for name in TAGS:
            values.append([*read_curve(training.folder, f"best/val_{name}").values()][-1])
        for name in ("loss", "acc"):  # No more than five are shown without a tick.
            values.append([*read_curve(training.folder / "validation", name).values()][-1])
        shown = (f"{value:#.5g}" for value in values)
        rows.append(" ".join([training.folder.name, training.recipe, *shown]))
    page.driver.set_window_size(2500, 700)
    page.open(
        "hparams",
        "Trial ID Show Metrics recipe gru_dim learning_rate dropout regularization "
        "best val_loss best val_acc best val_cross_entropy val_loss val_acc "
        f"{' '.join(rows)} ",
    )
