"""The script in a real Jupyter kernel: Run All, edited and run again, interrupted, played with."""

import base64
import hashlib
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

from conftest import ROOT, SMALL, write_verses

SCRIPT = (ROOT / "quatrains.py").read_text(encoding="utf-8")


def edited(**settings):
    """The script's text with other values in the assignments at its top."""
    text = SCRIPT
    for name, value in settings.items():
        text, count = re.subn(rf"^{name} = .*$", f"{name} = {value!r}", text, count=1, flags=re.M)
        assert count == 1
    return text


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


TINY = SMALL | {"corpus": "verses.txt", "runs": 1}


def test_run_all_edit_run_again_interrupt_and_play(session):
    """One story in one kernel, as a user lives it."""
    # Run All, as one cell: the kernel's own arguments are not the script's.
    _, errors, value = session.run("import sys; '-f' in sys.argv, '__file__' in globals()")
    assert (errors, value) == ([], "(True, False)")
    out, errors, _ = session.run(edited(**TINY))
    assert errors == []
    assert re.findall(r"\nRun (\d)\n", out) == ["0"]
    assert "prophet.write(3)" in out
    assert "earlier" not in out

    # Edited and run again.
    out, errors, _ = session.run(edited(**TINY | {"gru_dim": 9, "seed": None}))
    assert errors == []
    assert "gru_dim = 9" in out
    assert "The logs and the checkpoint of the earlier training are now in logs" in out

    # A mistake is one line, and no traceback.
    before = sorted(session.folder.rglob("*"))
    out, errors, _ = session.run(edited(**TINY | {"use_gpu": True}))
    assert errors == []
    assert re.search(r"\nquatrains: use_gpu = True, but TensorFlow sees no GPU: .*\n$", out)
    assert sorted(session.folder.rglob("*")) == before
    out, errors, _ = session.run(edited(**TINY | {"dropout": 2.0}))
    assert (out, errors) == (
        "quatrains: dropout = 2.0 will not do: it must be a number from 0 to 0.99\n",
        [],
    )

    # Interrupted: the kernel goes on, and so does the training when it is resumed.
    out, errors, _ = session.run(edited(**TINY | {"runs": 10_000}), interrupt_at="Run 3")
    assert errors == []
    assert out.endswith("\nquatrains: stopped\n")
    assert "holds the training up to its last whole run" in out
    last = int(re.findall(r"\nRun (\d+)\n", out)[-1])
    out, errors, _ = session.run(edited(**TINY | {"runs": last + 1, "resume": True}))
    assert errors == []
    assert re.findall(r"\nRun (\d+)\n", out) == [str(last)]

    # Play.
    out, errors, _ = session.run("print(*prophet.write(3, temperature=0.5, seed=1), sep='\\n\\n')")
    assert errors == []
    assert 2 <= len(out.split("\n\n")) <= 3
    again, _, _ = session.run("print(*prophet.write(3, temperature=0.5, seed=1), sep='\\n\\n')")
    assert again == out
    _, errors, value = session.run(
        "all(q.tokens[:2] == ['king', 'eagle'] and q.verse.startswith('King eagle')"
        " for q in prophet.write(20, opening='King Eagle', top_k=3))"
    )
    assert (errors, value) == ([], "True")
    _, errors, value = session.run("q = prophet.write(1)[0]; (len(q.quote), q.source)")
    assert errors == []
    assert re.fullmatch(r"\(\d+, '\d+'\)", value)
    _, errors, _ = session.run("prophet.write(1, opening='king zebra montain')")
    assert "words that the corpus never uses: zebra (near it: " in errors[0]
    assert "montain (near it: mountain" in errors[0]


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
    out, errors, _ = session.run(edited(**TINY))
    assert (errors, "gru_dim = 8" in out) == ([], True)
    out, errors, _ = session.run("%run edited.py --gru-dim none")
    assert errors == []
    assert out.startswith("quatrains: gru_dim = 'none' will not do")


# ==== Packages ====

STUBS = {
    "tensorflow": (
        "class config:\n"
        "    list_physical_devices = staticmethod(lambda kind: [])\n"
        "class errors:\n"
        "    OpError = OSError\n"
    ),
    "keras": "class backend:\n    backend = staticmethod(lambda: 'tensorflow')\n",
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
    """A Python with all of ours but TensorFlow, Keras and TensorBoard, and an index of stubs."""
    folder = tmp_path_factory.mktemp("bare")
    subprocess.run([sys.executable, "-m", "venv", folder / "venv"], check=True)
    ours = Path(sysconfig.get_path("purelib"))
    lent = folder / "lent"
    lent.mkdir()
    for path in ours.iterdir():
        if not re.match(r"tensor|keras|pip\b|_distutils|distutils|setuptools|.*\.pth$", path.name):
            (lent / path.name).symlink_to(path)
    (site,) = (folder / "venv").glob("lib/python*/site-packages")
    (site / "lent.pth").write_text(f"{lent}\n")
    (folder / "index").mkdir()
    versions = dict(re.findall(r"^(\w+)\D+([\d.]+)", REQUIREMENTS, re.MULTILINE))
    for name, code in STUBS.items():
        write_wheel(folder / "index", name, code, versions.get(name, "1.0"))
    (folder / "requirements.txt").write_text(REQUIREMENTS)
    return folder


REQUIREMENTS = (ROOT / "requirements.txt").read_text(encoding="utf-8")


def test_outside_a_session_nothing_is_installed(bare):
    write_verses(bare / "verses.txt")
    python = bare / "venv" / "bin" / "python"
    done = subprocess.run(
        [python, ROOT / "quatrains.py", "--corpus", "verses.txt"],
        cwd=bare,
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        "quatrains: tensorflow, keras, tensorboard not installed: type "
        f"`{python} -m pip install -r requirements.txt`\n"
    )
    help_ = subprocess.run([python, ROOT / "quatrains.py", "--help"], capture_output=True)
    assert help_.returncode == 0


def test_a_session_installs_what_it_lacks(bare):
    index = {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(bare / "index")}
    session = Session(bare, bare / "venv" / "bin" / "python", **index)
    try:
        # The stubs cannot train; that no GPU is seen is the first thing that they are asked.
        out, errors, _ = session.run(edited(**TINY | {"use_gpu": True}))
        assert errors == []
        assert (
            "tensorflow, keras, tensorboard not installed: installing tensorflow[and-cuda]" in out
        )
        assert "TensorFlow sees no GPU" in out
        _, errors, value = session.run("import nvidia_stub, tensorflow; tensorflow.__file__")
        assert errors == []
        assert str(bare) in value
        again, _, _ = session.run(edited(**TINY | {"use_gpu": True}))
        assert "installing" not in again
    finally:
        session.close()


def test_a_session_that_cannot_install_says_so(bare, tmp_path):
    session = Session(tmp_path, bare / "venv" / "bin" / "python", PIP_NO_INDEX="1")
    try:
        session.run(
            "import importlib.util as u; real = u.find_spec\n"
            "u.find_spec = lambda name, *a: None if name == 'keras' else real(name, *a)"
        )
        out, errors, _ = session.run(edited(**TINY))
        assert errors == []
        assert out == (
            "quatrains: keras not installed: start in the folder of requirements.txt, or install "
            "them\n"
        )
        (tmp_path / "requirements.txt").write_text("no-such-package==1\n")
        out, errors, _ = session.run(edited(**TINY))
        assert errors == []
        assert "quatrains: keras not installed, and pip cannot install them: " in out
    finally:
        session.close()


def test_inline_metadata_equals_the_requirements():
    block = re.search(r"^# /// script\n((?:#.*\n)+?)# ///\n", SCRIPT)[1]
    text = "".join(line[2:] + "\n" for line in block.splitlines())
    listed = re.findall(r'^    "(.*)",$', text, re.MULTILINE)
    assert listed == REQUIREMENTS.split()
    assert 'requires-python = ">=3.10"' in text
