"""The script as its users run it: whole experiments, bad input, and what it prints where."""

import io
import os
import re
import shutil
import subprocess
import sys
from contextlib import redirect_stdout

import pytest

import quatrains
from conftest import QUICK, ROOT, SMALL, arguments, read_files, run, run_script

EPOCH = r"Epoch (\d)/4\n.*/step - acc: N - loss: N - val_acc: N - val_loss: N\n"
EPOCH = EPOCH.replace("N", r"\d[\d.e+-]*")
SAVED = (
    r"(logs.\d{6}-\d{6}-2017.checkpoint\.keras) contains the model as of the last completed run\.\n"
    r"To generate: --generate 20\. To continue: --resume \(resume = True\)\.\n"
    r"If all runs are done, also increase --runs\.\n"
)


def test_an_experiment_prints_settings_epochs_quatrains_and_its_checkpoint(first_training):
    folder, done = first_training
    assert (done.returncode, done.stderr) == (0, "")
    out, _, end = done.stdout.rpartition("\n\n")
    settings = quatrains.make_settings(**SMALL, corpus="verses.txt")
    assert out.startswith(f"{settings}\nCorpus: verses.txt has 60 quatrains, ")
    assert 'Model: "quatrains"' in out
    assert (folder / re.fullmatch(SAVED, end)[1]).is_file()
    tokens = re.search(r"quatrains, with a total of (\d,\d{3}) words .*\(28 distinct\)\.\n", out)[1]
    windows = int(tokens.replace(",", "")) - 2 * 60
    samples = int(0.95 * windows)
    sizes = f"Train on {samples} samples, validate on {windows - samples} samples"
    quote = re.compile(r'\n\nLongest quote: (?:1 word|[2-9] words), "[a-z ]+" \(\d+\)\.')
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


LOG_DIR = "set it to a folder in which files can be created"
REFUSED = [
    ({"corpus": "."}, "Is a directory: '.'): save it as UTF-8, or set corpus to another text file"),
    (
        {"corpus": "short.txt", "phrase_len": 6},
        "corpus short.txt gives 0 samples, but at least 20 are needed: set corpus to a longer "
        "text, or lower phrase_len (now 6)",
    ),
    ({"prompt": "king Mars river", "max_length": 3}, "prompt has 3 tokens: shorten it, or "),
    ({"glove": "."}, "GloVe file . cannot be read ([Errno 21] Is a directory: '.'): set glove = "),
    ({"glove": "vectors.txt"}, "No such file or directory: 'vectors.txt'): set glove = \"none\""),
    ({"log_dir": "taken"}, "log_dir taken cannot be used ([Errno 20] Not a directory: 'taken/"),
    ({"log_dir": "/proc/logs"}, f"'/proc/logs'): {LOG_DIR}"),
    ({"log_dir": "dangling"}, f"'dangling'): {LOG_DIR}"),
    ({"log_dir": "long" * 99}, "cannot be used ([Errno 36] File name too long: 'long"),
]


@pytest.mark.parametrize(("changes", "reason"), REFUSED, ids=str)
def test_bad_input_is_one_line_and_no_file(tmp_path, capsys, verses, changes, reason):
    (tmp_path / "taken").touch()
    (tmp_path / "short.txt").write_text("one, two\n\n" * 50)
    (tmp_path / "dangling").symlink_to("a disk that is not mounted")
    before = {*tmp_path.rglob("*")}
    assert run(**QUICK | changes) == 2
    out, err = capsys.readouterr()
    assert re.fullmatch(rf"quatrains: .*{re.escape(reason)}.*\n", err)
    assert "Run 0" not in out
    assert {*tmp_path.rglob("*")} == before


def shell(folder, command):
    """Run a shell command, in which $SCRIPT is the script and $TRAIN trains one short run."""
    script = f"{sys.executable} {ROOT / 'quatrains.py'}"
    train = " ".join([script, *arguments(**QUICK | {"runs": 1, "batch_size": 64})])
    env = os.environ | {"SCRIPT": script, "TRAIN": train}
    del env["TF_CPP_MIN_LOG_LEVEL"]
    done = subprocess.run(
        ["bash", "-c", command], cwd=folder, env=env, capture_output=True, text=True
    )
    return done.returncode, done.stdout, done.stderr


def test_a_pipe_that_its_reader_closes_is_no_error(first_training):
    command = "$SCRIPT --generate 1000 | head -1; echo ${PIPESTATUS[0]}"
    _, out, err = shell(first_training[0], command)
    assert re.fullmatch(r"[A-Za-z.,;!? ]+\n141\n", out)
    assert err == ""  # Without lines of TensorFlow.


def test_an_error_of_the_system_keeps_its_traceback(tmp_path, verses):
    status, _, err = shell(tmp_path, "$TRAIN > /dev/full")
    assert status == 1
    assert re.fullmatch(r"Traceback (?s:.*)\nOSError: .* No space left on device\n", err)


def test_from_standard_input_it_takes_arguments_and_the_environment(first_training):
    folder, _ = first_training
    command = f"{sys.executable} - --raw --generate 40 --seed 1 < {ROOT / 'quatrains.py'}"
    status, out, err = shell(folder, f"TF_USE_LEGACY_KERAS=1 TF_CPP_MIN_LOG_LEVEL=0 {command}")
    assert (status, out.count("\n")) == (0, 40)
    corpus = quatrains.index_corpus(quatrains.read_corpus(folder / "verses.txt"))
    assert all(line and {*line.split()} <= {*corpus.vocabulary[1:]} for line in out.splitlines())
    assert re.search(r"(?m)^I0000 00:00:\d", err)  # TensorFlow writes such lines at import.


def test_a_program_runs_it_and_captures_its_output(tmp_path, monkeypatch, verses):
    script = ROOT / "quatrains.py"
    monkeypatch.setattr(sys, "argv", [str(script), *arguments(**QUICK | {"name": "captured"})])
    with redirect_stdout(io.StringIO()) as out:
        exec(script.read_text(encoding="utf-8"), {"__name__": "__main__"})
    assert re.search(r"\n1/1 - .* - val_loss: (?s:.*)\nLongest quote: ", out.getvalue())
    assert [*tmp_path.glob("logs/*-captured/checkpoint.keras")]


def test_another_backend_of_keras_is_one_line(tmp_path):
    # No other backend is installed.
    program = "import keras; keras.config.backend = lambda: 'torch'; import quatrains"
    _, out, _ = shell(tmp_path, f'PYTHONPATH={ROOT} {sys.executable} -c "{program}" 2>&1')
    message = "quatrains: Keras was already imported with the backend torch: restart Python"
    assert out.splitlines()[-1] == message
    assert "Traceback" not in out


PTY = f"TERM=xterm {sys.executable} -c 'import pty, sys; pty.spawn(sys.argv[1:])'"


def test_a_terminal_shows_what_it_can_and_a_file_gets_utf_8(tmp_path, verses):
    text = verses.read_text().replace("king", "k\xe9ng").replace("Mars", "\u0152il")
    (tmp_path / "\xe9.txt").write_text(text, encoding="utf-8")
    settings = "--corpus \xe9.txt --prompt 'k\xe9ng \u0152il'"
    status, out, _ = shell(tmp_path, f"PYTHONIOENCODING=ascii {PTY} $TRAIN {settings}")
    assert status == 0
    assert "Corpus: ?.txt has 60 quatrains" in out
    assert out.partition("Run 0")[2].count("\nK?ng ?il") == 3
    command = "PYTHONIOENCODING=cp1250 $SCRIPT --generate 99 --seed 1 --raw > new.txt"
    assert shell(tmp_path, command)[0] == 0
    words = {*(tmp_path / "new.txt").read_text(encoding="utf-8").split()}
    assert {"k\xe9ng", "\u0153il"} <= words


def test_a_terminal_gets_a_progress_bar_and_a_pipe_lines(tmp_path, verses, first_training):
    status, out, _ = shell(tmp_path, f"{PTY} $TRAIN")
    text = re.sub(r"\x1b\[\d+m|\x08", "", out).replace("\r", "\n").partition("Run 0")[2]
    within = [line for line in text.split("\n") if "\u2501" in line and "val_loss" not in line]
    assert (status, bool(within)) == (0, True)
    assert all(len(line) < 80 and "loss: " in line for line in within)
    assert "\u2501" not in first_training[1].stdout.partition("Run 0")[2]
