"""The script as its users run it: whole trainings, and what bad input gets."""

import re
import subprocess
import sys

import pytest

import quatrains
from conftest import ROOT, SMALL, arguments, run_script, write_verses

EPOCH = re.compile(
    r"Epoch (\d)/2 - [\d.]+s - loss: ([\d.]+) - acc: ([\d.]+)"
    r" - val_loss: ([\d.]+) - val_acc: ([\d.]+)"
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
def trainings(tmp_path_factory):
    """The same small training twice, into the same folder."""
    folder = tmp_path_factory.mktemp("trainings")
    write_verses(folder / "verses.txt")
    settings = SMALL | {"corpus": "verses.txt"}
    return folder, [run_script(folder, **settings) for _ in range(2)]


def test_a_training_prints_its_story(trainings):
    _, (done, _) = trainings
    assert done.returncode == 0
    assert done.stderr == ""
    out = done.stdout
    assert out.startswith("Settings:\n")
    assert "gru_dim = 8" in out
    assert "verses.txt has 60 quatrains" in out
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


def test_scalars_are_what_was_printed(trainings):
    folder, (_, done) = trainings
    printed = [tuple(map(float, row[1:])) for row in EPOCH.findall(done.stdout)]
    logged = []
    for run in (0, 1):
        train = read_scalars(folder / "logs" / str(run) / "train")
        validation = read_scalars(folder / "logs" / str(run) / "validation")
        assert set(train) == set(validation) == {"loss", "acc"}
        columns = [*(train[tag] for tag in ("loss", "acc"))]
        columns += [validation[tag] for tag in ("loss", "acc")]
        for column in columns:
            assert [step for step, _ in column] == [2 * run, 2 * run + 1]
        logged += [tuple(value for _, value in row) for row in zip(*columns, strict=True)]
    assert len(printed) == len(logged) == 4
    for row, values in zip(printed, logged, strict=True):
        assert row == pytest.approx(values, abs=5.1e-5)


def test_a_seed_repeats_a_training_exactly(trainings):
    _, outputs = trainings
    told = [
        re.sub(r"\d+\.\ds|The logs and.*\n|\d{6}-\d{6}", "", done.stdout).partition("Corpus:")[2]
        for done in outputs
    ]
    assert told[0] == told[1] != ""
    assert len(EPOCH.findall(outputs[0].stdout)) == 4


def test_an_earlier_trainings_logs_are_kept(trainings):
    folder, (_, second) = trainings
    moved = re.search(r"earlier training are now in (logs\S+)\.\n", second.stdout)[1]
    assert re.fullmatch(r"logs.earlier.\d{6}-\d{6}", moved)
    earlier = {path.name for path in (folder / moved).iterdir()}
    assert earlier == {"0", "1", (folder / moved).name}
    assert read_scalars(folder / moved / "1" / "train")["loss"][0][0] == 2


def test_raw_prints_token_lines(tmp_path, capsys, monkeypatch, verses):
    monkeypatch.chdir(tmp_path)
    settings = SMALL | {"corpus": verses, "runs": 1, "raw": True, "quatrains_per_run": 40}
    assert quatrains.main(arguments(**settings)) == 0
    lines = capsys.readouterr().out.splitlines()[-44:-4]
    known = set(quatrains.load_corpus(verses).words[1:])
    assert all(set(line.split()) <= known for line in lines)
    assert any(" ." in line or " ," in line for line in lines)


BAD_CORPORA = {
    "missing": (None, "cannot be read (No such file or directory)"),
    "a folder": (..., "cannot be read (Is a directory)"),
    "empty": (b"", "has no words"),
    "comments": (b"# only\n# comments\n", "has no words"),
    "punctuation": (b"... ,,, !!!\n\n--- ***", "too few"),
    "binary": (bytes(range(128)) * 9, "is no text"),
    "cp1252": ("quatrains \xe9gar\xe9s".encode("cp1252"), "`iconv -f cp1252 -t utf-8`"),
    "utf-16": ("the king of Rome".encode("utf-16"), "`iconv -f utf-16 -t utf-8`"),
    "utf-16 without a mark": ("the king of Rome".encode("utf-16-le"), "is no text"),
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


ODD_CORPORA = {
    "one quatrain": "the king of Rome shall see the moon, " * 8,
    "a very long quatrain": "the king of Rome shall see the moon, " * 12_500,
    "Windows line ends": "the king of Rome\r\nshall see the moon.\r\n\r\n" * 30,
    "old Macintosh line ends": "the king of Rome\rshall see the moon.\r\r" * 30,
    "a byte order mark": "\ufeff" + "the king of Rome\nshall see the moon.\n\n" * 30,
    "no final newline": "the king of Rome\nshall see the moon.\n\n" * 30 + "the moon",
}


@pytest.mark.parametrize("case", ODD_CORPORA)
def test_odd_corpora_are_read_as_they_are_meant(case, tmp_path, capsys):
    path = tmp_path / "odd.txt"
    path.write_bytes(ODD_CORPORA[case].encode())
    corpus = quatrains.load_corpus(path)
    assert len(corpus.texts) == {"no final newline": 31}.get(case, 1 if "quatrain" in case else 30)
    words = {*"the king of rome shall see moon . ,".split()}
    assert {*corpus.words[1:]} <= words
    assert len(corpus.words) >= 9


def test_one_long_quatrain_is_trained_on(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "long.txt").write_text(ODD_CORPORA["a very long quatrain"])
    assert quatrains.main(arguments(**SMALL | {"corpus": "long.txt", "runs": 1})) == 0
    assert "has 1 quatrains, 112,500 tokens, 8 distinct words" in capsys.readouterr().out


def test_a_gpu_asked_for_and_not_there_touches_nothing(tmp_path, capsys, monkeypatch, verses):
    import tensorflow as tf

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(tf.config, "list_physical_devices", lambda kind: [])
    (tmp_path / "logs" / "0").mkdir(parents=True)
    assert quatrains.main(arguments(**SMALL | {"corpus": verses, "use_gpu": True})) == 2
    message = capsys.readouterr().err
    assert message.startswith("quatrains: use_gpu = True, but TensorFlow sees no GPU")
    assert message.count("\n") == 1
    assert (tmp_path / "logs" / "0").is_dir()


@pytest.mark.parametrize("logs", ["taken", "taken/logs", "/proc/logs"])
def test_logs_that_cannot_be_written_are_refused(tmp_path, capsys, monkeypatch, verses, logs):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "taken").write_text("")
    assert quatrains.main(arguments(**SMALL | {"corpus": verses, "logs": logs})) == 2
    message = capsys.readouterr().err
    assert message.startswith(f"quatrains: logs {logs} cannot be written (")
    assert message.count("\n") == 1


def test_importing_the_script_does_nothing(tmp_path):
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            "import sys; sys.path.insert(0, sys.argv[1]); import quatrains",
            ROOT,
        ],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert list(tmp_path.iterdir()) == []
