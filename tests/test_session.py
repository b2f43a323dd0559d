"""The script in a real Jupyter kernel: Run All, edited and run again, interrupted, played with."""

import os
import re
import subprocess
import sys
import sysconfig
import time
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

    def run(self, code, interrupt_at=None, timeout=120):
        """Run a cell; return what it printed, its errors, and its last value."""
        message = self.client.execute(code)
        out, errors, value = "", [], None
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline:
            answer = self.client.get_iopub_msg(timeout=timeout)
            if answer["parent_header"].get("msg_id") != message:
                continue
            kind, content = answer["msg_type"], answer["content"]
            if kind == "stream":
                out += content["text"]
                if interrupt_at and interrupt_at in out:
                    self.manager.interrupt_kernel()
                    interrupt_at = None
            elif kind == "error":
                errors.append("\n".join(content["traceback"]))
            elif kind == "execute_result":
                value = content["data"]["text/plain"]
            elif kind == "status" and content["execution_state"] == "idle":
                assert "WARNING" not in out, out
                return out, errors, value
        raise TimeoutError(out)

    def close(self):
        self.client.stop_channels()
        self.manager.shutdown_kernel(now=True)


@pytest.fixture(scope="module")
def session(tmp_path_factory):
    with closing(Session(tmp_path_factory.mktemp("session"))) as session:
        yield session


NO_GPU = (
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
    _, errors, value = session.run("import sys; '-f' in sys.argv, '__file__' in globals()")
    assert (errors, value) == ([], "(True, False)")
    out, errors, _ = session.run(edited(**QUICK | {"runs": 1, "batch_size": 64}))
    assert errors == []
    assert re.findall(r"^Run (\d)$", out, re.MULTILINE) == ["0"]
    assert re.findall(r"^Epoch (\d/\d)$", out, re.MULTILINE) == ["1/2", "2/2"]
    assert re.search(r"m(\d+)/\1\x1b.*━.* - val_acc: ", out)
    before = trainings(session.folder)
    ((first, content),) = before.items()
    assert re.fullmatch(r"\d{6}-\d{6}-2017", first.name)

    # A mistake is one line, and no traceback.
    assert session.run(cell(dropout=2.0))[1] == [
        "quatrains: dropout = 2.0 will not do: it must be float from 0 to 0.99"
    ]
    assert session.run(cell(use_gpu=True))[1] == [NO_GPU]
    _, (error,), _ = session.run(cell(opening="zebra"))
    assert re.fullmatch("quatrains: opening has 'zebra', which the corpus lacks .*", error)
    assert session.run("6 * 7")[1:] == ([], "42")
    assert trainings(session.folder) == before

    # Edited and run again, and interrupted: the kernel goes on, and the earlier training is left
    # alone.
    other = cell(gru_dim=9, seed=None, runs=10_000)
    out, errors, _ = session.run(other, interrupt_at="Run 3\n")
    assert errors == []
    assert "holds the training up to its last whole run" in out
    after = trainings(session.folder)
    assert (len(after), after[first]) == (2, content)
    written = "(prophet.folder.name, prophet.runs >= 3, len(prophet.write(2)))"
    assert session.run(written)[1:] == ([], str((max(after).name, True, 2)))

    # Play.
    write = "print(*prophet.write(3, temperature=0.5, opening='king', seed=1), sep='\\n\\n')"
    out, errors, _ = session.run(write)
    assert errors == []
    assert [verse.startswith("King") for verse in out.split("\n\n")] == [True] * 3
    assert session.run(write)[0] == out
    _, (error,), _ = session.run("prophet.write(1, opening='king montain')")
    assert re.fullmatch(r"quatrains: opening has 'montain', .* \(near it: mountain.*\)", error)


def test_what_is_interrupted_before_its_first_checkpoint_leaves_no_folder(session):
    before = trainings(session.folder)
    out, errors, _ = session.run(cell(epochs_per_run=10_000), interrupt_at="Epoch 2/")
    assert errors == []
    assert out.endswith("\nNothing is kept, for the first run had not ended.\n")
    assert trainings(session.folder) == before
    assert session.run("len(prophet.write(2))")[1:] == ([], "2")


def test_recipes_are_edited_and_trained_in_cells(session):
    out, errors, _ = session.run(cell(recipe="verse"))
    assert errors == []
    assert "dense_dropout=0.5" in out
    told = "(prophet.settings.recipe, prophet.settings.phrase_len, prophet.runs)"
    assert session.run(told)[1:] == ([], "('verse', 16, 1)")

    # In a later cell, with the settings of the file and those given.
    train = "mine = train(Settings(recipe='verse', phrase_len=2, runs=1))"
    assert session.run(train)[1] == []
    assert session.run("isinstance(mine, Prophet), mine.settings.phrase_len")[2] == "(True, 2)"
    assert session.run("len(mine.write(2)), len(mine.history.history['val_loss'])")[2] == "(2, 2)"
    assert session.run("train(Settings(dropuot=0.1))")[1] == [
        "quatrains: dropuot is no setting: take it out, --help lists all"
    ]


def test_an_edited_model_acts_and_is_resumed(session):
    edit = cell().replace("use_cudnn=False,", "").replace("keras.layers.GRU(", "keras.layers.LSTM(")
    assert session.run(edit)[1] == []
    layers = "[type(layer).__name__ for layer in prophet.model.layers]"
    assert session.run(layers)[2] == "['Embedding', 'LSTM', 'Dense']"
    # Resumed with the model of the checkpoint, whatever the cell says by then.
    out, errors, _ = session.run(cell(runs=2, resume=True))
    assert errors == []
    assert "with the model saved in" in out
    assert re.findall(r"^Run (\d)$", out, re.MULTILINE) == ["1"]
    assert session.run(layers)[2] == "['Embedding', 'LSTM', 'Dense']"


def test_percent_run_takes_arguments(session):
    (session.folder / "edited.py").write_text(cell(), encoding="utf-8")
    out, errors, _ = session.run("%run edited.py --gru-dim 7")
    assert errors == []
    assert "gru_dim=7" in out
    assert "\nRun 0\n" in out
    assert session.run("len(prophet.write(2))")[1:] == ([], "2")
    # What %run leaves behind does not change how a cell runs afterwards.
    refused = "quatrains: gru_dim = 0 will not do: it must be int from 1 to 2147483647"
    assert session.run(cell(gru_dim=0))[1] == [refused]
    assert session.run("%run edited.py --gru-dim 0")[1] == [refused]


# ==== Packages ====

REQUIREMENTS = (ROOT / "requirements.txt").read_text(encoding="utf-8")
MISSING = "tensorflow, keras, tensorboard not installed"
MOCK = "from unittest.mock import MagicMock\ndef __getattr__(name): return MagicMock()\n"
# None of them can train; that no GPU is seen is the first thing that TensorFlow is asked.
STUBS = {
    "tensorflow": f"{MOCK}config = MagicMock()\nconfig.list_physical_devices.return_value = []\n",
    "keras": f"{MOCK}callbacks = MagicMock(Callback=object)\n",
    "tensorboard": (
        f"{MOCK}import sys\n"
        "sys.modules |= {f'tensorboard.plugins{end}': MagicMock() for end in ('', '.hparams')}\n"
    ),
    "nvidia_stub": "",
}


def write_wheel(folder, name, code, version):
    """Write the smallest wheel that pip installs."""
    about = f"{name}-{version}.dist-info"
    metadata = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
    if name == "tensorflow":
        metadata += "Provides-Extra: and-cuda\nRequires-Dist: nvidia_stub; extra == 'and-cuda'\n"
    tags = "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    with zipfile.ZipFile(folder / f"{name}-{version}-py3-none-any.whl", "w") as wheel:
        wheel.writestr(f"{name}.py", code)
        wheel.writestr(f"{about}/METADATA", metadata)
        wheel.writestr(f"{about}/WHEEL", tags)
        wheel.writestr(f"{about}/RECORD", "")


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
    (folder / "index").mkdir()
    versions = dict(re.findall(r"^(\w+)\D+([\d.]+)", REQUIREMENTS, re.MULTILINE))
    for name, code in STUBS.items():
        write_wheel(folder / "index", name, code, versions.get(name, "1.0"))
    (folder / "requirements.txt").write_text(REQUIREMENTS)
    return folder


def test_outside_a_session_nothing_is_installed(bare):
    python = bare / "venv" / "bin" / "python"
    command = [python, ROOT / "quatrains.py", "--corpus", "verses.txt"]
    done = subprocess.run(command, cwd=bare, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    told = f"`{python} -m pip install -r requirements.txt` in the script's folder"
    assert done.stderr == f"quatrains: {MISSING}: type {told}\n"
    assert subprocess.run([*command, "--help"], capture_output=True).returncode == 0


def test_a_session_that_cannot_install_says_so(bare, tmp_path):
    python = bare / "venv" / "bin" / "python"
    with closing(Session(tmp_path, python, PIP_NO_INDEX="1")) as session:
        out, (error,), _ = session.run(cell(use_gpu=True))
    packages = "-r requirements.txt tensorflow[and-cuda]"
    told = f"`{python} -m pip install {packages}` in the script's folder"
    assert error == f"quatrains: {MISSING}: type {told}"
    assert "Could not open requirements file" in out


def test_a_session_installs_what_it_lacks(bare):
    index = {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(bare / "index")}
    with closing(Session(bare, bare / "venv" / "bin" / "python", **index)) as session:
        out, errors, _ = session.run(cell(use_gpu=True))
        assert errors == [NO_GPU]
        assert out.startswith(f"{MISSING}: installing requirements.txt, which takes minutes.\n")
        _, _, value = session.run("import nvidia_stub, tensorflow; tensorflow.__file__")
        assert str(bare) in value
        assert session.run(cell(use_gpu=True)) == ("", [NO_GPU], None)


def test_inline_metadata_equals_the_requirements():
    block = re.search(r"^# /// script\n((?:#.*\n)+?)# ///\n", edited())[1]
    text = "".join(line[2:] + "\n" for line in block.splitlines())
    listed = re.findall(r'^    "(.*)",$', text, re.MULTILINE)
    assert listed == REQUIREMENTS.split()
    assert 'requires-python = ">=3.10"' in text
