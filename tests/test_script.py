"""The script as its users run it: whole experiments, bad input, and what it prints where."""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from functools import partial

import pytest

import quatrains
from conftest import QUICK, ROOT, SMALL, arguments, read_files, run, run_script

EPOCH = r"Epoch (\d)/4\n.*/step - acc: N - loss: N - val_acc: N - val_loss: N\n"
EPOCH = EPOCH.replace("N", r"\d[\d.e+-]*")
SAVED = r"Saved (logs.\d{6}-\d{6}-2017.checkpoint\.keras), up to the last completed run.\n"


def test_an_experiment_prints_settings_epochs_quatrains_and_its_checkpoint(first_training):
    folder, done = first_training
    assert (done.returncode, done.stderr) == (0, "")
    out, _, end = done.stdout.rpartition("\n\n")
    settings = quatrains.make_settings(**SMALL, corpus="verses.txt")
    assert out.startswith(f"{settings}\nCorpus: verses.txt has 60 quatrains, ")
    assert 'Model: "quatrains"' in out
    assert (folder / re.match(SAVED, end)[1]).is_file()
    tokens = re.search(r"quatrains, (\d,\d{3}) tokens, 28 distinct words\.\n", out)[1]
    windows = int(tokens.replace(",", "")) - 2 * 60
    samples = int(0.95 * windows)
    sizes = f"Train on {samples} samples, validate on {windows - samples} samples"
    quote = re.compile(r'\n\nLongest quote: \d words, "[a-z ]+" \(\d+\)\.')
    assert len(quote.findall(out)) == 2
    runs = re.split(rf"\nRun \d\n{sizes}\n", quote.sub("", out))[1:]
    assert re.findall(EPOCH, "".join(runs)) == ["1", "2", "3", "4"]
    for printed in runs:
        verses = printed.split("\n\n")[1:]
        assert len(verses) == 3
        for verse in verses:
            assert verse.strip().count("\n") <= 3
            assert not re.search(r"\s[.,;!?]|mars|rome", verse)


def test_a_second_experiment_repeats_the_first_and_leaves_its_files(first_training, tmp_path):
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


def test_raw_prints_one_line_of_tokens_per_quatrain(tmp_path, capsys, monkeypatch, verses):
    monkeypatch.chdir(tmp_path)
    assert run(**QUICK | {"runs": 1, "raw": True, "quatrains_per_run": 40}) == 0
    lines = capsys.readouterr().out.partition("\n\nLongest quote")[0].splitlines()[-40:]
    known = set(quatrains.index_corpus(quatrains.read_corpus(verses)).vocabulary[1:])
    assert all(line and set(line.split()) <= known for line in lines)
    assert any(" ." in line or " ," in line for line in lines)


# ==== Errors before the first run ====

FILES = {
    "comments.txt": b"# only\n# comments\n",
    "cp1252.txt": "quatrains \xe9gar\xe9s".encode("cp1252"),
    "small.txt": b"one two three four five six seven",
    "short.txt": b"one, two\n\n" * 50,
    "taken": b"",
    "table.txt": b"nr,verse\n1,One two three\n" * 50,
}
REFUSED = [
    ({"corpus": "nowhere.txt"}, "No such file or directory: 'nowhere.txt'): set corpus to a UTF-8"),
    ({"corpus": "."}, "Is a directory: '.'): set corpus to a UTF-8 text file"),
    ({"corpus": "comments.txt"}, "corpus comments.txt contains no words: set corpus to another"),
    ({"corpus": "cp1252.txt"}, "in position 10: invalid continuation byte): set corpus to a UTF-8"),
    ({"corpus": "small.txt"}, "has 7 tokens, gives 8 samples, but needs 20: lower phrase_len = 1"),
    (
        {"corpus": "short.txt", "phrase_len": 6},
        "corpus short.txt, whose longest quatrain has 3 tokens, gives 0 samples, but needs 20: "
        "lower phrase_len = 6, or set corpus to a longer text",
    ),
    ({"corpus": "table.txt"}, "corpus table.txt looks like JSON, CSV or HTML: set corpus to plain"),
    ({"prompt": "Mars and"}, "prompt has 'and', which is not in the corpus (similar: "),
    ({"prompt": "king Mars river", "max_length": 3}, "prompt has 3 tokens: shorten it, or "),
    ({"glove": "vectors.txt"}, "GloVe file vectors.txt cannot be used"),
    ({"log_dir": "taken"}, "'taken/"),
    ({"log_dir": "/proc/logs"}, "'/proc/logs'"),
    ({"log_dir": "dangling"}, "'dangling'"),
]


@pytest.mark.parametrize(("changes", "reason"), REFUSED, ids=str)
def test_what_cannot_be_trained_is_one_line_and_creates_no_file(
    tmp_path, capsys, monkeypatch, verses, changes, reason
):
    monkeypatch.chdir(tmp_path)
    for name, content in FILES.items():
        (tmp_path / name).write_bytes(content)
    (tmp_path / "dangling").symlink_to("a disk that is not mounted")
    before = {*tmp_path.rglob("*")}
    assert run(**QUICK | changes) == 2
    out, err = capsys.readouterr()
    assert re.fullmatch(rf"quatrains: .*{re.escape(reason)}.*\n", err)
    assert "Run 0" not in out
    assert {*tmp_path.rglob("*")} == before


# ==== Pipes and terminals ====


def shell(folder, command):
    """Run a shell command, in which $SCRIPT is the script and $TRAIN trains one short run."""
    script = f"{sys.executable} {ROOT / 'quatrains.py'}"
    train = " ".join([script, *arguments(**QUICK | {"runs": 1, "batch_size": 64})])
    env = os.environ | {"SCRIPT": script, "TRAIN": train}
    command = ["bash", "-c", command]
    done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True)
    return done.returncode, done.stdout, done.stderr


def test_a_pipe_that_its_reader_closes_is_no_error(first_training):
    command = "$SCRIPT --generate 1000 | head -1; echo ${PIPESTATUS[0]}"
    _, out, err = shell(first_training[0], command)
    assert re.fullmatch(r"[A-Za-z.,;!? ]+\n141\n", out)
    assert err == ""


def test_output_to_a_full_disk_is_one_line(tmp_path, verses):
    status, _, err = shell(tmp_path, "$TRAIN > /dev/full")
    assert status == 2
    assert re.fullmatch(r"quatrains: stopped by .*No space left on device \(check disk .*\)\n", err)


PTY = f"TERM=xterm {sys.executable} -c 'import pty, sys; pty.spawn(sys.argv[1:])'"


def test_a_terminal_shows_what_it_can_and_a_file_gets_utf_8(tmp_path, verses):
    text = verses.read_text().replace("king", "k\xe9ng").replace("Mars", "\u0152il")
    (tmp_path / "\xe9.txt").write_text(text, encoding="utf-8")
    status, out, _ = shell(tmp_path, f"PYTHONIOENCODING=ascii {PTY} $TRAIN --corpus \xe9.txt")
    assert status == 0
    assert "Corpus: ?.txt has 60 quatrains" in out
    assert re.search(r"\b[Kk]\?ng\b", out.partition("Run 0")[2])
    assert "?il" in out
    command = "PYTHONIOENCODING=cp1250 $SCRIPT --generate 99 --seed 1 --raw > new.txt"
    assert shell(tmp_path, command)[0] == 0
    words = {*(tmp_path / "new.txt").read_text(encoding="utf-8").split()}
    assert {"k\xe9ng", "\u0153il"} <= words


def test_without_standard_streams_it_trains_and_an_error_has_its_status(tmp_path, verses):
    closed = "<&- >&- 2>&-"
    command = f"$TRAIN {closed}; echo $?; $SCRIPT --seed -1 {closed}; echo $?"
    assert shell(tmp_path, command)[1] == "0\n2\n"
    assert [*tmp_path.glob("logs/*/checkpoint.keras")]


SESSIONS = {
    "ipython": "-m IPython --simple-prompt --no-banner --quick --colors=NoColor",
    "python -i": "-i $NAME --seed -1",
}


@pytest.mark.parametrize("options", SESSIONS.values(), ids=SESSIONS)
def test_an_error_in_an_interactive_terminal_leaves_it_usable(tmp_path, options):
    options = options.replace("$NAME", str(ROOT / "quatrains.py"))
    lines = "" if "-i $" in options else f"%run {ROOT / 'quatrains.py'} --seed -1\n"
    lines += "print('later', 6 * 7)\n"
    command = f"{sys.executable} {options} 2>&1"
    env = os.environ | {"IPYTHONDIR": str(tmp_path)}
    run = partial(subprocess.run, shell=True, cwd=tmp_path, env=env, capture_output=True, text=True)
    out = run(command, input=lines).stdout
    assert "quatrains: seed = -1 is invalid: expected None or a whole number from 0 to 429" in out
    assert "later 42" in out
    assert "Traceback" not in out


def test_a_terminal_shows_a_progress_bar_and_a_pipe_one_line_per_epoch(
    tmp_path, verses, first_training
):
    status, out, _ = shell(tmp_path, f"{PTY} $TRAIN")
    text = re.sub(r"\x1b\[\d+m|\x08", "", out).replace("\r", "\n").partition("Run 0")[2]
    within = [line for line in text.split("\n") if "\u2501" in line and "val_loss" not in line]
    assert (status, bool(within)) == (0, True)
    assert all(len(line) < 80 and "loss: " in line for line in within)
    assert "\u2501" not in first_training[1].stdout.partition("Run 0")[2]


@pytest.mark.parametrize("seconds", [0.5, 1.5])
def test_ctrl_c_during_the_imports_is_one_line(tmp_path, seconds):
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
    lines = [line for line in err.splitlines() if not line.startswith("import time: ")]
    assert lines == ["quatrains: stopped"]
