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
from conftest import QUICK, ROOT, SMALL, arguments, read_files, run, start_script, wait_for

EPOCH = r"Epoch (\d)/4\n.*/step - acc: [\d.]+ - loss: [\d.]+ - val_acc: [\d.]+ - val_loss: [\d.]+\n"


@pytest.fixture(scope="module")
def trainings(first_training, tmp_path_factory):
    """The same small training twice in the same folder, as a command: the folders of both, what
    both printed, and the files of the first before the second."""
    folder = shutil.copytree(
        first_training[0], tmp_path_factory.mktemp("twice"), dirs_exist_ok=True
    )
    before = read_files(folder)
    process = start_script(folder, **SMALL, corpus="verses.txt")
    out, err = process.communicate()
    assert (process.returncode, err) == (0, "")
    return sorted((folder / "logs").iterdir()), (first_training[1].stdout, out), before


def test_a_training_prints_its_story(first_training):
    done = first_training[1]
    assert (done.returncode, done.stderr) == (0, "")
    out = done.stdout
    assert out.startswith("Settings other than the file's: embedding_dim=8, gru_dim=8, ")
    assert "verses.txt has 60 quatrains" in out
    assert re.search(r"\nModel: Embedding GRU Dense, [\d,]+ parameters\.\n", out)
    assert "\nA run is 2 epochs, then 3 quatrains.\n" in out
    samples = re.search(r"\nRun 0\nTrain on (\d+) samples, validate on (\d+) samples\n", out)
    tokens = int(re.search(r"(\d,\d{3}) tokens", out)[1].replace(",", ""))
    assert int(samples[1]) == int(0.95 * (tokens - 2 * 60))
    assert int(samples[1]) + int(samples[2]) == tokens - 2 * 60
    out, saved = out.rstrip("\n").rsplit("\n\n", 1)
    assert re.match(r"logs.\d{6}-\d{6}-2017.checkpoint\.keras holds the training", saved)
    quote = re.compile(r'\n\nLongest quote: \d words, "[a-z ]+" \(\d+\)\.')
    assert len(quote.findall(out)) == 2
    first, second = re.split(r"\nRun \d\n", quote.sub("", out))[1:]
    assert re.findall(EPOCH, first + second) == ["1", "2", "3", "4"]
    for printed in (first, second):
        verses = printed.split("\n\n")[1:]
        assert len(verses) == 3
        for verse in verses:
            assert verse.strip().count("\n") <= 3
            assert not re.search(r"\s[.,;!?]|mars|rome", verse)


def test_a_seed_repeats_a_training_exactly(trainings):
    told = [
        re.sub(r"\d+s - \d+[mu]?s/step|\d{6}-\d{6}", "", out).partition("Corpus:")[2]
        for out in trainings[1]
    ]
    assert told[0] == told[1] != ""


def test_a_second_training_touches_nothing_of_the_first(trainings):
    (first, second), _, before = trainings
    after = read_files(first.parent.parent)
    assert {path: after[path] for path in before} == before
    assert {path.name for path in second.iterdir()} >= {"train", "validation", "checkpoint.keras"}
    assert {path for path in after if path not in before} == {*read_files(second)}


def test_raw_prints_token_lines(tmp_path, capsys, monkeypatch, verses):
    monkeypatch.chdir(tmp_path)
    assert run(**QUICK | {"runs": 1, "raw": True, "quatrains_per_run": 40}) == 0
    lines = capsys.readouterr().out.partition("Longest quote")[0].strip().splitlines()[-40:]
    known = set(quatrains.index_corpus(quatrains.read_corpus(verses)).words[1:])
    assert all(set(line.split()) <= known for line in lines)
    assert any(" ." in line or " ," in line for line in lines)


# ==== What is refused, before anything is made ====

BAD_CORPORA = {
    "missing": (None, "cannot be read (No such file or directory)"),
    "a folder": (..., "cannot be read (Is a directory)"),
    "empty": (b"", "no text with words"),
    "comments": (b"# only\n# comments\n", "no text with words"),
    "punctuation": (b"... ,,, !!!\n\n--- ***", "too few"),
    "binary": (bytes(range(128)) * 9, "no text with words"),
    "cp1252": ("quatrains \xe9gar\xe9s".encode("cp1252"), "is not UTF-8 (see byte 10; iconv"),
    "utf-16": ("the king of Rome".encode("utf-16"), "is not UTF-8"),
    "utf-16 without a mark": ("the king of Rome".encode("utf-16-le"), "no text with words"),
    "too small": (b"one two three four five six seven", "too few"),
    "shorter than a phrase": (b"one, two\n\n" * 50, "gives 0 samples, too few"),
}


@pytest.mark.parametrize("case", BAD_CORPORA)
def test_bad_corpora_are_one_line_and_touch_nothing(case, tmp_path, capsys, monkeypatch):
    content, reason = BAD_CORPORA[case]
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "bad.txt"
    if content is ...:
        path.mkdir()
    elif content is not None:
        path.write_bytes(content)
    before = sorted(tmp_path.rglob("*"))
    assert run(**SMALL | {"corpus": "bad.txt", "phrase_len": 6}) == 2
    message = capsys.readouterr().err
    assert message.count("\n") == 1
    assert reason in message
    assert "corpus" in message
    assert sorted(tmp_path.rglob("*")) == before


KNOWN_BEFOREHAND = {
    "words that the corpus lacks": (
        {"opening": "Mars and the kings"},
        "opening has 'and', which the corpus lacks (near it: ",
    ),
    "an opening as long as a quatrain": (
        {"opening": "king Mars river", "max_words": 3},
        "opening has 3 words: set max_words to more",
    ),
    "phrases longer than quatrains": ({"phrase_len": 30}, "the corpus gives 0 samples, too few"),
    "no such vectors": ({"glove": "vectors.txt"}, "GloVe file vectors.txt cannot be used"),
}


@pytest.mark.parametrize("case", KNOWN_BEFOREHAND)
def test_what_can_be_known_is_said_before_anything_is_made(
    case, tmp_path, capsys, monkeypatch, verses
):
    changes, reason = KNOWN_BEFOREHAND[case]
    monkeypatch.chdir(tmp_path)
    assert run(**QUICK | changes) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith(f"quatrains: {reason}")
    assert captured.err.count("\n") == 1
    assert "Run 0" not in captured.out
    assert [*tmp_path.iterdir()] == [verses]


def test_a_gpu_asked_for_and_not_there_is_one_line_and_touches_nothing(
    tmp_path, capsys, monkeypatch, verses
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(quatrains, "GPUS", [])
    assert run(**QUICK | {"use_gpu": True}) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert re.fullmatch("quatrains: use_gpu = True, but TensorFlow sees no GPU: .*\n", err)
    assert [*tmp_path.iterdir()] == [verses]


@pytest.mark.parametrize("logs", ["taken", "taken/logs", "/proc/logs", "dangling"])
def test_logs_that_cannot_be_written_are_refused(tmp_path, capsys, monkeypatch, verses, logs):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "taken").write_text("")
    (tmp_path / "dangling").symlink_to("a disk that is not mounted")
    assert run(**QUICK | {"logs": logs}) == 2
    message = capsys.readouterr().err
    assert message.startswith(f"quatrains: the folder {logs} cannot be written (")
    assert message.count("\n") == 1


ODD_CORPORA = {
    "one quatrain": (
        "the king of Rome shall see the moon, " * 8,
        "has 1 quatrains, 72 tokens, 8 distinct words",
    ),
    "no final newline": (
        "the king of Rome\nshall see the moon.\n\n" * 30 + "the moon",
        "has 31 quatrains, 272 tokens, 8 distinct words",
    ),
}


@pytest.mark.parametrize("case", ODD_CORPORA)
def test_odd_corpora_are_trained_on(case, tmp_path, capsys, monkeypatch):
    text, told = ODD_CORPORA[case]
    monkeypatch.chdir(tmp_path)
    (tmp_path / "odd.txt").write_text(text)
    assert run(**QUICK | {"corpus": "odd.txt", "runs": 1}) == 0
    assert told in capsys.readouterr().out


def test_importing_the_script_trains_nothing(tmp_path):
    code = (
        "import signal, sys; before = signal.getsignal(signal.SIGINT)\n"
        "sys.path.insert(0, sys.argv[1]); import quatrains\n"
        "assert signal.getsignal(signal.SIGINT) is before"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, ROOT], cwd=tmp_path, capture_output=True, text=True
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert list(tmp_path.iterdir()) == []


# ==== What stands behind the output ====

COMMANDS = {
    "head": "$SCRIPT --generate 1000 | head -1; echo ${PIPESTATUS[0]}",
    "full": f"$SCRIPT {' '.join(arguments(**QUICK))} --logs full > /dev/full",
    "closed": "$SCRIPT --generate 2 --raw 2>&-",
    "ascii": f"PYTHONIOENCODING=ascii $SCRIPT {' '.join(arguments(**QUICK))} --corpus \xe9.txt",
    "help, closed": "$SCRIPT --help >&-",
    "mistake, closed": "$SCRIPT --gru-dim 0 2>&-",
}


@pytest.fixture(scope="module")
def shells(first_training, tmp_path_factory):
    """Some commands in a shell, side by side, and how they ended."""
    folder = shutil.copytree(first_training[0], tmp_path_factory.mktemp("sh"), dirs_exist_ok=True)
    text = (
        (folder / "verses.txt").read_text().replace("king", "k\xe9ng").replace("Mars", "\u0152il")
    )
    (folder / "\xe9.txt").write_text(text, encoding="utf-8")
    script = os.environ | {"SCRIPT": f"{sys.executable} {ROOT / 'quatrains.py'}"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    ended = {}
    for name, command in COMMANDS.items():
        done = subprocess.run(["bash", "-c", command], cwd=folder, env=script, **pipes)
        ended[name] = (done.returncode, done.stdout, done.stderr)
    return folder, ended


def test_a_reader_that_has_read_enough_is_no_error(shells):
    _, out, err = shells[1]["head"]
    assert re.fullmatch(r"[A-Za-z.,;!? ]+\n141\n", out)
    assert err == ""


def test_a_full_disk_behind_what_is_printed_is_one_line(shells):
    folder, ended = shells
    status, _, err = ended["full"]
    assert status == 2
    assert re.fullmatch(r"quatrains: broke off \(.*No space left on device\): make room, .*\n", err)
    assert not [*folder.glob("full/*")]


@pytest.mark.parametrize("name, status", [("help, closed", 0), ("mistake, closed", 2)])
def test_what_is_closed_is_no_error_and_its_text_goes_nowhere_else(shells, name, status):
    assert shells[1][name] == (status, "", "")


def test_a_closed_standard_error_leaves_nothing_but_verse(shells, first_training):
    status, out, _ = shells[1]["closed"]
    known = {*(first_training[0] / "verses.txt").read_text().lower().replace(",", " , ").split()}
    assert status == 0
    assert len(out.splitlines()) == 2
    assert {*out.split()} <= {*known, "."}


def test_letters_that_the_terminal_lacks_are_question_marks(shells):
    status, out, err = shells[1]["ascii"]
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
    bars = [line for line in text.replace("\r", "\n").splitlines() if "\u2501" in line]
    within = [line for line in bars if "val_loss" not in line]
    assert within
    assert all(len(line) < 80 and "loss: " in line for line in within)
    assert "\u2501" not in first_training[1].stdout


# ==== Ctrl-C ====


@pytest.mark.parametrize("seconds", [0.5, 1.5])
def test_ctrl_c_during_the_imports_is_no_traceback(tmp_path, seconds):
    process = subprocess.Popen(
        [sys.executable, "-X", "importtime", ROOT / "quatrains.py", "--corpus", "none"],
        cwd=tmp_path,
        stderr=subprocess.PIPE,
        text=True,
    )
    for line in process.stderr:
        if line.endswith("| zipfile\n"):  # The last one of the standard library.
            break
    time.sleep(seconds)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == -signal.SIGINT
    assert "Traceback" not in err


def test_a_background_job_whose_shell_ignores_ctrl_c_goes_on_and_kill_ends_it(tmp_path, verses):
    ignoring = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:  # A child begins with what its parent ignores.
        process = start_script(tmp_path, **QUICK | {"runs": 100_000})
    finally:
        signal.signal(signal.SIGINT, ignoring)
    process.send_signal(signal.SIGINT)
    wait_for(process, "Run 1\n")
    process.send_signal(signal.SIGINT)
    wait_for(process, "Run 3\n")
    process.terminate()
    _, err = process.communicate(timeout=20)
    assert (process.returncode, err) == (-signal.SIGTERM, "")
