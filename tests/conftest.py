"""What the tests share: the script as a module, and small texts and vectors made on the spot."""

import random
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

WORDS = (
    "king eagle moon river tower blood plague lion fire bridge gold north city sword ship temple "
    "serpent mountain queen famine sea night sun harvest"
).split()
# Settings that make a training take a second.
SMALL = {
    "runs": 2,
    "epochs_per_run": 2,
    "quatrains_per_run": 3,
    "embedding_dim": 8,
    "gru_dim": 8,
    "batch_size": 64,
    "glove": "none",
    "seed": 7,
}


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
        words += [option] if value is True else [option, str(value)]
    return words


def run_script(folder, **settings):
    """Run the script as a command, to its end, in a folder."""
    return subprocess.run(
        [sys.executable, ROOT / "quatrains.py", *arguments(**settings)],
        cwd=folder,
        capture_output=True,
        text=True,
    )


def pytest_addoption(parser):
    parser.addoption("--pictures", help="folder for pictures of TensorBoard's tabs")
    parser.addoption("--long", action="store_true", help="include the tests that take minutes")


def pytest_configure(config):
    config.addinivalue_line("markers", "long: takes over a minute; only with --long, as in CI")


def pytest_collection_modifyitems(config, items):
    if not config.getoption("--long"):
        for item in items:
            if item.get_closest_marker("long"):
                item.add_marker(pytest.mark.skip(reason="takes minutes: --long runs it"))


@pytest.fixture
def verses(tmp_path):
    return write_verses(tmp_path / "verses.txt")
