"""What the tests share: the script as a module, and small texts and vectors made on the spot."""

import os
import random
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
# Also where a test imports TensorFlow before the script does.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
sys.path.insert(0, str(ROOT))
# A shell may start background jobs with SIGINT ignored, which new processes would inherit.
signal.signal(signal.SIGINT, signal.default_int_handler)

WORDS = (
    "king eagle moon river tower blood plague lion fire bridge gold north city sword ship temple "
    "serpent mountain queen famine sea night sun harvest"
).split()
# Settings that make training take a second: XLA compiles for longer than that.
SMALL = {
    "use_xla": False,
    "runs": 2,
    "epochs_per_run": 2,
    "quatrains_per_run": 3,
    "embedding_dim": 8,
    "gru_dim": 8,
    "batch_size": 64,
    "glove": "none",
    "seed": 7,
}
# Settings that make it shorter than its imports: one small step per epoch.
QUICK = SMALL | {"corpus": "verses.txt", "phrase_len": 1, "dropout": 0, "batch_size": 4096}


def write_verses(path, quatrains=60, seed=1):
    """Write a corpus of random four-line quatrains in which only Rome and Mars have capitals."""
    draw = random.Random(seed)
    verses = []
    for _ in range(quatrains):
        lines = []
        for _ in range(4):
            line = [draw.choice(WORDS) for _ in range(4)] + [draw.choice(("Rome", "Mars"))]
            draw.shuffle(line)
            text = " ".join(line)
            lines.append(text[0].upper() + text[1:] + draw.choice((",", "", ".")))
        verses.append("\n".join(lines).rstrip(",.") + ".")
    path.write_text("# made by the tests\n\n" + "\n\n".join(verses) + "\n", encoding="utf-8")
    return path


def arguments(**settings):
    """Turn settings into command-line arguments."""
    words = []
    for name, value in settings.items():
        option = "--" + name.replace("_", "-")
        if isinstance(value, bool):
            words.append(option if value else option.replace("--", "--no-", 1))
        else:
            words += [option, str(value)]
    return words


def run(**settings):
    """Run the script in this process as its command does, and return its exit status."""
    import quatrains

    try:
        with quatrains.one_line_errors():
            overrides = quatrains.read_command_line(arguments(**settings))
            generates = quatrains.make_settings(**overrides).generate
            (quatrains.generate_from_checkpoint if generates else quatrains.train)(**overrides)
        return 0
    except SystemExit as end:
        return end.code


def run_script(folder, **settings):
    """Run the script as a command, to its end, in a folder."""
    command = [sys.executable, ROOT / "quatrains.py", *arguments(**settings)]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True)


def read_files(folder):
    """Read every file in a folder and its subfolders, to compare them: {path: bytes}."""
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def read_curve(folder, tag):
    """Read a scalar's {step: value} from the event files of a folder, ordered by step.

    After a resume, a step may occur twice, with the same value.
    """
    import tensorflow as tf
    from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

    points = {}
    for path in sorted(folder.glob("events*")):
        for event in EventFileLoader(str(path)).Load():
            for value in event.summary.value:
                if value.tag == tag:
                    figure = tf.make_ndarray(value.tensor).item()
                    assert points.setdefault(event.step, figure) == figure
    return dict(sorted(points.items()))


def edited(**settings):
    """The script's text with other values in the fields at its top."""
    text = (ROOT / "quatrains.py").read_text(encoding="utf-8")
    for name, value in settings.items():
        field = re.compile(rf"^(    {name}: .* = ).*$", re.MULTILINE)
        text, count = field.subn(lambda found, value=value: found[1] + repr(value), text, count=1)
        assert count == 1
    return text


def pytest_addoption(parser):
    parser.addoption("--pictures", help="folder for pictures of TensorBoard's tabs")
    parser.addoption("--trainings", help="logs whose pictures are taken, instead of small ones")
    parser.addoption("--long", action="store_true", help="include the slowest tests")


def pytest_configure(config):
    config.addinivalue_line("markers", "long: takes many seconds; only with --long, as in CI")


def pytest_runtest_setup(item):
    if item.get_closest_marker("long") and not item.config.getoption("--long"):
        pytest.skip("slow: --long runs it")


@pytest.fixture
def verses(tmp_path, monkeypatch):
    """A corpus in an empty folder, which is the working directory."""
    monkeypatch.chdir(tmp_path)
    return write_verses(tmp_path / "verses.txt")


@pytest.fixture(scope="session")
def first_training(tmp_path_factory):
    """A folder with an experiment of two runs, not to be changed, and its output."""
    folder = tmp_path_factory.mktemp("trained")
    write_verses(folder / "verses.txt")
    return folder, run_script(folder, **SMALL, corpus="verses.txt")
