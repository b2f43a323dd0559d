"""The script in a real Jupyter kernel: Run All, edited and run again, interrupted, played with."""

import base64
import hashlib
import json
import os
import re
import subprocess
import sys
import sysconfig
import time
import zipfile
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
        self.manager.start_kernel(cwd=str(folder), env=os.environ | environment)
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
                assert "WARNING" not in out
                return out, errors, value
        raise TimeoutError(out)

    def close(self):
        self.client.stop_channels()
        self.manager.shutdown_kernel(now=True)


@pytest.fixture(scope="module")
def session(tmp_path_factory):
    session = Session(tmp_path_factory.mktemp("session"))
    yield session
    session.close()


TINY = QUICK | {"runs": 1}


def trainings(folder):
    """The folders of the trainings in `logs`, and the bytes of each file in them."""
    return {training: read_files(training) for training in sorted((folder / "logs").iterdir())}


def count_runs(training):
    """How many runs a training's checkpoint holds."""
    with zipfile.ZipFile(training / "checkpoint.keras") as archive:
        return json.loads(archive.read("quatrains.json"))["runs"]


def test_run_all_edit_run_again_interrupt_and_play(session):
    """One story in one kernel, as a user lives it."""
    # Run All, as one cell: the kernel's own arguments are not the script's.
    _, errors, value = session.run("import sys; '-f' in sys.argv, '__file__' in globals()")
    assert (errors, value) == ([], "(True, False)")
    # How far an epoch is shows after no time here.
    out, errors, _ = session.run(edited(**TINY | {"batch_size": 64}, PATIENCE=-1))
    assert errors == []
    assert re.findall(r"\nRun (\d)\n", out) == ["0"]
    assert re.search(r" 8/(\d+)\D.*(?<!\d)\1/\1\D.*\nEpoch 1/2 - ", out)
    assert "prophet.write(3)" in out
    before = trainings(session.folder)
    ((first, content),) = before.items()
    assert re.fullmatch(r"\d{6}-\d{6}", first.name)
    top = {path.relative_to(first).parts[0] for path in content}
    assert {"train", "validation", "checkpoint.keras", "words.tsv"} < top

    # A mistake is one line, and no traceback.
    out, errors, _ = session.run(edited(**TINY | {"use_gpu": True}))
    assert errors == []
    assert re.search(r"\nquatrains: use_gpu = True, but TensorFlow sees no GPU, .*\n$", out)
    out, errors, _ = session.run(edited(**TINY | {"dropout": 2.0}))
    assert (out, errors) == (
        "quatrains: dropout = 2.0 will not do: it must be a number from 0 to 0.99\n",
        [],
    )
    out, errors, _ = session.run(edited(**TINY | {"opening": "zebra"}))
    assert errors == []
    assert re.search(r"\nquatrains: opening has words that the corpus never uses: zebra .*\n$", out)
    assert trainings(session.folder) == before

    # Edited and run again, and interrupted: the kernel goes on, and the earlier training is left
    # alone.
    other = TINY | {"gru_dim": 9, "seed": None, "runs": 10_000}
    out, errors, _ = session.run(edited(**other), interrupt_at="Run 3")
    assert errors == []
    assert "gru_dim = 9" in out
    assert out.endswith("\nquatrains: stopped\n")
    assert "holds the training up to its last whole run" in out
    after = trainings(session.folder)
    assert (len(after), after[first]) == (2, content)

    # Resumed: a setting that was edited meanwhile is named.
    latest = max(after)
    done = count_runs(latest)
    assert done >= 3
    again = TINY | {"runs": done + 1, "resume": True, "gru_dim": 12, "seed": None}
    out, errors, _ = session.run(edited(**again))
    assert errors == []
    lines = out.splitlines()
    assert "A training keeps what it began with, though here gru_dim was 9 and is 12." in lines
    told = f"Going on after run {done - 1} from logs/{latest.name}/checkpoint.keras, "
    assert [line for line in lines if line.startswith(told)]
    assert "gru_dim = 9" in out
    assert re.findall(r"\nRun (\d+)\n", out) == [str(done)]
    assert count_runs(latest) == done + 1
    assert trainings(session.folder).keys() == after.keys()

    # Play.
    out, errors, _ = session.run("print(*prophet.write(3, temperature=0.5, seed=1), sep='\\n\\n')")
    assert errors == []
    assert len(out.split("\n\n")) == 3
    again, _, _ = session.run("print(*prophet.write(3, temperature=0.5, seed=1), sep='\\n\\n')")
    assert again == out
    _, errors, value = session.run(
        "all(q.tokens[:2] == ['king', 'eagle'] and q.verse.startswith('King')"
        " for q in prophet.write(20, opening='King Eagle', top_k=3))"
    )
    assert (errors, value) == ([], "True")
    _, errors, value = session.run(
        "q = prophet.write(1, opening='king')[0]; (len(q.quote), q.source)"
    )
    assert errors == []
    assert re.fullmatch(r"\(\d+, '\d+'\)", value)
    _, errors, _ = session.run("prophet.write(1, opening='king zebra montain')")
    assert "words that the corpus never uses: zebra (near it: " in errors[0]
    assert "montain (near it: mountain" in errors[0]


def test_an_edited_model_acts_and_is_resumed(session):
    plain = edited(**TINY)
    edit = plain.replace("keras.layers.GRU(", "keras.layers.LSTM(")
    assert edit != plain
    _, errors, _ = session.run(edit)
    assert errors == []
    layers = "[type(layer).__name__ for layer in prophet.model.layers]"
    assert session.run(layers)[2] == "['Embedding', 'LSTM', 'Dense']"
    # Resumed with the model of the checkpoint, whatever the cell says by then.
    out, errors, _ = session.run(edited(**TINY | {"runs": 2, "resume": True}))
    assert errors == []
    assert "with the model saved there" in out
    assert re.findall(r"\nRun (\d)\n", out) == ["1"]
    assert session.run(layers)[2] == "['Embedding', 'LSTM', 'Dense']"


def test_statement_by_statement(session):
    """Each statement of the file in a cell of its own."""
    out, errors, _ = session.run(
        "import ast, pathlib\n"
        f"text = pathlib.Path('edited.py').write_text({edited(**TINY)!r}, encoding='utf-8')\n"
        "text = pathlib.Path('edited.py').read_text(encoding='utf-8')\n"
        "for statement in ast.parse(text).body:\n"
        "    get_ipython().run_cell(ast.unparse(statement)).raise_error()\n"
    )
    assert errors == []
    assert "\nRun 0\n" in out
    assert "\nquatrains:" not in out


def test_percent_run_takes_arguments(session):
    (session.folder / "edited.py").write_text(edited(**TINY), encoding="utf-8")
    out, errors, _ = session.run("%run edited.py --gru-dim 7")
    assert errors == []
    assert "gru_dim = 7" in out
    assert "\nRun 0\n" in out
    _, errors, value = session.run("len(prophet.write(2))")
    assert (errors, value) == ([], "2")
    # What %run leaves behind does not change how a cell runs afterwards.
    out, errors, _ = session.run(edited(**TINY | {"gru_dim": 0}))
    assert errors == []
    assert out.startswith("quatrains: gru_dim = 0 will not do")
    out, errors, _ = session.run("%run edited.py --gru-dim none")
    assert errors == []
    assert out.startswith("quatrains: gru_dim = 'none' will not do")


# ==== Packages ====

REQUIREMENTS = (ROOT / "requirements.txt").read_text(encoding="utf-8")
# None of them can train; that no GPU is seen is the first thing that TensorFlow is asked. NumPy's
# gives way to the real one, which lies aside.
STUBS = {
    "numpy": (
        "import sys\n"
        "del sys.modules['numpy']\n"
        "sys.path.insert(0, sys.prefix + '/aside')\n"
        "import numpy\n"
    ),
    "tensorflow": (
        "from logging import getLogger as get_logger\n"
        "class config:\n"
        "    list_physical_devices = staticmethod(lambda kind: [])\n"
        "class test:\n"
        "    is_built_with_cuda = staticmethod(lambda: False)\n"
    ),
    "keras": (
        "class config:\n"
        "    set_floatx = staticmethod(lambda name: None)\n"
        "    disable_interactive_logging = staticmethod(lambda: None)\n"
    ),
    "tensorboard": "",
    "nvidia_stub": "",
}


def write_wheel(folder, name, code, version):
    """Write the smallest wheel that pip installs."""
    about = f"{name}-{version}.dist-info"
    metadata = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
    if name == "tensorflow":
        metadata += "Provides-Extra: and-cuda\nRequires-Dist: nvidia_stub; extra == 'and-cuda'\n"
    files = {
        f"{name}.py": code,
        f"{about}/METADATA": metadata,
        f"{about}/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    record = ""
    with zipfile.ZipFile(folder / f"{name}-{version}-py3-none-any.whl", "w") as wheel:
        for path, content in files.items():
            digest = base64.urlsafe_b64encode(hashlib.sha256(content.encode()).digest())
            record += f"{path},sha256={digest.decode().rstrip('=')},{len(content)}\n"
            wheel.writestr(path, content)
        wheel.writestr(f"{about}/RECORD", record + f"{about}/RECORD,,\n")


@pytest.fixture(scope="module")
def bare(tmp_path_factory):
    """A folder with a Python that lacks the packages of the requirements, and an index of stubs."""
    folder = tmp_path_factory.mktemp("bare")
    subprocess.run([sys.executable, "-m", "venv", folder / "venv"], check=True)
    lent, aside = folder / "lent", folder / "venv" / "aside"
    lent.mkdir()
    aside.mkdir()
    for path in Path(sysconfig.get_path("purelib")).iterdir():
        if path.name.startswith("numpy"):
            (aside / path.name).symlink_to(path)
        elif not re.match(
            r"tensor|keras|pip\b|_distutils|distutils|setuptools|.*\.pth$", path.name
        ):
            (lent / path.name).symlink_to(path)
    (site,) = (folder / "venv").glob("lib/python*/site-packages")
    (site / "lent.pth").write_text(f"{lent}\n")
    (folder / "index").mkdir()
    versions = dict(re.findall(r"^(\w+)\D+([\d.]+)", REQUIREMENTS, re.MULTILINE))
    for name, code in STUBS.items():
        write_wheel(folder / "index", name, code, versions.get(name, "1.0"))
    (folder / "requirements.txt").write_text(REQUIREMENTS)
    write_verses(folder / "verses.txt")
    return folder


MISSING = "numpy, tensorflow, keras, tensorboard not installed"


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
    session = Session(tmp_path, python, PIP_NO_INDEX="1")
    try:
        out, errors, _ = session.run(edited(**TINY | {"use_gpu": True}))
        assert errors == []
        packages = "-r requirements.txt tensorflow[and-cuda]"
        told = f"`{python} -m pip install {packages}` in the script's folder"
        assert out == f"quatrains: {MISSING}: type {told}\n"
        (tmp_path / "requirements.txt").write_text("no-such-package==1\n")
        out, errors, _ = session.run(edited(**TINY))
        assert errors == []
        plain = re.sub(r"\x1b\[\d*m", "", out)
        assert f"\nquatrains: {MISSING}, and pip cannot: ERROR: " in plain
        assert "no-such-package==1" in out
    finally:
        session.close()


def test_a_session_installs_what_it_lacks(bare):
    index = {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(bare / "index")}
    session = Session(bare, bare / "venv" / "bin" / "python", **index)
    try:
        out, errors, _ = session.run(edited(**TINY | {"use_gpu": True}))
        assert errors == []
        packages = "-r requirements.txt tensorflow[and-cuda]"
        assert out.startswith(f"{MISSING}: installing {packages}. That takes a few minutes.\n")
        assert "Corpus: verses.txt has 60 quatrains" in out
        assert "TensorFlow sees no GPU" in out
        _, errors, value = session.run("import nvidia_stub, tensorflow; tensorflow.__file__")
        assert errors == []
        assert str(bare) in value
        again, _, _ = session.run(edited(**TINY | {"use_gpu": True}))
        assert "installing" not in again
    finally:
        session.close()


def test_inline_metadata_equals_the_requirements():
    block = re.search(r"^# /// script\n((?:#.*\n)+?)# ///\n", edited())[1]
    text = "".join(line[2:] + "\n" for line in block.splitlines())
    listed = re.findall(r'^    "(.*)",$', text, re.MULTILINE)
    assert listed == REQUIREMENTS.split()
    assert 'requires-python = ">=3.10"' in text
