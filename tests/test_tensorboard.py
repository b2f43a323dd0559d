"""What TensorBoard shows: the event files read back, and every tab in a real browser."""

import contextlib
import io
import itertools
import json
import re
import shutil
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
WEIGHTS = "embedding/embeddings dense/kernel dense/bias".split()
WEIGHTS += [f"GRU/gru_cell/{part}" for part in ("kernel", "recurrent_kernel", "bias")]


class Training(NamedTuple):
    """A training's folder, what it printed, its name and its runs, each of two epochs."""

    folder: Path
    printed: str
    name: str
    runs: int

    def steps(self):  # Its epochs.
        return [*range(1, 2 * self.runs + 1)]

    def ends(self):  # The last epochs of its runs.
        return self.steps()[1::2]

    def texts(self):  # What each run wrote, as it was printed.
        pattern = r"\n(Run \d+)\n(?:.+\n)+(\n(?:.*\n)+?)\nLongest quote"
        return ["\n".join(parts).rstrip() for parts in re.findall(pattern, self.printed)]

    def load(self):
        return quatrains.load_checkpoint(self.folder / "checkpoint.keras", quatrains.Settings())


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
    settings = SMALL | {"embedding_dim": 50, "gru_dim": 32, "batch_size": 512, "corpus": corpus}
    first, began = train(logs, **settings, drafts=2)
    same, went_on = train(logs, resume=True, runs=3, quatrains_per_run=3, drafts=2)
    assert same == first
    second, printed = train(logs, **settings, recipe="verse", name="lines", drafts=2)
    return [Training(first, began + went_on, "2017", 3), Training(second, printed, "lines", 2)]


@pytest.fixture(params=["resumed", "whole"])
def training(request, trainings):
    return trainings[request.param == "whole"]


def test_every_training_has_one_folder_which_its_name_or_recipe_ends(training):
    assert re.fullmatch(rf"\d{{6}}-\d{{6}}-{training.name}", training.folder.name)
    files = {path.name for path in training.folder.iterdir() if "events" not in path.name}
    shown = {"train", "validation", "embedding0", "words.tsv", "projector_config.pbtxt"}
    assert files == {"checkpoint.keras", "lock", *shown}


def test_curves_are_unbroken_and_what_was_printed(training):
    for name in ("acc", "loss", "val_acc", "val_loss"):
        half = "validation" if name.startswith("val_") else "train"
        curve = read_curve(training.folder / half, name.removeprefix("val_"))
        assert [*curve] == training.steps()
        printed = map(float, re.findall(rf" - {name}: ([\d.]+)", training.printed))
        assert [*curve.values()] == pytest.approx([*printed], abs=5.1e-5)
    rates = read_curve(training.folder / "train", "learning_rate")
    assert rates == pytest.approx(dict.fromkeys(training.steps(), 0.003))


def test_the_cross_entropy_is_the_loss_without_penalties(training):
    folder = training.folder / "validation"
    entropies, losses = (read_curve(folder, tag) for tag in ("cross_entropy", "loss"))
    assert [*entropies] == training.steps()
    gaps = [losses[step] - entropies[step] for step in entropies]
    assert all(gap > 1e-3 if training.name == "2017" else gap == 0 for gap in gaps)
    prophet = training.load()
    phrases, targets, _ = quatrains.make_samples(prophet.corpus, prophet.settings)[1]
    chances = np.take_along_axis(prophet.predict(phrases).numpy(), targets, 1)
    assert entropies[training.ends()[-1]] == pytest.approx(-np.log(chances).mean(), abs=1e-4)


def test_quotes_and_scores_are_logged_of_every_run(training):
    quotes, scores = (read_curve(training.folder, tag) for tag in ("quote", "slor"))
    assert [*quotes] == [*scores] == training.ends()
    prophet = training.load()
    written = prophet.write(3, seed=[prophet.seed, prophet.runs, 1], drafts=2)
    assert training.texts()[-1].endswith("\n\n".join(map(str, written)))
    assert quatrains.report_quotes(written) in training.printed
    assert quotes[training.ends()[-1]] == prophet.quoted  # In any draft.
    mean = np.mean([quatrain.slor for quatrain in written])
    assert scores[training.ends()[-1]] == pytest.approx(mean, rel=1e-4)


def test_events_hold_every_weight_and_setting(training):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.plugins.hparams import plugin_data_pb2

    events = EventAccumulator(str(training.folder), size_guidance={"tensors": 0}).Reload()
    histograms = [*events.PluginTagToContent("histograms")]
    assert len(histograms) == len(WEIGHTS)
    for name in WEIGHTS:
        (tag,) = [tag for tag in histograms if f"/{tag}".endswith(f"/{name}")]
        assert [event.step for event in events.Tensors(tag)] == training.ends()
    row = plugin_data_pb2.HParamsPluginData.FromString(
        events.PluginTagToContent("hparams")["_hparams_/session_start_info"]
    ).session_start_info.hparams
    settings = {"Name", *quatrains.Settings.__annotations__}
    assert {*row} == settings - {*quatrains.CHANGEABLE}


def test_the_projector_has_all_words(training):
    prophet = training.load()
    words = (training.folder / "words.tsv").read_text(encoding="utf-8").splitlines()
    assert words == prophet.corpus.words
    data = (training.folder / "embedding0").read_bytes()
    assert data[0] == 0xFF
    shown = np.frombuffer(data, np.float32).reshape(-1, 50)
    np.testing.assert_allclose(shown, prophet.model.layers[0].get_weights()[0], rtol=1e-4)


# ==== In the browser, through shadow roots and frames ====

HELPERS = """
function findAll(selector, root = document) {
  const inner = [...root.querySelectorAll('*')].flatMap(node => {
    const root = node.shadowRoot || node.contentDocument;
    return root ? findAll(selector, root) : [];
  });
  return [...root.querySelectorAll(selector), ...inner];
}
function read(node) {
  if (node.nodeType === 3) return node.textContent + ' ';
  if (/STYLE|SCRIPT/.test(node.nodeName)) return '';
  const inner = [node.shadowRoot, node.contentDocument?.body, ...node.childNodes];
  return inner.filter(Boolean).map(read).join('');
}
"""
CURVES = urllib.parse.quote("^(acc|loss)$")  # Shown of all that there are.


class Page:
    """A browser on a TensorBoard."""

    def __init__(self, driver, address):
        self.driver, self.address = driver, address

    def open(self, tab, *expected, query=""):
        """Open a tab, and wait until it shows all that is expected."""
        self.driver.get("about:blank")
        self.driver.get(f"{self.address}{query}#{tab}")
        return self.wait(lambda: self.shows(*expected), f"{tab} does not show {expected}")

    def fetch(self, path, **query):
        address = f"{self.address}data/{path}?{urllib.parse.urlencode(query)}"
        return json.load(urllib.request.urlopen(address))

    def run(self, code):
        return self.driver.execute_script(HELPERS + code)

    def shows(self, *expected):
        text = self.run("return read(document.body).replace(/\\s+/g, ' ')")
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
            "const box = findAll('#search-box')[0].shadowRoot.querySelector('paper-input');"
            f"box.value = '{word}'; box.dispatchEvent(new Event('input'));"
        )
        self.wait(lambda: self.shows(f"(click to apply): {word} "), f"{word} is not found")
        self.run("findAll('.matches-list .label')[0].click()")
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
    from tensorboard.program import TensorBoard

    board = TensorBoard()
    board.configure(argv=["", f"--logdir={logs}", "--port=0", "--reload_interval=0"])
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    switches = "headless no-sandbox use-angle=swiftshader enable-unsafe-swiftshader"
    for switch in f"{switches} window-size=1280,800".split():
        options.add_argument(f"--{switch}")
    with webdriver.Chrome(options, webdriver.ChromeService(DRIVER)) as driver:
        page = Page(driver, board.launch())
        page.wait(lambda: page.fetch("runs"), "no trainings")
        yield page


@pytest.fixture(scope="module")
def page(trainings):
    with watch(trainings[0].folder.parent) as page:
        yield page


def test_curves_are_whole_under_three_entries_a_training(page, trainings):
    names = [training.folder.name for training in trainings]
    entries = [f"{name}{part}" for name in names for part in ("", "/train", "/validation")]
    assert page.fetch("runs") == entries
    page.open(f"scalars&tagFilter={CURVES}", *entries, "tag: acc", "tag: loss")
    listed = f"Run {' '.join(entries)} All Scalars"
    page.open("timeseries", listed, " acc ", " loss ", query=f"?tagFilter={CURVES}")
    page.wait(lambda: page.run("return findAll('line-chart').length") == 2, "not two charts")
    halves = itertools.product(trainings, ("train", "validation"), ("acc", "loss"))
    for training, half, tag in halves:
        run_name = f"{training.folder.name}/{half}"
        points = page.fetch("plugin/scalars/scalars", run=run_name, tag=tag)
        assert [step for _, step, _ in points] == training.steps()


def test_graphs_shows_the_layers_with_shapes(page):
    page.open("graphs", "words", "embedding", "GRU", "dense", "512\u00d74\u00d750", "512\u00d732")


def test_weights_are_named_by_layer_and_shown_of_every_run(page, trainings):
    for tab in ("distributions", "histograms"):
        page.open(tab, *WEIGHTS, *(training.folder.name for training in trainings))
    count = (
        "return findAll('vz-histogram-timeseries').slice(0, 4).map(chart =>"
        "chart.shadowRoot.querySelectorAll('.histogram').length)"
    )
    page.wait(lambda: page.run(count) == [3, 2, 3, 2], "not a histogram for each run")


def test_text_shows_the_quatrains_of_every_run_as_verse(page, trainings):
    for training in trainings:
        runs = [*zip(training.ends(), training.texts(), strict=True)]
        steps = [f"step {end} {' '.join(text.split())}" for end, text in reversed(runs)]
        page.open("text", f"{training.folder.name} tag: quatrains {' '.join(steps)}")
    lines = "[...text.querySelectorAll('p')].map(part => part.innerText).join('\\n\\n')"
    shown = page.run(f"return findAll('#markdown').map(text => {lines}).filter(Boolean)")
    assert shown == [text for training in trainings for text in reversed(training.texts())]


def test_projector_lists_the_trainings_and_finds_a_words_neighbours(page, trainings):
    names = " ".join(training.folder.name for training in trainings)
    words = trainings[0].load().corpus.words
    listed = f"2 runs found {names} 1 tensor found"
    page.open("projector", listed, f"Points: {len(words)}", "Dimension: 50")
    page.find_neighbours("king", words)


def test_hparams_shows_first_what_differs_and_what_came_of_it(page, trainings):
    columns = "Name dense_dropout phrase_len recipe regularization"
    values = ["2017 0.0000 4.0000 2017 0.020000", "lines 0.50000 16.000 verse 0.0000"]
    results = [("train", "acc"), ("validation", "acc"), ("validation", "cross_entropy")]
    rows = []
    for training, row in zip(trainings, values, strict=True):
        curves = [read_curve(training.folder / half, tag) for half, tag in results]
        last = " ".join(f"{curve[training.ends()[-1]]:#.5g}" for curve in curves)
        rows.append(f"{training.folder.name} {row} {last}")
    page.driver.set_window_size(2500, 700)
    heads = " ".join(map(".".join, results))
    page.open("hparams", f"Trial ID Show Metrics {columns} {heads} ", *rows)


def test_pictures_are_taken_of_every_tab(request):
    pictures = request.config.getoption("--pictures")
    if not pictures:
        pytest.skip("--pictures FOLDER takes them, of trainings made here or of --trainings LOGS")
    logs = request.config.getoption("--trainings")
    logs = Path(logs) if logs else request.getfixturevalue("trainings")[0].folder.parent
    path = min(logs.glob("*/words.tsv"))
    name, words = path.parent.name, path.read_text(encoding="utf-8").splitlines()
    expected = {"graphs": "embedding", "projector": f"Points: {len(words)} "}
    query = f"?tagFilter={CURVES.replace('loss', 'cross_entropy')}"  # For Time Series.
    tabs = "timeseries scalars graphs histograms distributions text projector hparams"
    with watch(logs) as page:
        for tab in tabs.split():
            page.driver.set_window_size(*((2500, 700) if tab == "hparams" else (1280, 800)))
            page.open(tab, expected.get(tab, name), query=query)
            if tab == "projector":
                page.find_neighbours("king", words)
            time.sleep(3)  # For what is drawn after the page has its text.
            shot = Image.open(io.BytesIO(page.driver.get_screenshot_as_png())).convert("RGB")
            shot.quantize(128).save(ROOT / pictures / f"{tab}.png", optimize=True)
