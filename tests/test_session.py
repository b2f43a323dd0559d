"""The script in a real Jupyter kernel: as one cell, as cells, edited, interrupted and resumed."""

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

    def __init__(self, folder, python=sys.executable):
        write_verses(folder / "verses.txt")
        self.folder = folder
        self.manager = KernelManager()
        self.manager.kernel_spec.argv[0] = str(python)
        # With this variable, a kernel hides its children's output.
        env = {name: os.environ[name] for name in {*os.environ} - {"PYTEST_CURRENT_TEST"}}
        self.manager.start_kernel(cwd=str(folder), env=env)
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
        assert "WARNING" not in out.upper(), out
        return out, value

    def close(self):
        self.client.stop_channels()
        self.manager.shutdown_kernel(now=True)


@pytest.fixture(scope="module")
def session(tmp_path_factory):
    with closing(Session(tmp_path_factory.mktemp("session"))) as session:
        yield session


LAYERS = "[type(layer).__name__ for layer in lm.model.layers], lm.completed_runs"


def cell(**settings):
    """The script as one cell that trains one run."""
    return edited(**QUICK | {"runs": 1} | settings)


def experiments(folder):
    """The folders of the experiments in `logs`, and the bytes of each file in them."""
    return {path: read_files(path) for path in sorted((folder / "logs").iterdir())}


def test_one_cell_is_run_edited_and_run_again_and_its_model_generates(session):
    out, _ = session.run(cell(batch_size=64))
    assert re.findall(r"^Run (\d)$", out, re.MULTILINE) == ["0"]
    assert re.findall(r"^Epoch (\d/\d)$", out, re.MULTILINE) == ["1/2", "2/2"]
    assert re.search(r"m(\d+)/\1\x1b.*━.* - val_acc: ", out)
    before = experiments(session.folder)
    ((first, content),) = before.items()
    assert re.fullmatch(r"\d{6}-\d{6}-2017", first.name)
    # A mistake is one line, without a traceback.
    session.run(cell(prompt="zebra"), "quatrains: prompt has 'zebra', which is not in the .*")
    assert experiments(session.folder) == before

    session.run("lm = train(recipe='verse', phrase_len=np.int64(2), prompt='')")
    values = "lm.settings.phrase_len, lm.settings.dense_dropout, lm.model.history.epoch"
    assert session.run(values) == ("", "(2, 0.5, [0, 1])")
    session.run("train(dropuot=0.1)", r"(?s).*TypeError.*unexpected keyword argument 'dropuot'.*")
    assert experiments(session.folder)[first] == content
    generate = "print(*lm.generate(3, temperature=0.5, prompt='king', seed=1), sep='\\n\\n')"
    out, _ = session.run(generate)
    assert [verse.startswith("King") for verse in out.split("\n\n")] == [True] * 3
    assert session.run(generate) == (out, None)
    error = r"quatrains: prompt has 'montain', .* \(similar: mountain.*\)"
    session.run("lm.generate(1, prompt='king montain')", error)
    assert re.fullmatch(r"QuatrainLM\('logs/.*', completed_runs=1\)", session.run("lm")[1])
    shown = session.run("lm.generate(2, seed=1)")[1].strip("[]").replace(",\n \n", "\n\n")
    printed, _ = session.run("print(*lm.generate(2, seed=1), sep='\\n')")
    assert re.findall(r"\w.*", shown) == printed.splitlines()


def test_an_interrupted_training_returns_the_model(session):
    out, _ = session.run(cell(epochs_per_run=10_000, name="first run"), interrupt_at="Epoch 2/")
    assert out.endswith("\nNo checkpoint was saved: the first run was not completed.\n")
    assert session.run("lm.completed_runs, len(lm.generate(2))") == ("", "(0, 2)")
    (folder,) = session.folder.glob("logs/*-first run")
    assert not (folder / "checkpoint.keras").exists()
    # Compiled by XLA, with several steps per call.
    code = cell(use_xla=True, batch_size=64, seed=None, runs=10_000)
    out, _ = session.run(code, interrupt_at="Run 2\n")
    assert "checkpoint.keras contains the model as of the last completed run.\n" in out


def test_sections_are_cells_and_an_edited_model_is_trained_and_resumed(session):
    session.run("%reset -f")
    # VS Code and Spyder define `__file__`. The kernel's arguments are not the script's.
    assert session.run("import sys; __file__ = 'quatrains.py'; '-f' in sys.argv")[1] == "True"
    sections = re.split(r"^(?=# %%)", cell(), flags=re.MULTILINE)
    for section in sections:
        out, _ = session.run(section)
    assert re.findall(r"^Run (\d)$", out, re.MULTILINE) == ["0"]
    assert session.run(LAYERS) == ("", "(['Embedding', 'GRU', 'Dense'], 1)")
    (model,) = (section for section in sections if section.startswith("# %% Model\n"))
    edit = re.sub(r"use_cudnn=False,.*", "", model).replace("layers.GRU(", "layers.LSTM(")
    session.run(f"{edit}\n{sections[-1]}")
    assert session.run(LAYERS) == ("", "(['Embedding', 'LSTM', 'Dense'], 1)")
    # Resumed with the model of the checkpoint, even if the cell has another.
    session.run(model)
    out, _ = session.run("lm = train(runs=2, resume=True)")
    assert re.findall(r"^Run (\d)$", out, re.MULTILINE) == ["1"]
    assert session.run(LAYERS) == ("", "(['Embedding', 'LSTM', 'Dense'], 2)")


def test_percent_run_takes_arguments_and_a_mistake_leaves_the_model(session):
    session.run(cell())
    (session.folder / "edited.py").write_text(cell(), encoding="utf-8")
    error = (
        r"quatrains: unrecognized arguments: --gru_dim 64 \(write options like --gru-dim 256; .*\)"
    )
    session.run("%run edited.py --gru_dim 64", error)
    assert session.run("lm.settings.gru_dim, len(lm.generate(2))") == ("", "(8, 2)")
    out, _ = session.run("%run edited.py --gru-dim 7")
    assert "\nRun 0\n" in out
    session.run("%run edited.py --gru_dim 64", error)
    assert session.run("lm.settings.gru_dim, len(lm.generate(2))") == ("", "(7, 2)")
    # %run does not change how a cell runs afterwards.
    error = "quatrains: gru_dim = 0 is invalid: expected int from 1 to 1,000,000,000"
    session.run(cell(gru_dim=0), error)
    session.run("%run edited.py --gru-dim 0", error)


def test_tensorflow_may_run_functions_eagerly(session):
    session.run(cell())
    out, _ = session.run("tf.config.run_functions_eagerly(True); lm = train(use_xla=True)")
    assert re.findall(r"^Epoch (\d/\d)$", out, re.MULTILINE) == ["1/2", "2/2"]
    value = "tf.config.functions_run_eagerly(), len(lm.generate(2))"
    assert session.run(value) == ("", "(True, 2)")
    session.run("tf.config.run_functions_eagerly(False)")


REQUIREMENTS = (ROOT / "requirements.txt").read_text(encoding="utf-8")
MISSING = (
    "quatrains: packages are missing: run `/.*/python -m pip install -r requirements.txt` in the "
    "script's folder"
)
# The smallest wheel that pip installs, in place of TensorFlow and its packages.
STUB = {
    "tensorflow.py": "",
    "tensorboard.py": "",
    "keras.py": "raise OSError('imported the stub')",
    "stub-1.dist-info/METADATA": "Name: stub\nVersion: 1\n",
    "stub-1.dist-info/WHEEL": "Wheel-Version: 1.0\nTag: py3-none-any\n",
    "stub-1.dist-info/RECORD": "",
}


def test_missing_packages_are_installed_in_a_notebook_and_named_elsewhere(tmp_path):
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "venv"], check=True)
    (site,) = tmp_path.glob("venv/lib/python*/site-packages")
    for path in Path(sysconfig.get_path("purelib")).iterdir():
        if not re.match(r"tensor|keras|pip\b|pkg_|_?distutils|setuptools|.*\.pth$", path.name):
            (site / path.name).symlink_to(path)
    with zipfile.ZipFile(tmp_path / "stub-1-py3-none-any.whl", "w") as wheel:
        for name, content in STUB.items():
            wheel.writestr(name, content)
    python = tmp_path / "venv/bin/python"
    done = subprocess.run(
        [python, ROOT / "quatrains.py"], cwd=tmp_path, capture_output=True, text=True
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert re.fullmatch(f"{MISSING}\n", done.stderr)
    with closing(Session(tmp_path, python)) as session:
        out, _ = session.run(cell(), MISSING)
        assert "Could not open requirements file" in out
        (tmp_path / "requirements.txt").write_text("./stub-1-py3-none-any.whl\n")
        imported = r"(?s).*Traceback .*OSError.*: imported the stub"
        out, _ = session.run(cell(), imported)
        assert out.startswith("Installing the packages in requirements.txt. ")
        assert session.run(cell(), imported) == ("", None)


def test_inline_metadata_equals_the_requirements():
    block = re.search(r"^# /// script\n((?:#.*\n)+?)# ///\n", edited())[1]
    assert re.findall(r'^#     "(.*)",$', block, re.MULTILINE) == REQUIREMENTS.split()
    assert '# requires-python = ">=3.10,<3.14"\n' in block
