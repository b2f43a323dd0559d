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
from typing import Any, NamedTuple

import numpy as np
import pytest
from PIL import Image
from selenium import webdriver
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData
from tensorboard.program import TensorBoard

import quatrains
from conftest import QUICK, ROOT, SMALL, read_curve, run

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
DRIVER = shutil.which("chromedriver")
WEIGHTS = "Embedding/embeddings Dense/kernel Dense/bias".split()
WEIGHTS += [f"GRU/gru_cell/{part}" for part in ("kernel", "recurrent_kernel", "bias")]
PROMPT = "1999. The king"


class Experiment(NamedTuple):
    """An experiment's folder, what it printed, its name and epochs, two per run."""

    folder: Path
    printed: str
    name: str
    epochs: list

    def run_ends(self):
        return self.epochs[1::2]

    def texts(self):  # What each run generated, as it was printed.
        pattern = r"\n(Run \d+)\n(?:.+\n)+\n+((?:.*\n)+?)\nLongest quote"
        return ["\n\n".join(parts).rstrip() for parts in re.findall(pattern, self.printed)]

    def load(self):
        return quatrains.load_checkpoint(self.folder / "checkpoint.keras", {})


def train(log_dir, **settings):
    """Train in this process; return the experiment's folder and what was printed."""
    with contextlib.redirect_stdout(io.StringIO()) as out:
        assert run(log_dir=log_dir, best_of=2, **settings) == 0
    return max(log_dir.iterdir()), out.getvalue()


@pytest.fixture(scope="module")
def experiments(tmp_path_factory):
    """Two experiments in one folder: two runs and, resumed, a third; two runs of recipe verse."""
    folder = tmp_path_factory.mktemp("watched")
    log_dir, corpus = folder / "logs", folder / "corpus.txt"
    texts = [text for _, text in quatrains.read_corpus(ROOT / "data" / "quatrains.txt")]
    # The second one writes lines that Markdown would take for items of a numbered list.
    corpus.write_text("\n\n".join([PROMPT, *texts[:200]]), encoding="utf-8")
    settings = SMALL | {"embedding_dim": 50, "gru_dim": 32, "batch_size": 512, "corpus": corpus}
    first, begun = train(log_dir, **settings)
    same, resumed = train(log_dir, resume=True, runs=3, quatrains_per_run=3)
    assert same == first
    second, printed = train(log_dir, **settings, recipe="verse", name="lines", prompt=PROMPT)
    return [
        Experiment(first, begun + resumed, "2017", [1, 2, 3, 4, 5, 6]),
        Experiment(second, printed, "lines", [1, 2, 3, 4]),
    ]


@pytest.fixture(params=["resumed", "whole"])
def experiment(request, experiments):
    return experiments[request.param == "whole"]


def test_every_experiment_has_one_folder_with_all_words_for_the_projector(experiment):
    assert re.fullmatch(rf"\d{{6}}-\d{{6}}-{experiment.name}", experiment.folder.name)
    files = {path.name for path in experiment.folder.iterdir() if "events" not in path.name}
    shown = {"train", "validation", "embedding0", "words.tsv", "projector_config.pbtxt"}
    assert files == {"checkpoint.keras", "lock", *shown}
    lm = experiment.load()
    words = (experiment.folder / "words.tsv").read_text(encoding="utf-8").splitlines()
    assert words == lm.corpus.vocabulary
    data = (experiment.folder / "embedding0").read_bytes()
    assert data[0] == 0xFF
    vectors = np.frombuffer(data, np.float32).reshape(-1, 50)
    np.testing.assert_allclose(vectors, lm.model.layers[0].get_weights()[0], rtol=1e-4)


def test_curves_are_unbroken_and_equal_the_printed_metrics(experiment):
    for name in ("acc", "loss", "val_acc", "val_loss"):
        half = "validation" if name.startswith("val_") else "train"
        curve = read_curve(experiment.folder / half, name.removeprefix("val_"))
        printed = map(float, re.findall(rf" - {name}: ([\d.]+)", experiment.printed))
        expected = dict(zip(experiment.epochs, printed, strict=True))
        assert curve == pytest.approx(expected, abs=5.1e-5)
    rates = read_curve(experiment.folder / "train", "learning_rate")
    assert rates == pytest.approx(dict.fromkeys(experiment.epochs, 0.003))


def test_quotes_and_scores_of_every_run_are_logged(experiment):
    quotes, scores = (read_curve(experiment.folder, tag) for tag in ("quote", "slor"))
    assert [*quotes] == [*scores] == experiment.run_ends()
    lm = experiment.load()
    seed, prompt = [lm.settings.seed, lm.completed_runs - 1], PROMPT * (experiment.name == "lines")
    generated = lm.generate(3, seed, best_of=2, prompt=prompt)
    assert experiment.texts()[-1].endswith("\n\n".join(map(str, generated)))
    assert quatrains.report_quotes(generated) in experiment.printed
    last = experiment.run_ends()[-1]
    assert quotes[last] == max(len(quatrain.quote) for quatrain in generated)
    mean = np.mean([quatrain.slor for quatrain in generated])
    assert scores[last] == pytest.approx(mean, rel=1e-4)


def read_events(folder):
    """Read an experiment's events, and its row in HParams."""
    events = EventAccumulator(str(folder), size_guidance={"tensors": 0}).Reload()
    row = events.PluginTagToContent("hparams")["_hparams_/session_start_info"]
    return events, HParamsPluginData.FromString(row).session_start_info


def test_events_hold_every_weight_and_setting(experiment):
    events, row = read_events(experiment.folder)
    histograms = [*events.PluginTagToContent("histograms")]
    assert len(histograms) == len(WEIGHTS)
    for name in WEIGHTS:
        (tag,) = [tag for tag in histograms if f"/{tag}".endswith(f"/{name}")]
        assert [event.step for event in events.Tensors(tag)] == experiment.run_ends()
    assert {*row.hparams} == {"Experiment", "Layers", *quatrains.Settings.__annotations__}


def test_the_graph_has_each_layer_at_the_top(experiment):
    nodes = read_events(experiment.folder)[0].Graph().node
    top = {re.sub(r"_\d+$", "", node.name.split("/")[0]) for node in nodes}
    assert top - {"NoOp", "Identity"} == {"words", "Embedding", "GRU", "Dense"}


def test_experiments_whose_names_end_alike_are_two_rows(verses):
    for name in ("morning/try", "evening/try"):
        assert run(**QUICK | {"runs": 1, "name": name}) == 0
    rows = [read_events(path)[1].group_name for path in sorted(Path("logs").glob("*/try"))]
    assert len({*rows}) == 2


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
CURVES = urllib.parse.quote("^(acc|loss)$")  # The scalars to show.


class Page(NamedTuple):
    """A browser and the address of its TensorBoard."""

    driver: Any
    address: str

    def open(self, tab, *expected, query=""):
        """Open a tab, and wait until it shows all expected texts."""
        self.driver.get("about:blank")
        self.driver.get(f"{self.address}{query}#{tab}")
        self.wait(lambda: self.shows(*expected), f"{tab} does not show {expected}")

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
                if condition():
                    return
            time.sleep(0.5)
        raise AssertionError(complaint)

    def find_neighbors(self, word, known):
        """Look up a word in the projector; wait until ten neighbors of it are listed."""
        self.run(
            "const box = findAll('#search-box')[0].shadowRoot.querySelector('paper-input');"
            f"box.value = '{word}'; box.dispatchEvent(new Event('input'));"
        )
        self.wait(lambda: self.shows(f"(click to apply): {word} "), f"{word} is not found")
        self.run("findAll('.matches-list .label')[0].click()")
        heading = "Nearest points in the original space:"
        self.wait(
            lambda: len({*known} & {*self.shows().split(heading)[1].split()[:40]}) > 10,
            f"{word} has no neighbors",
        )


@contextlib.contextmanager
def watch(log_dir):
    """Open a browser on a TensorBoard of a log directory."""
    if not (CHROMIUM and DRIVER):
        pytest.skip("no Chromium: `apt-get install chromium chromium-driver`")
    board = TensorBoard()
    board.configure(argv=["", f"--logdir={log_dir}", "--port=0", "--reload_interval=0"])
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    switches = "headless no-sandbox use-angle=swiftshader enable-unsafe-swiftshader"
    for switch in switches.split():
        options.add_argument(f"--{switch}")
    with webdriver.Chrome(options, webdriver.ChromeService(DRIVER)) as driver:
        page = Page(driver, board.launch())
        driver.set_window_size(1280, 800)
        page.wait(lambda: page.fetch("runs"), "no experiments")
        yield page


@pytest.fixture(scope="module")
def page(experiments):
    with watch(experiments[0].folder.parent) as page:
        yield page


def test_curves_are_whole_under_three_entries_per_experiment(page, experiments):
    names = [experiment.folder.name for experiment in experiments]
    entries = [f"{name}{part}" for name in names for part in ("", "/train", "/validation")]
    assert page.fetch("runs") == entries
    page.open(f"scalars&tagFilter={CURVES}", *entries, "tag: acc", "tag: loss")
    listed = f"Run {' '.join(entries)} All Scalars"
    page.open("timeseries", listed, " acc ", " loss ", query=f"?tagFilter={CURVES}")
    page.wait(lambda: page.run("return findAll('line-chart').length") == 2, "not two charts")
    halves = itertools.product(experiments, ("train", "validation"), ("acc", "loss"))
    for experiment, half, tag in halves:
        entry = f"{experiment.folder.name}/{half}"
        points = page.fetch("plugin/scalars/scalars", run=entry, tag=tag)
        assert [step for _, step, _ in points] == experiment.epochs


def test_graphs_shows_the_layers_with_shapes(page, experiments):
    probs = f"512\u00d7{len(experiments[0].load().corpus.vocabulary)}"
    page.open("graphs", "words", "Embedding", "GRU", "Dense", "512\u00d732", probs)


def test_weights_are_named_by_layer_and_shown_for_every_run(page, experiments):
    for tab in ("distributions", "histograms"):
        page.open(tab, *WEIGHTS, *(experiment.folder.name for experiment in experiments))
    count = (
        "return findAll('vz-histogram-timeseries').slice(0, 4).map(chart =>"
        "chart.shadowRoot.querySelectorAll('.histogram').length)"
    )
    page.wait(lambda: page.run(count) == [3, 2, 3, 2], "not a histogram for each run")


def test_text_shows_the_quatrains_of_every_run_as_verse(page, experiments):
    for experiment in experiments:
        runs = [*zip(experiment.run_ends(), experiment.texts(), strict=True)]
        steps = [f"step {end} {' '.join(text.split())}" for end, text in reversed(runs)]
        page.open("text", f"{experiment.folder.name} tag: quatrains {' '.join(steps)}")
    lines = "[...text.querySelectorAll('p')].map(part => part.innerText).join('\\n\\n')"
    shown = page.run(f"return findAll('#markdown').map(text => {lines}).filter(Boolean)")
    assert shown == [text for each in experiments for text in reversed(each.texts())]
    assert "\n\n1999. The king" in shown[-1]


def test_projector_lists_the_experiments_and_finds_neighbors_of_a_word(page, experiments):
    names = " ".join(experiment.folder.name for experiment in experiments)
    vocabulary = experiments[0].load().corpus.vocabulary
    listed = f"2 runs found {names} 1 tensor found"
    page.open("projector", listed, f"Points: {len(vocabulary)}", "Dimension: 50")
    page.find_neighbors("king", vocabulary)


def test_hparams_shows_first_what_differs_and_its_results(page, experiments):
    columns = "Experiment Layers class_weights dense_dropout phrase_len"
    values = [
        "2017 Embedding, GRU, Dense true 0.0000 4.0000",
        "lines Embedding, GRU, Dropout, Dense false 0.50000 16.000",
    ]
    results = [("train", "acc"), ("validation", "acc"), ("validation", "cross_entropy")]
    rows = []
    for experiment, row in zip(experiments, values, strict=True):
        curves = [read_curve(experiment.folder / half, tag) for half, tag in results]
        last = " ".join(f"{curve[experiment.run_ends()[-1]]:#.5g}" for curve in curves)
        rows.append(f"{experiment.folder.name} {row} {last}")
    page.driver.set_window_size(2500, 700)
    heads = " ".join(map(".".join, results))
    page.open("hparams", f"Trial ID Show Metrics {columns} {heads} ", *rows)


def test_pictures_are_taken_of_every_tab(request):
    pictures = request.config.getoption("--pictures")
    if not pictures:
        pytest.skip("--pictures FOLDER takes them, of small experiments or of --trainings LOGS")
    logs = request.config.getoption("--trainings")
    log_dir = Path(logs) if logs else request.getfixturevalue("experiments")[0].folder.parent
    path = min(log_dir.glob("*/words.tsv"))
    name, words = path.parent.name, path.read_text(encoding="utf-8").splitlines()
    expected = {"graphs": "Embedding", "projector": f"Points: {len(words)} "}
    query = f"?tagFilter={CURVES.replace('loss', 'cross_entropy')}"  # For Time Series.
    tabs = "timeseries scalars graphs histograms distributions text projector hparams"
    with watch(log_dir) as page:
        for tab in tabs.split():
            page.driver.set_window_size(*((2500, 700) if tab == "hparams" else (1280, 800)))
            page.open(tab, expected.get(tab, name), query=query)
            if tab == "projector":
                page.find_neighbors("king", words)
            time.sleep(3)  # Some parts are drawn after the page has its text.
            shot = Image.open(io.BytesIO(page.driver.get_screenshot_as_png())).convert("RGB")
            shot.quantize(128).save(ROOT / pictures / f"{tab}.png", optimize=True)
