"""The script as its users run it: whole trainings, bad input, and what it prints where."""

import contextlib
import os
import pty
import re
import shutil
import signal
import subprocess
import sys
import time

import pytest

import quatrains
from conftest import QUICK, ROOT, SMALL, arguments, read_files, run, run_script

EPOCH = r"Epoch (\d)/4\n.*/step - acc: N - loss: N - val_acc: N - val_loss: N\n"
EPOCH = EPOCH.replace("N", r"\d[\d.e+-]*")


def test_a_training_prints_its_story(first_training):
    done = first_training[1]
    assert (done.returncode, done.stderr) == (0, "")
    out = done.stdout
    assert out.startswith("Settings(use_gpu=False, recipe='2017', name='', embedding_dim=8, ")
    assert 'Model: "quatrains"' in out
    tokens = re.search(r"\nCorpus: verses.txt has 60 quatrains, (\d,\d{3}) tokens, ", out)[1]
    windows = int(tokens.replace(",", "")) - 2 * 60
    samples = int(0.95 * windows)
    told = f"Train on {samples} samples, validate on {windows - samples} samples"
    out, saved = out.rstrip("\n").rsplit("\n\n", 1)
    assert re.match(r"logs.\d{6}-\d{6}-2017.checkpoint\.keras holds the training", saved)
    quote = re.compile(r'\n\nLongest quote: \d words, "[a-z ]+" \(\d+\)\.')
    assert len(quote.findall(out)) == 2
    first, second = re.split(rf"\nRun \d\n{told}\n", quote.sub("", out))[1:]
    assert re.findall(EPOCH, first + second) == ["1", "2", "3", "4"]
    for printed in (first, second):
        verses = printed.split("\n\n")[1:]
        assert len(verses) == 3
        for verse in verses:
            assert verse.strip().count("\n") <= 3
            assert not re.search(r"\s[.,;!?]|mars|rome", verse)


def test_a_second_training_repeats_the_first_and_touches_nothing_of_it(first_training, tmp_path):
    folder, done = first_training
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    before = read_files(tmp_path)
    again = run_script(tmp_path, **SMALL, corpus="verses.txt")
    assert (again.returncode, again.stderr) == (0, "")
    times = r"\d+s - \d+[mu]?s/step|\d{6}-\d{6}"
    assert re.sub(times, "", again.stdout) == re.sub(times, "", done.stdout)
    after = read_files(tmp_path)
    assert {path: after[path] for path in before} == before
    (second,) = {path.parent for path in {*after} - {*before} if path.name == "checkpoint.keras"}
    assert {*after} - {*before} == {*read_files(second)}
    assert {path.name for path in second.iterdir()} >= {"train", "validation"}


def test_raw_prints_token_lines(tmp_path, capsys, monkeypatch, verses):
    monkeypatch.chdir(tmp_path)
    assert run(**QUICK | {"runs": 1, "raw": True, "quatrains_per_run": 40}) == 0
    lines = capsys.readouterr().out.partition("Longest quote")[0].strip().splitlines()[-40:]
    known = set(quatrains.index_corpus(quatrains.read_corpus(verses)).words[1:])
    assert all(set(line.split()) <= known for line in lines)
    assert any(" ." in line or " ," in line for line in lines)


# ==== What is refused, before anything is made ====

CORPORA = {
    "comments.txt": b"# only\n# comments\n",
    "cp1252.txt": "quatrains \xe9gar\xe9s".encode("cp1252"),
    "utf16.txt": "the king of Rome".encode("utf-16"),
    "small.txt": b"one two three four five six seven",
    "short.txt": b"one, two\n\n" * 50,
    "taken": b"",
}
REFUSED = [
    ({"corpus": "nowhere.txt"}, "corpus nowhere.txt cannot be read (No such file or directory)"),
    ({"corpus": "."}, "corpus . cannot be read (Is a directory)"),
    ({"corpus": "comments.txt"}, "corpus comments.txt has no words in it"),
    ({"corpus": "cp1252.txt"}, "corpus cp1252.txt is not UTF-8 (see byte 10; iconv"),
    ({"corpus": "utf16.txt"}, "corpus utf16.txt is not UTF-8"),
    ({"corpus": "small.txt"}, "the corpus gives 8 samples, too few"),
    ({"corpus": "short.txt", "phrase_len": 6}, "the corpus gives 0 samples, too few"),
    ({"opening": "Mars and"}, "opening has 'and', which the corpus lacks (near it: "),
    ({"opening": "king Mars river", "max_words": 3}, "opening has 3 words: set max_words to more"),
    ({"glove": "vectors.txt"}, "GloVe file vectors.txt cannot be used"),
    ({"use_gpu": True}, "use_gpu = True, but TensorFlow sees no GPU: "),
    ({"logs": "taken"}, "taken/"),
    ({"logs": "/proc/logs"}, "/proc/logs/"),
    ({"logs": "dangling"}, "dangling/"),
]


@pytest.mark.parametrize(("changes", "reason"), REFUSED, ids=str)
def test_what_cannot_be_trained_is_one_line_and_makes_nothing(
    tmp_path, capsys, monkeypatch, verses, changes, reason
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(quatrains, "GPUS", [])
    monkeypatch.setattr(quatrains.time, "sleep", lambda _: pytest.fail("it waits"))
    for name, content in CORPORA.items():
        (tmp_path / name).write_bytes(content)
    (tmp_path / "dangling").symlink_to("a disk that is not mounted")
    before = {*tmp_path.rglob("*")}
    assert run(**QUICK | changes) == 2
    out, err = capsys.readouterr()
    assert err.startswith("quatrains: ")
    assert reason in err
    assert err.count("\n") == 1
    assert "Run 0" not in out
    assert {*tmp_path.rglob("*")} == before


ODD_CORPORA = [
    ("the king of Rome shall see the moon, " * 8, "has 1 quatrains, 72 tokens, 8 distinct"),
    ("the king\nshall see.\n\n" * 30 + "the moon", "has 31 quatrains, 152 tokens, 6 distinct"),
]


@pytest.mark.parametrize(("text", "told"), ODD_CORPORA, ids=["one quatrain", "no final newline"])
def test_odd_corpora_are_trained_on(text, told, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "odd.txt").write_text(text)
    assert run(**QUICK | {"corpus": "odd.txt", "runs": 1}) == 0
    assert told in capsys.readouterr().out


def test_importing_the_script_trains_nothing(tmp_path):
    command = [sys.executable, "-c", "import quatrains"]
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert list(tmp_path.iterdir()) == []


# ==== What stands behind the output ====

QUICKLY = " ".join(arguments(**QUICK))


@pytest.fixture(scope="module")
def shell(first_training, tmp_path_factory):
    """Run a command in a shell, in a folder with a training."""
    folder = shutil.copytree(first_training[0], tmp_path_factory.mktemp("sh"), dirs_exist_ok=True)
    script = os.environ | {"SCRIPT": f"{sys.executable} {ROOT / 'quatrains.py'}"}

    def run_in_shell(command):
        done = subprocess.run(
            ["bash", "-c", command], cwd=folder, env=script, capture_output=True, text=True
        )
        return done.returncode, done.stdout, done.stderr

    run_in_shell.folder = folder
    return run_in_shell


def test_a_reader_that_has_read_enough_is_no_error(shell):
    _, out, err = shell("$SCRIPT --generate 1000 | head -1; echo ${PIPESTATUS[0]}")
    assert re.fullmatch(r"[A-Za-z.,;!? ]+\n141\n", out)
    assert err == ""


def test_a_full_disk_behind_what_is_printed_is_one_line(shell):
    status, _, err = shell(f"$SCRIPT {QUICKLY} --logs full > /dev/full")
    assert status == 2
    assert re.fullmatch(r"quatrains: broke off \(.*No space left on device\): make room, .*\n", err)
    assert not [*shell.folder.glob("full/*")]


def test_letters_that_the_terminal_lacks_are_question_marks(shell):
    text = (shell.folder / "verses.txt").read_text()
    text = text.replace("king", "k\xe9ng").replace("Mars", "\u0152il")
    (shell.folder / "\xe9.txt").write_text(text, encoding="utf-8")
    status, out, err = shell(f"PYTHONIOENCODING=ascii $SCRIPT {QUICKLY} --corpus \xe9.txt")
    assert (status, err) == (0, "")
    assert "Corpus: ?.txt has 60 quatrains" in out
    assert re.search(r"\b[Kk]\?ng\b", out.partition("Run 0")[2])
    assert "?il" in out


def test_a_terminal_has_keras_own_bar_and_a_pipe_a_line_an_epoch(tmp_path, verses, first_training):
    ours, theirs = pty.openpty()
    settings = QUICK | {"runs": 1, "batch_size": 64}
    process = subprocess.Popen(
        [sys.executable, ROOT / "quatrains.py", *arguments(**settings)],
        cwd=tmp_path,
        stdout=theirs,
        stderr=theirs,
        env=os.environ | {"TERM": "xterm"},
    )
    os.close(theirs)
    shown = b""
    with contextlib.suppress(OSError):  # The way a terminal ends.
        while part := os.read(ours, 4096):
            shown += part
    assert process.wait() == 0
    text = re.sub(r"\x1b\[\d+m|\x08", "", shown.decode())
    lines = text.replace("\r", "\n").partition("Run 0")[2].splitlines()
    bars = [line for line in lines if "\u2501" in line]
    within = [line for line in bars if "val_loss" not in line]
    assert within
    assert all(len(line) < 80 and "loss: " in line for line in within)
    assert "\u2501" not in first_training[1].stdout.partition("Run 0")[2]


@pytest.mark.parametrize("seconds", [0.5, 1.5])
def test_ctrl_c_during_the_imports_ends_it_without_a_word(tmp_path, seconds):
    process = subprocess.Popen(
        [sys.executable, "-X", "importtime", ROOT / "quatrains.py", "--corpus", "none"],
        cwd=tmp_path,
        stderr=subprocess.PIPE,
        text=True,
    )
    for line in process.stderr:
        if line.endswith("| unittest.mock\n"):  # The last one of the standard library.
            break
    time.sleep(seconds)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert all(line.startswith("import time: ") for line in err.splitlines())
