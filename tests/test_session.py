"""The script in a real Jupyter kernel: Run All, edited and run again, interrupted, played with."""

import os
import re
import subprocess
import sys
import sysconfig
import zipfile
from contextlib import closing
from pathlib import Path

import pytest
from jupyter_client import KernelManager

from conftest import QUICK, ROOT, edited, read_files, write_verses


class Session:
    """A kernel whose working directory is a folder with a copy of the project."""

    def __init__(self, folder, python=sys.executable, **environment):
        write_verses(folder / "verses.txt")
        self.folder = folder
        self.manager = KernelManager()
        self.manager.kernel_spec.argv[0] = str(python)
        environment = os.environ | environment
        environment.pop("PYTEST_CURRENT_TEST")  # Or a kernel hides what its children print.
        self.manager.start_kernel(cwd=str(folder), env=environment)
        self.client = self.manager.client()
        self.client.start_channels()
        self.client.wait_for_ready(timeout=60)

    def run(self, code, error="", interrupt_at=None):
        """Run a cell that fails with one error or with none; return its output and last value."""
        out, errors, value = "", [], None

        def hear(message):
            nonlocal out, value, interrupt_at
            kind, content = message["msg_type"], message["content"]
            if kind == "stream":
                out += content["text"]
                if interrupt_at and interrupt_at in out:
                    self.manager.interrupt_kernel()
                    interrupt_at = None
            elif kind == "error":
                errors.append("\n".join(content["traceback"]))
            elif kind == "execute_result":
                value = content["data"]["text/plain"]

        self.client.execute_interactive(code, timeout=120, output_hook=hear)
        assert re.fullmatch(error, "\n\n".join(errors)), errors
        assert "WARNING" not in out, out
        return out, value

    def close(self):
        self.client.stop_channels()
        self.manager.shutdown_kernel(now=True)


@pytest.fixture(scope="module")
def session(tmp_path_factory):
    with closing(Session(tmp_path_factory.mktemp("session"))) as session:
        yield session


NO_GPU = re.escape(
    "quatrains: use_gpu = True, but TensorFlow sees no GPU: install its driver and "
    '"tensorflow[and-cuda]", or set use_gpu = False'
)


def cell(**settings):
    """The script as a cell that trains one run, without XLA, whose compiling takes seconds."""
    text = edited(**QUICK | {"runs": 1} | settings)
    return text.replace("jit_compile=True", "jit_compile=False")


def trainings(folder):
    """The folders of the trainings in `logs`, and the bytes of each file in them."""
    return {training: read_files(training) for training in sorted((folder / "logs").iterdir())}


def test_run_all_edit_run_again_interrupt_and_play(session):
    """One story in one kernel, as a user lives it."""
    # Run All, as one cell: the kernel's own arguments are not the script's.
    _, told = session.run("import sys; '-f' in sys.argv, '__file__' in globals()")
    assert told == "(True, False)"
    out, _ = session.run(edited(**QUICK | {"runs": 1, "batch_size": 64}))
    assert re.findall(r"^Run (\d)$", out, re.MULTILINE) == ["0"]
    assert re.findall(r"^Epoch (\d/\d)$", out, re.MULTILINE) == ["1/2", "2/2"]
    assert re.search(r"m(\d+)/\1\x1b.*━.* - val_acc: ", out)
    before = trainings(session.folder)
    ((first, content),) = before.items()
    assert re.fullmatch(r"\d{6}-\d{6}-2017", first.name)

    # A mistake is one line, and no traceback.
    session.run(cell(dropout=2.0), r"quatrains: dropout = 2\.0 will not do: .* from 0 to 0\.99")
    session.run(cell(use_gpu=True), NO_GPU)
    session.run(cell(opening="zebra"), "quatrains: opening has 'zebra', which the corpus lacks .*")
    assert session.run("6 * 7") == ("", "42")
    assert trainings(session.folder) == before

    # Edited and run again, and interrupted: the earlier training is left alone.
    out, _ = session.run(cell(gru_dim=9, seed=None, runs=10_000), interrupt_at="Run 3\n")
    assert "holds the training up to its last whole run" in out
    after = trainings(session.folder)
    assert (len(after), after[first]) == (2, content)
    _, told = session.run("prophet.folder.name, prophet.runs >= 3, len(prophet.write(2))")
    assert told == str((max(after).name, True, 2))

    # Play.
    write = "print(*prophet.write(3, temperature=0.5, opening='king', seed=1), sep='\\n\\n')"
    out, _ = session.run(write)
    assert [verse.startswith("King") for verse in out.split("\n\n")] == [True] * 3
    assert session.run(write) == (out, None)
    wrong = r"quatrains: opening has 'montain', .* \(near it: mountain.*\)"
    session.run("prophet.write(1, opening='king montain')", wrong)


def test_what_is_interrupted_before_its_first_checkpoint_leaves_no_folder(session):
    before = trainings(session.folder)
    out, _ = session.run(cell(epochs_per_run=10_000), interrupt_at="Epoch 2/")
    assert out.endswith("\nNothing is kept, for the first run had not ended.\n")
    assert trainings(session.folder) == before
    assert session.run("len(prophet.write(2))") == ("", "2")


def test_recipes_are_edited_and_trained_in_cells(session):
    session.run(cell(recipe="verse"))
    told = "prophet.settings.phrase_len, prophet.settings.dense_dropout, prophet.runs"
    assert session.run(told) == ("", "(16, 0.5, 1)")
    # In a later cell, with the settings of the file and those given.
    session.run("mine = train(Settings(recipe='verse', phrase_len=2, runs=1))")
    told = "mine.settings.phrase_len, len(mine.write(2)), len(mine.history.history['val_loss'])"
    assert session.run(told) == ("", "(2, 2, 2)")
    wrong = "quatrains: dropuot is no setting: take it out, --help lists all"
    session.run("train(Settings(dropuot=0.1))", wrong)


def test_an_edited_model_acts_and_is_resumed(session):
    edit = cell().replace("use_cudnn=False,", "").replace("keras.layers.GRU(", "keras.layers.LSTM(")
    # Resumed with the model of the checkpoint, whatever the cell says by then.
    for code, number in ((edit, "0"), (cell(runs=2, resume=True), "1")):
        out, _ = session.run(code)
        assert re.findall(r"^Run (\d)$", out, re.MULTILINE) == [number]
        _, layers = session.run("[type(layer).__name__ for layer in prophet.model.layers]")
        assert layers == "['Embedding', 'LSTM', 'Dense']"


def test_percent_run_takes_arguments(session):
    (session.folder / "edited.py").write_text(cell(), encoding="utf-8")
    out, _ = session.run("%run edited.py --gru-dim 7")
    assert "\nRun 0\n" in out
    assert session.run("prophet.settings.gru_dim, len(prophet.write(2))") == ("", "(7, 2)")
    # What %run leaves behind does not change how a cell runs afterwards.
    wrong = "quatrains: gru_dim = 0 will not do: it must be int from 1 to 4294967295"
    session.run(cell(gru_dim=0), wrong)
    session.run("%run edited.py --gru-dim 0", wrong)


# ==== Packages ====

REQUIREMENTS = (ROOT / "requirements.txt").read_text(encoding="utf-8")
MISSING = "tensorflow, keras, tensorboard not installed"
TYPE_PIP = f"quatrains: {MISSING}: type `/.*/python -m pip install -r requirements.txt` in .*"
MOCK = "from unittest.mock import MagicMock\ndef __getattr__(name): return MagicMock()\n"
# None of them can train; that no GPU is seen is the first thing that TensorFlow is asked.
STUBS = {
    "tensorflow": f"{MOCK}config = MagicMock()\nconfig.list_physical_devices.return_value = []\n",
    "keras": f"{MOCK}callbacks = MagicMock(Callback=object)\n",
    "tensorboard": (
        f"{MOCK}import sys\n"
        "sys.modules |= {f'tensorboard.plugins{end}': MagicMock() for end in ('', '.hparams')}\n"
    ),
}


@pytest.fixture(scope="module")
def bare(tmp_path_factory):
    """A folder with a Python that lacks TensorFlow and its like, and an index of stubs of them."""
    folder = tmp_path_factory.mktemp("bare")
    subprocess.run([sys.executable, "-m", "venv", folder / "venv"], check=True)
    lent = folder / "lent"
    lent.mkdir()
    for path in Path(sysconfig.get_path("purelib")).iterdir():
        if not re.match(r"tensor|keras|pip\b|_?distutils|setuptools|.*\.pth$", path.name):
            (lent / path.name).symlink_to(path)
    (site,) = (folder / "venv").glob("lib/python*/site-packages")
    (site / "lent.pth").write_text(f"{lent}\n")
    versions = dict(re.findall(r"^(\w+)\D+([\d.]+)", REQUIREMENTS, re.MULTILINE))
    for name, code in STUBS.items():
        release = f"{name}-{versions[name]}"
        about = f"{release}.dist-info"
        # The smallest wheel that pip installs.
        with zipfile.ZipFile(folder / f"{release}-py3-none-any.whl", "w") as wheel:
            wheel.writestr(f"{name}.py", code)
            wheel.writestr(f"{about}/METADATA", f"Name: {name}\nVersion: {versions[name]}\n")
            wheel.writestr(f"{about}/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
            wheel.writestr(f"{about}/RECORD", "")
    return folder


def test_outside_a_session_nothing_is_installed(bare):
    python = bare / "venv" / "bin" / "python"
    command = [python, ROOT / "quatrains.py", "--corpus", "verses.txt"]
    done = subprocess.run(command, cwd=bare, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    assert re.fullmatch(f"{TYPE_PIP}\n", done.stderr)
    assert subprocess.run([*command, "--help"], capture_output=True).returncode == 0


def test_a_session_installs_what_it_lacks_or_says_that_it_cannot(bare):
    python = bare / "venv" / "bin" / "python"
    script = cell(use_gpu=True)
    with closing(Session(bare, python, PIP_NO_INDEX="1", PIP_FIND_LINKS=str(bare))) as session:
        out, _ = session.run(script, TYPE_PIP)
        assert "Could not open requirements file" in out
        (bare / "requirements.txt").write_text(REQUIREMENTS)
        out, _ = session.run(script, NO_GPU)
        assert out.startswith(f"{MISSING}: installing requirements.txt, which takes minutes.\n")
        assert str(bare) in session.run("tf.__file__")[1]
        assert session.run(script, NO_GPU) == ("", None)


def test_inline_metadata_equals_the_requirements():
    block = re.search(r"^# /// script\n((?:#.*\n)+?)# ///\n", edited())[1]
    assert re.findall(r'^#     "(.*)",$', block, re.MULTILINE) == REQUIREMENTS.split()
    assert '# requires-python = ">=3.10"\n' in block
