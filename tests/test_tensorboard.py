"""What TensorBoard shows: the event files read back, and every tab in a real browser."""

import contextlib
import dataclasses
import io
import itertools
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
from conftest import ROOT, SMALL, read_curve, run

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
DRIVER = shutil.which("chromedriver")
TRAINING = SMALL | {"embedding_dim": 50, "gru_dim": 32, "batch_size": 512}
LAYERS = [
    *("weights/embedding/0_embeddings", "weights/dense/0_kernel", "weights/dense/1_bias"),
    *(f"weights/GRU/{part}" for part in ("0_kernel", "1_recurrent_kernel", "2_bias")),
]


class Training(NamedTuple):
    """A training's folder, what it printed, its recipe and its runs, each of two epochs."""

    folder: Path
    printed: str
    recipe: str
    runs: int

    def steps(self):
        """The numbers of its epochs."""
        return [*range(1, 2 * self.runs + 1)]

    def ends(self):
        """The last epoch of each run."""
        return self.steps()[1::2]

    def texts(self):
        """What each run wrote, as it was printed."""
        pattern = r"\n(Run \d+)\n(?:.+\n)+(\n(?:.*\n)+?)\nLongest quote"
        return ["\n".join(parts).rstrip() for parts in re.findall(pattern, self.printed)]


def train(logs, **settings):
    """Train in this process; return the training's folder and what was printed."""
    with contextlib.redirect_stdout(io.StringIO()) as out:
        assert run(logs=logs, **settings) == 0
    return max(logs.iterdir()), out.getvalue()


@pytest.fixture(scope="module")
def trainings(tmp_path_factory):
    """Two trainings in one folder: one of two runs and, resumed, a third; one of recipe verse."""
    folder = tmp_path_factory.mktemp("watched")
    logs, corpus = folder / "logs", folder / "corpus.txt"
    texts = [text for _, text in quatrains.read_corpus(ROOT / "data" / "quatrains.txt")]
    corpus.write_text("\n\n".join(texts[:200]), encoding="utf-8")
    settings = TRAINING | {"corpus": corpus}
    first, began = train(logs, **settings)
    same, went_on = train(logs, resume=True, runs=3)
    assert same == first
    second, printed = train(logs, **settings, recipe="verse", name="lines", drafts=2)
    return [Training(first, began + went_on, "2017", 3), Training(second, printed, "verse", 2)]


@pytest.fixture(params=["resumed", "whole"])
def training(request, trainings):
    return trainings[request.param == "whole"]


def test_every_training_has_one_folder_which_its_name_or_recipe_ends(training):
    called = {"2017": "2017", "verse": "lines"}[training.recipe]
    assert re.fullmatch(rf"\d{{6}}-\d{{6}}-{called}", training.folder.name)
    assert {path.name for path in training.folder.iterdir() if "events" not in path.name} == {
        *("train", "validation", "checkpoint.keras", "lock"),
        *("embedding0.bytes", "words.tsv", "projector_config.pbtxt"),
    }


def test_curves_are_unbroken_and_what_was_printed(training):
    curves = [(half, tag) for half in ("train", "validation") for tag in ("acc", "loss")]
    tags = ("acc", "loss", "val_acc", "val_loss")
    figures = " - ".join(f"{tag}: ([\\d.]+)" for tag in tags)
    printed = re.findall(figures, training.printed)
    for (half, tag), column in zip(curves, zip(*printed, strict=True), strict=True):
        curve = read_curve(training.folder / half, tag)
        assert [*curve] == training.steps()
        assert [*curve.values()] == pytest.approx([*map(float, column)], abs=5.1e-5)
    rates = read_curve(training.folder / "train", "learning_rate")
    assert rates == pytest.approx(dict.fromkeys(training.steps(), 0.003))


def load(training):
    return quatrains.load_checkpoint(training.folder / "checkpoint.keras", quatrains.Settings())


def test_the_cross_entropy_is_the_loss_without_penalties(training):
    entropies = read_curve(training.folder / "validation", "cross_entropy")
    losses = read_curve(training.folder / "validation", "loss")
    assert [*entropies] == training.steps()
    prophet = load(training)
    phrases, targets, _ = quatrains.make_samples(prophet.corpus, prophet.settings)[1]
    chances = np.take_along_axis(prophet.predict(phrases).numpy(), targets, 1)
    assert entropies[training.ends()[-1]] == pytest.approx(-np.log(chances).mean(), abs=1e-4)
    gaps = [losses[step] - entropies[step] for step in training.steps()]
    assert all(gap > 1e-3 if training.recipe == "2017" else gap == 0 for gap in gaps)


def test_quotes_and_scores_are_logged_of_every_run(training):
    lines = re.findall(r"Longest quote: (\d+) .*?(?:quoted (\d+) .*)?\n", training.printed)
    quotes = [int(passed_over or written) for written, passed_over in lines]
    assert read_curve(training.folder, "quote") == dict(zip(training.ends(), quotes, strict=True))
    scores = read_curve(training.folder, "slor")
    assert [*scores] == training.ends()


def test_events_hold_every_tab(training):
    import tensorflow as tf
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.plugins.hparams import plugin_data_pb2

    events = EventAccumulator(str(training.folder), size_guidance={"tensors": 0}).Reload()
    for tag in (*LAYERS, "quatrains"):
        assert [event.step for event in events.Tensors(tag)] == training.ends()
        plugin = events.SummaryMetadata(tag).plugin_data.plugin_name
        assert plugin == ("text" if tag == "quatrains" else "histograms")
    written = [tf.make_ndarray(event.tensor_proto) for event in events.Tensors("quatrains")]
    assert [text.item().decode() for text in written] == training.texts()

    nodes = {node.name.split("/")[0] for node in events.Graph().node}
    assert {"words", "embedding", "GRU", "dense"} <= nodes

    start = plugin_data_pb2.HParamsPluginData.FromString(
        events.SummaryMetadata("_hparams_/session_start_info").plugin_data.content
    ).session_start_info
    settings = {field.name for field in dataclasses.fields(quatrains.Settings)}
    assert {*start.hparams} == {"Model", "Name", *settings} - {*quatrains.CHANGEABLE}
    assert start.hparams["recipe"].string_value == training.recipe
    assert start.group_name == training.folder.name


def test_the_projector_has_all_words(training):
    from google.protobuf import text_format
    from tensorboard.plugins.projector import ProjectorConfig

    text = (training.folder / "projector_config.pbtxt").read_text(encoding="utf-8")
    (embedding,) = text_format.Parse(text, ProjectorConfig()).embeddings
    data = (training.folder / embedding.tensor_path).read_bytes()
    metadata = (training.folder / embedding.metadata_path).read_text(encoding="utf-8")
    words = load(training).corpus.words
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

    def __init__(self, driver, address):
        self.driver, self.address = driver, address

    def open(self, tab, *expected, query=""):
        """Open a tab, and wait until it shows all that is expected."""
        self.driver.get("about:blank")
        self.driver.get(f"{self.address}/{query}#{tab}")
        return self.wait(lambda: self.shows(*expected), f"{tab} does not show {expected}")

    def fetch(self, path, **query):
        """Fetch what TensorBoard's pages fetch."""
        address = f"{self.address}/data/{path}?{urllib.parse.urlencode(query)}"
        return json.load(urllib.request.urlopen(address))

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

    def find_neighbours(self, word, known):
        """Look a word up in the projector; wait until ten neighbours of it are listed."""
        self.run(
            "const box = findAll(document.body, '#search-box')[0].shadowRoot;"
            "const input = box.querySelector('paper-input');"
            f"input.value = '{word}'; input.dispatchEvent(new Event('input'));"
        )
        self.wait(lambda: self.shows(f"(click to apply): {word} "), f"{word} is not found")
        self.run(
            "findAll(document.body, 'vz-projector-inspector-panel')[0].shadowRoot"
            ".querySelector('.matches-list .label').click()"
        )
        heading = "Nearest points in the original space:"
        self.wait(
            lambda: len({*known} & {*self.shows().split(heading)[1].split()[:40]}) > 10,
            f"{word} has no neighbours",
        )


@contextlib.contextmanager
def watch(logs):
    """A browser on a TensorBoard over a folder."""
    if not (CHROMIUM and DRIVER):
        pytest.skip("no Chromium: `apt-get install chromium chromium-driver`")
    from selenium import webdriver

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    address = f"http://127.0.0.1:{port}"
    command = [sys.executable, "-m", "tensorboard.main", f"--logdir={logs}", f"--port={port}"]
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
    try:
        shown = Page(driver, address)
        shown.wait(lambda: urllib.request.urlopen(address).status == 200, "no TensorBoard")
        yield shown
    finally:
        driver.quit()
        board.terminate()
        board.wait()


@pytest.fixture(scope="module")
def page(trainings):
    with watch(trainings[0].folder.parent) as shown:
        yield shown


CURVES = urllib.parse.quote("^(acc|loss)$")  # Shown of all that there are.


def entries(trainings):
    """What TensorBoard lists: three entries a training."""
    names = [training.folder.name for training in trainings]
    return [f"{name}{part}" for name in names for part in ("", "/train", "/validation")]


def test_curves_are_whole_under_three_entries_a_training(page, trainings):
    assert page.fetch("runs") == entries(trainings)
    page.open(f"scalars&tagFilter={CURVES}", *entries(trainings), "tag: acc", "tag: loss")
    listed = " ".join(entries(trainings))
    text = page.open("timeseries", f"Run {listed} All Scalars", query=f"?tagFilter={CURVES}")
    assert text.index(" acc ") < text.index(" loss ")
    count = "return document.querySelectorAll('line-chart').length"
    page.wait(lambda: page.run(count) == 2, "not two charts")
    for training in trainings:
        for half, tag in itertools.product(("train", "validation"), ("acc", "loss")):
            run_name = f"{training.folder.name}/{half}"
            points = page.fetch("plugin/scalars/scalars", run=run_name, tag=tag)
            assert [step for _, step, _ in points] == training.steps()


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
        heading = f"{training.folder.name} tag: quatrains"
        runs = zip(training.ends(), training.texts(), strict=True)
        steps = [f"step {end} {' '.join(text.split())}" for end, text in runs]
        expected.append(" ".join([heading, *reversed(steps)]))
    page.open("text", *expected)
    code = "text => [...text.querySelectorAll('p')].map(part => part.innerText).join('\\n\\n')"
    code = f"return findAll(document.body, '#markdown').map({code})"
    shown = [text for text in page.run(code) if text]
    assert shown == [text for training in trainings for text in reversed(training.texts())]


def test_projector_lists_the_trainings_and_finds_a_words_neighbours(page, trainings):
    names = " ".join(training.folder.name for training in trainings)
    words = load(trainings[0]).corpus.words
    found = f"2 runs found {names} 1 tensor found"
    page.open("projector", f"Points: {len(words)}", "Dimension: 50", found)
    page.find_neighbours("king", words)


def test_hparams_shows_first_what_differs_and_what_came_of_it(page, trainings):
    columns = ["Model", "Name", "dense_dropout", "phrase_len", "recipe"]
    values = [["2017", "0.0000", "4.0000", "2017"], ["lines", "0.50000", "16.000", "verse"]]
    results = [("train", "acc"), ("validation", "acc"), ("validation", "cross_entropy")]
    rows = []
    for training, row in zip(trainings, values, strict=True):
        curves = [read_curve(training.folder / half, tag) for half, tag in results]
        last = [f"{curve[training.ends()[-1]]:#.5g}" for curve in curves]
        model = quatrains.describe_model(load(training).model)
        rows.append(" ".join([training.folder.name, model, *row, *last]))
    heads = " ".join([*columns, *map(".".join, results)])
    page.driver.set_window_size(2500, 700)
    page.open("hparams", f"Trial ID Show Metrics {heads} ", *rows)


def test_pictures_are_taken_of_every_tab(request):
    pictures = request.config.getoption("--pictures")
    if not pictures:
        pytest.skip("--pictures FOLDER takes them, of trainings made here or of --trainings LOGS")
    logs = request.config.getoption("--trainings", None)
    logs = Path(logs) if logs else request.getfixturevalue("trainings")[0].folder.parent
    path = min(logs.glob("*/words.tsv"))
    name, words = path.parent.name, path.read_text(encoding="utf-8").splitlines()
    expected = {"graphs": "embedding", "projector": f"Points: {len(words)} "}
    tabs = "timeseries scalars graphs histograms distributions text projector hparams"
    with watch(logs) as page:
        page.wait(lambda: page.fetch("runs"), "no trainings")
        for tab in tabs.split():
            page.driver.set_window_size(*((2500, 700) if tab == "hparams" else (1280, 800)))
            query = (
                f"?tagFilter={CURVES.replace('loss', 'cross_entropy')}"
                if tab == "timeseries"
                else ""
            )
            page.open(tab, expected.get(tab, name), query=query)
            if tab == "projector":
                page.find_neighbours("king", words)
            time.sleep(3)  # For what is drawn after the page has its text.
            shot = Image.open(io.BytesIO(page.driver.get_screenshot_as_png()))
            file = ROOT / pictures / f"{tab}.png"
            shot.convert("RGB").quantize(128).save(file, optimize=True)
