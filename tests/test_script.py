"""The script as its users run it: whole trainings, bad input, and what it prints where."""

import contextlib
import io
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
from conftest import (
    QUICK,
    ROOT,
    SMALL,
    arguments,
    read_files,
    start_script,
    wait_for,
)

EPOCH = re.compile(
    r"Epoch (\d)/2 - [\d.]+s - loss: ([\d.]+) - acc: ([\d.]+)"
    r" - cross_entropy: [\d.]+ - val_loss: ([\d.]+) - val_acc: ([\d.]+)"
)


def read_scalars(folder):
    """Read back {tag: [(step, value), ...]} from the event file of a folder."""
    import tensorflow as tf
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    assert len(list(folder.iterdir())) == 1
    events = EventAccumulator(str(folder)).Reload()
    return {
        tag: [
            (event.step, float(tf.make_ndarray(event.tensor_proto)))
            for event in events.Tensors(tag)
        ]
        for tag in events.Tags()["tensors"]
    }


@pytest.fixture(scope="module")
def trainings(first_training, tmp_path_factory):
    """The same small training twice in the same folder: as a command, then in a session of ours.

    Gives the folders of both, what both printed, and the files of the first before the second.
    """
    folder = shutil.copytree(
        first_training[0], tmp_path_factory.mktemp("twice"), dirs_exist_ok=True
    )
    before, out = read_files(folder), io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(out):
        patch.chdir(folder)
        assert quatrains.main(arguments(**SMALL, corpus="verses.txt")) == 0
    return sorted((folder / "logs").iterdir()), (first_training[1], out.getvalue()), before


def test_a_training_prints_its_story(first_training):
    done = first_training[1]
    assert done.returncode == 0
    assert done.stderr == ""
    out = done.stdout
    assert out.startswith("Settings:\n")
    assert "gru_dim = 8" in out
    assert "verses.txt has 60 quatrains" in out
    assert out.count("The first epoch compiles the training step") == 1
    samples = re.search(r"\nRun 0\nTrain on (\d+) samples, validate on (\d+) samples\n", out)
    tokens = int(re.search(r"(\d,\d{3}) tokens", out)[1].replace(",", ""))
    assert int(samples[1]) == int(0.95 * (tokens - 2 * 60))
    assert int(samples[1]) + int(samples[2]) == tokens - 2 * 60
    out, saved = out.rstrip("\n").rsplit("\n\n", 1)
    quote = re.compile(r'\n\nLongest quote: \d words, "[a-z ]+" \(\d+\)\.')
    assert len(quote.findall(out)) == 2
    out = quote.sub("", out)
    assert re.match(r"logs.\d{6}-\d{6}.checkpoint\.keras holds the training", saved)
    first, second = re.split(r"\nRun \d\n", out)[1:]
    for run in (first, second):
        assert len(EPOCH.findall(run)) == 2
        verses = run.split("\n\n")[1:]
        assert len(verses) == 3
        for verse in verses:
            assert verse.strip().count("\n") <= 3
            assert not re.search(r"\s[.,;!?]|mars|rome", verse)


def test_the_curves_are_unbroken_and_what_was_printed(trainings):
    (first, _), (done, _), _ = trainings
    assert re.fullmatch(r"\d{6}-\d{6}", first.name)
    train, validation = read_scalars(first / "train"), read_scalars(first / "validation")
    assert set(train) == set(validation) == {"loss", "acc", "cross_entropy"}
    columns = [train["loss"], train["acc"], validation["loss"], validation["acc"]]
    assert [[step for step, _ in column] for column in columns] == [[0, 1, 2, 3]] * 4
    logged = zip(*([value for _, value in column] for column in columns), strict=True)
    printed = [tuple(map(float, row[1:])) for row in EPOCH.findall(done.stdout)]
    for row, values in zip(printed, logged, strict=True):
        assert row == pytest.approx(values, abs=5.1e-5)


def test_a_seed_repeats_a_training_exactly(trainings):
    _, (first, second), _ = trainings
    told = [
        re.sub(r"\d+\.\ds|\d{6}-\d{6}", "", out).partition("Corpus:")[2]
        for out in (first.stdout, second)
    ]
    assert told[0] == told[1] != ""
    assert len(EPOCH.findall(second)) == 4


def test_a_second_training_touches_nothing_of_the_first(trainings):
    (first, second), _, before = trainings
    after = read_files(first.parent.parent)
    assert {path: after[path] for path in before} == before
    assert {path.name for path in second.iterdir()} >= {"train", "validation", "checkpoint.keras"}
    assert {path for path in after if path not in before} == {*read_files(second)}


def test_raw_prints_token_lines(tmp_path, capsys, monkeypatch, verses):
    monkeypatch.chdir(tmp_path)
    assert (
        quatrains.main(arguments(**QUICK | {"runs": 1, "raw": True, "quatrains_per_run": 40})) == 0
    )
    lines = capsys.readouterr().out.splitlines()[-44:-4]
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
    assert quatrains.main(arguments(**SMALL | {"corpus": "bad.txt", "phrase_len": 6})) == 2
    message = capsys.readouterr().err
    assert message.count("\n") == 1
    assert reason in message
    assert "corpus" in message
    assert sorted(tmp_path.rglob("*")) == before


KNOWN_BEFOREHAND = {
    "words that the corpus lacks": (
        {"opening": "Mars and the kings"},
        "opening has words that the corpus never uses: and (near it: ",
    ),
    "an opening as long as a quatrain": (
        {"opening": "king Mars river", "max_words": 3},
        "opening has 3 words: set max_words to more",
    ),
    "phrases longer than quatrains": ({"phrase_len": 30}, "the corpus gives 0 samples, too few"),
    "no such corpus": ({"corpus": "other.txt"}, "corpus other.txt cannot be read"),
    "no such vectors": ({"glove": "vectors.txt"}, "GloVe file vectors.txt cannot be used"),
}


@pytest.mark.parametrize("case", KNOWN_BEFOREHAND)
def test_what_can_be_known_is_said_before_anything_is_made(
    case, tmp_path, capsys, monkeypatch, verses
):
    changes, reason = KNOWN_BEFOREHAND[case]
    monkeypatch.chdir(tmp_path)
    assert quatrains.main(arguments(**QUICK | changes)) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith(f"quatrains: {reason}")
    assert captured.err.count("\n") == 1
    assert "Run 0" not in captured.out
    assert [*tmp_path.iterdir()] == [verses]


@pytest.fixture
def no_patience():
    """Fails a test that hangs."""
    before = signal.signal(signal.SIGALRM, lambda *_: pytest.fail("it hangs"))
    signal.alarm(60)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@pytest.mark.parametrize("logs", ["taken", "taken/logs", "/proc/logs", "dangling"])
def test_logs_that_cannot_be_written_are_refused(
    tmp_path, capsys, monkeypatch, verses, logs, no_patience
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "taken").write_text("")
    (tmp_path / "dangling").symlink_to("a disk that is not mounted")
    assert quatrains.main(arguments(**QUICK | {"logs": logs})) == 2
    message = capsys.readouterr().err
    assert message.startswith(f"quatrains: logs {logs} cannot be written (")
    assert message.count("\n") == 1


ODD_CORPORA = {
    "one quatrain": "the king of Rome shall see the moon, " * 8,
    "a very long quatrain": "the king of Rome shall see the moon, " * 2_500,
    "no final newline": "the king of Rome\nshall see the moon.\n\n" * 30 + "the moon",
}


@pytest.mark.parametrize("case", ODD_CORPORA)
def test_odd_corpora_are_trained_on(case, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "odd.txt").write_text(ODD_CORPORA[case])
    assert quatrains.main(arguments(**QUICK | {"corpus": "odd.txt", "runs": 1})) == 0
    told = {
        "one quatrain": "has 1 quatrains, 72 tokens, 8 distinct words",
        "a very long quatrain": "has 1 quatrains, 22,500 tokens, 8 distinct words",
        "no final newline": "has 31 quatrains, 272 tokens, 8 distinct words",
    }
    assert told[case] in capsys.readouterr().out


def test_importing_the_script_does_nothing(tmp_path):
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
    "full": "$SCRIPT --generate 2 > /dev/full",
    "ascii": f"PYTHONIOENCODING=ascii $SCRIPT {' '.join(arguments(**QUICK))} --corpus \xe9.txt",
    "no GPU": f"CUDA_VISIBLE_DEVICES= $SCRIPT {' '.join(arguments(**QUICK))} --use-gpu --logs gpu",
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
    script.pop("TF_CPP_MIN_LOG_LEVEL", None)
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    started = {
        name: subprocess.Popen(["bash", "-c", command], cwd=folder, env=script, **pipes)
        for name, command in COMMANDS.items()
    }
    ended = {name: process.communicate() for name, process in started.items()}
    return folder, {name: (started[name].returncode, *ended[name]) for name in ended}


def test_a_reader_that_has_read_enough_is_no_error(shells):
    _, out, err = shells[1]["head"]
    assert re.fullmatch(r"[A-Za-z.,;!? ]+\n141\n", out)
    assert err == ""


FULL = re.compile(r"quatrains: broke off \(.*No space left on device\): make room, .*\n")


def test_a_full_disk_behind_what_is_written_is_one_line(shells):
    status, _, err = shells[1]["full"]
    assert status == 2
    assert FULL.fullmatch(err)


def test_a_full_disk_behind_what_a_training_prints_is_one_line(tmp_path, verses):
    done = subprocess.run(
        [sys.executable, ROOT / "quatrains.py", *arguments(**QUICK)],
        cwd=tmp_path,
        stdout=open("/dev/full", "w"),  # noqa: SIM115, PTH123
        stderr=subprocess.PIPE,
        text=True,
    )
    assert done.returncode == 2
    assert FULL.fullmatch(done.stderr)
    assert [*tmp_path.iterdir()] == [verses]


def test_letters_that_the_terminal_lacks_are_question_marks(shells):
    status, out, err = shells[1]["ascii"]
    assert (status, err) == (0, "")
    assert "Corpus: ?.txt has 60 quatrains" in out
    assert re.search(r"\b[Kk]\?ng\b", out.partition("Run 0")[2])
    assert "?il" in out


def test_a_gpu_asked_for_and_not_there_is_one_line_and_touches_nothing(shells):
    folder, ended = shells
    status, _, err = ended["no GPU"]
    assert status == 2
    assert err.startswith("quatrains: use_gpu = True, but TensorFlow sees no GPU, for it lacks ")
    assert err.count("\n") == 1
    assert not (folder / "gpu").exists()


def test_an_epoch_shows_a_bar_in_a_terminal_and_not_in_a_pipe(tmp_path, verses):
    """The bar of an epoch that takes long: here, any time at all."""
    code = (
        "import sys; sys.path.insert(0, sys.argv.pop(1)); import quatrains\n"
        "quatrains.PATIENCE = 0; sys.exit(quatrains.main(sys.argv[1:]))"
    )
    settings = QUICK | {"runs": 1, "epochs_per_run": 1, "batch_size": 64}
    ours, theirs = pty.openpty()
    terminal, pipe = (
        subprocess.Popen(
            [sys.executable, "-c", code, ROOT, *arguments(**settings)],
            cwd=tmp_path,
            stdout=stdout,
            stderr=stdout,
            env=os.environ | {"TERM": "xterm"},
        )
        for stdout in (theirs, subprocess.PIPE)
    )
    os.close(theirs)
    shown = b""
    with contextlib.suppress(OSError):  # The way a terminal ends.
        while part := os.read(ours, 4096):
            shown += part
    printed = pipe.communicate()[0].decode()
    assert (terminal.wait(), pipe.returncode) == (0, 0)
    text = re.sub(r"\x1b\[\d+m|\x08", "", shown.decode())
    lines = text.replace("\r", "\n").splitlines()
    assert any(re.fullmatch(r" *8/21 .* \d+s \d+m?s/step", line) for line in lines)
    assert any(line.startswith("Epoch 1/1 - ") for line in lines)
    assert "step" not in printed.partition("Run 0")[2]
    assert "\nEpoch 1/1 - " in printed


# ==== Ctrl-C ====


@pytest.mark.parametrize("module", ["argparse", "json", "numpy._core.multiarray", "numpy"])
def test_ctrl_c_during_the_imports_is_no_traceback(tmp_path, module):
    process = subprocess.Popen(
        [sys.executable, "-X", "importtime", ROOT / "quatrains.py", "--corpus", "none"],
        cwd=tmp_path,
        stderr=subprocess.PIPE,
        text=True,
    )
    for line in process.stderr:
        if line.endswith(f"| {module}\n") or line.rsplit("|")[-1].strip() == module:
            process.send_signal(signal.SIGINT)
            break
    _, err = process.communicate(timeout=20)
    assert process.returncode in (130, -signal.SIGINT)
    assert "Traceback" not in err


def test_ctrl_c_while_tensorflow_is_loaded_is_one_line(tmp_path, verses):
    started = [start_script(tmp_path, **QUICK) for _ in range(4)]
    for process in started:
        wait_for(process, "Corpus: ")
        time.sleep(0.3)
        process.send_signal(signal.SIGINT)
    for process in started:
        out, err = process.communicate(timeout=20)
        assert (process.returncode, err) == (130, "\nquatrains: stopped\n")
        assert "Run 0" not in out


def test_a_background_job_whose_shell_ignores_ctrl_c_goes_on(tmp_path, verses):
    ignoring = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:  # A child begins with what its parent ignores.
        process = start_script(tmp_path, **QUICK | {"runs": 100_000})
    finally:
        signal.signal(signal.SIGINT, ignoring)
    process.send_signal(signal.SIGINT)
    wait_for(process, "Run 1\n")
    process.send_signal(signal.SIGINT)
    wait_for(process, "Run 20\n")
    process.terminate()
    _, err = process.communicate(timeout=20)
    assert (process.returncode, err) == (143, "\nquatrains: stopped\n")
