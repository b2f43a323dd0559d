"""Trainings that last: checkpoints, going on, side by side, stopping, full disks, writing."""

import contextlib
import io
import itertools
import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
import tracemalloc
import zipfile
from datetime import datetime, timedelta

import numpy as np
import pytest

import quatrains
from conftest import (
    QUICK,
    ROOT,
    SMALL,
    arguments,
    read_curve,
    read_files,
    run_script,
    start_script,
    wait_for,
    write_verses,
)


def run(**settings):
    return quatrains.main(arguments(**settings))


def checkpoint_of(folder):
    (path,) = (folder / "logs").glob("*/checkpoint.keras")
    return path


def weights_of(path):
    """Weights and optimizer of a checkpoint, as plain Keras loads them."""
    import keras

    model = keras.models.load_model(path)
    return [*model.get_weights(), *(variable.numpy() for variable in model.optimizer.variables)]


@pytest.fixture(scope="module")
def trained(first_training, tmp_path_factory):
    """A folder in which two runs and then, with nothing else said, two more were trained."""
    folder = tmp_path_factory.mktemp("resumed")
    shutil.copytree(first_training[0] / "logs", folder / "logs")
    done = run_script(folder, resume=True, runs=4)
    assert done.returncode == 0, done.stderr
    return folder, [first_training[1].stdout, done.stdout]


@pytest.fixture(scope="module")
def quick(tmp_path_factory):
    """A folder with a training of two quick runs."""
    folder = tmp_path_factory.mktemp("quick")
    write_verses(folder / "verses.txt")
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(io.StringIO()):
        patch.chdir(folder)
        assert run(**QUICK) == 0
    return folder


@pytest.fixture
def copied(quick, tmp_path, monkeypatch):
    """A copy of that folder, as the working directory."""
    shutil.copytree(quick, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


# ==== Going on ====


def test_two_runs_and_two_resumed_are_four_runs(trained, tmp_path, monkeypatch, capsys):
    folder, (first, second) = trained
    assert re.findall(r"\nRun (\d+)\n", first + second) == ["0", "1", "2", "3"]
    assert f"Going on after run 1 from {checkpoint_of(folder).relative_to(folder)}, " in second
    write_verses(tmp_path / "verses.txt")
    monkeypatch.chdir(tmp_path)
    assert run(**SMALL | {"corpus": "verses.txt", "runs": 4}) == 0
    epochs = re.compile(r" - loss.*")
    parts = epochs.findall(first + second)
    assert parts == epochs.findall(capsys.readouterr().out)
    assert len(parts) == 8
    ours, theirs = weights_of(checkpoint_of(folder)), weights_of(checkpoint_of(tmp_path))
    for one, other in zip(ours, theirs, strict=True):
        assert np.array_equal(one, other)


def test_what_stands_otherwise_in_the_file_is_named(trained, copied, capsys):
    line = re.search(r"A training keeps what it began with, though here (.*)\.\n", trained[1][1])
    assert {*line[1].split(", ")} == {
        "embedding_dim was 8 and is 300",
        "gru_dim was 8 and is 128",
        "batch_size was 64 and is 512",
        "epochs_per_run was 2 and is 5",
        "seed was 7 and is None",
        "corpus was 'verses.txt' and is 'data/quatrains.txt'",
        "glove was 'none' and is 'auto'",
    }
    assert run(**QUICK | {"resume": True, "runs": 3}) == 0
    out = capsys.readouterr().out
    assert "Going on after run 1" in out
    assert "keeps what it began with" not in out


def test_a_checkpoint_suffices_by_itself(trained, first_training):
    path = checkpoint_of(trained[0])
    checkpoint, corpus = quatrains.read_checkpoint(path)
    assert (checkpoint.runs, checkpoint.seed) == (4, 7)
    assert checkpoint.settings["gru_dim"] == 8
    read = quatrains.read_corpus(first_training[0] / "verses.txt")
    assert [*zip(corpus.numbers, corpus.texts, strict=True)] == read
    assert np.random.PCG64().state.keys() == checkpoint.random_state.keys()
    assert [file.name for file in path.parent.glob("*.keras")] == ["checkpoint.keras"]


def test_curves_go_on_where_they_stopped(trained):
    (folder,) = (trained[0] / "logs").iterdir()
    epochs = {step: step for step in range(8)}
    assert read_curve(folder / "train", "loss").keys() == epochs.keys()
    losses = read_curve(folder / "validation", "loss")
    assert losses.keys() == epochs.keys()
    assert read_curve(folder, "quote").keys() == {1, 3, 5, 7}
    best = read_curve(folder, "best/val_loss")
    assert best == {end: min(losses[step] for step in range(end + 1)) for end in (1, 3, 5, 7)}


OTHERWISE = {
    "the model": (
        {"gru_dim": 9, "dropout": 0.25},
        "gru_dim was 8 and is 9, dropout was 0.0 and is 0.25: leave that out",
    ),
    "the corpus": ({"corpus": "other.txt"}, "corpus was 'verses.txt' and is 'other.txt'"),
    "the seed": ({"seed": 8}, "seed was 7 and is 8"),
    "the vectors": ({"glove": "auto", "embedding_dim": 50}, "glove was 'none' and is 'auto'"),
}


@pytest.mark.parametrize("case", OTHERWISE)
def test_what_the_command_line_says_otherwise_is_refused_by_name(copied, capsys, case):
    changes, told = OTHERWISE[case]
    write_verses(copied / "other.txt")
    before = read_files(copied)
    assert run(resume=True, runs=9, **changes) == 2
    message = capsys.readouterr().err
    assert message.startswith("quatrains: the training cannot be resumed, for ")
    assert told in message
    assert message.count("\n") == 1
    assert read_files(copied) == before


REFUSED = {
    "runs that it has": ({"runs": 2}, "the training has its 2 runs already: set runs higher"),
    "an opening": ({"runs": 9, "opening": "the pope"}, "opening has words that the corpus never"),
    "no such logs": ({"runs": 9, "logs": "none"}, "logs none has no checkpoint"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_resumed_is_left_as_it_is(copied, capsys, case):
    changes, told = REFUSED[case]
    before = read_files(copied)
    assert run(resume=True, **changes) == 2
    message = capsys.readouterr().err
    assert message.startswith(f"quatrains: {told}")
    assert message.count("\n") == 1
    assert read_files(copied) == before


# ==== Which training is meant ====


def test_logs_may_name_one_training(copied, capsys):
    first = checkpoint_of(copied).parent
    later = shutil.copytree(first, first.with_name("991231-235959"))
    before = read_files(later)
    assert run(generate=1) == 0
    assert "\nFrom logs/991231-235959/checkpoint.keras. " in capsys.readouterr().err
    for name in (f"logs/{first.name}", f"{first}/"):
        assert run(generate=1, logs=name) == 0
        assert f"{first.name}/checkpoint.keras. " in capsys.readouterr().err
    assert run(resume=True, runs=3, logs=f"logs/{first.name}") == 0
    assert f"Going on after run 1 from logs/{first.name}/" in capsys.readouterr().out
    assert read_files(later) == before


def test_folders_of_other_names_are_neither_taken_nor_touched(copied, capsys):
    ours = checkpoint_of(copied).parent
    for name in ("my-best", "2024", "earlier", "991231-235959-old", "old-991231-235959"):
        shutil.copytree(ours, ours.with_name(name))
    (copied / "logs" / "2024" / "diary.txt").write_text("mine")
    before = {path: data for path, data in read_files(copied).items() if ours not in path.parents}
    assert run(generate=1) == 0
    assert f"\nFrom logs/{ours.name}/" in capsys.readouterr().err
    assert run(resume=True, runs=3) == 0
    assert f"Going on after run 1 from logs/{ours.name}/" in capsys.readouterr().out
    assert run(**QUICK) == 0
    after = read_files(copied)
    assert {path: after[path] for path in before} == before


def test_a_training_stopped_in_its_first_run_leaves_the_earlier_to_go_on(copied, capsys):
    earlier = checkpoint_of(copied).parent
    process = start_script(copied, **QUICK | {"epochs_per_run": 100_000})
    wait_for(process, "Epoch 1/")
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=20)
    assert (process.returncode, err) == (130, "\nquatrains: stopped\n")
    assert "checkpoint" not in out
    assert len([*(copied / "logs").iterdir()]) == 2
    assert run(resume=True, runs=3) == 0
    assert f"Going on after run 1 from logs/{earlier.name}/" in capsys.readouterr().out
    assert run(generate=1) == 0
    assert f"\nFrom logs/{earlier.name}/" in capsys.readouterr().err


def test_what_kills_have_left_does_no_harm(copied, capsys):
    path = checkpoint_of(copied)
    path.with_name("unfinished-1.keras").write_bytes(b"half")
    shutil.copy(path, path.with_name(f"unfinished-{os.getpid()}.keras"))
    assert run(generate=1) == 0
    assert run(resume=True, runs=3) == 0
    assert quatrains.read_checkpoint(path)[0].runs == 3
    assert [*path.parent.glob("*.keras")] == [path]


def test_unreadable_files_of_another_training_are_its_own_problem(copied, capsys):
    good = checkpoint_of(copied).parent
    bad = shutil.copytree(good, good.with_name("991231-235959"))
    (bad / "words.tsv").write_text("")
    (bad / "projector_config.pbtxt").write_bytes(b"\xff{")
    (bad / "checkpoint.keras").write_bytes(b"garbage")
    before = read_files(copied)
    assert run(**QUICK) == 0
    after = read_files(copied)
    assert {path: after[path] for path in before} == before
    capsys.readouterr()
    for mode in ({"generate": 1}, {"resume": True}):
        assert run(**mode) == 2
        told = "quatrains: checkpoint logs/991231-235959/checkpoint.keras is broken, or none of"
        assert capsys.readouterr().err.startswith(told)
    assert run(generate=1, logs=f"logs/{good.name}") == 0


# ==== Side by side ====


def test_two_trainings_at_once_are_as_one_alone(quick, tmp_path):
    write_verses(tmp_path / "verses.txt")
    for process in [start_script(tmp_path, **QUICK) for _ in range(2)]:
        _, err = process.communicate(timeout=120)
        assert (process.returncode, err) == (0, "")
    paths = [*(tmp_path / "logs").glob("*/checkpoint.keras")]
    assert len(paths) == 2
    alone = weights_of(checkpoint_of(quick))
    for path in paths:
        assert read_curve(path.parent / "train", "loss").keys() == {0, 1, 2, 3}
        for ours, theirs in zip(weights_of(path), alone, strict=True):
            assert np.array_equal(ours, theirs)


def test_three_that_start_in_one_second_get_three_folders(tmp_path):
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); import quatrains\n"
        "from pathlib import Path; print('ready', flush=True); input()\n"
        "print(quatrains.make_folder(Path('logs')).name)"
    )
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    command = [sys.executable, "-c", code, ROOT]
    started = [subprocess.Popen(command, cwd=tmp_path, **pipes) for _ in range(3)]
    for process in started:
        wait_for(process, "ready")
    time.sleep(1.1 - time.time() % 1)
    now = datetime.now()
    for process in started:
        process.stdin.write("\n")
        process.stdin.flush()
    names = [process.communicate()[0].strip() for process in started]
    seconds = [(now + timedelta(seconds=late)).strftime("%y%m%d-%H%M%S") for late in range(3)]
    assert sorted(names) == seconds == sorted(path.name for path in (tmp_path / "logs").iterdir())


def test_of_two_resumes_one_goes_on_whatever_starts_beside_it(copied, capsys):
    path = checkpoint_of(copied)
    started = [start_script(copied, resume=True, runs=100_000) for _ in range(2)]
    try:
        while not (ended := [process for process in started if process.poll() is not None]):
            time.sleep(0.05)
        (refused,) = ended
        (going,) = [process for process in started if process is not refused]
        _, err = refused.communicate()
        assert refused.returncode == 2
        told = f"quatrains: a training is going on in {path.parent.relative_to(copied)}: "
        assert err.startswith(told)
        assert err.count("\n") == 1
        wait_for(going, "Run 3\n")

        def files():
            return {file for file in path.parent.rglob("*") if "unfinished" not in file.name}

        before = files()
        written = run_script(copied, generate=4, raw=True)
        assert (written.returncode, written.stdout.count("\n")) == (0, 4)
        assert written.stderr.startswith("\nFrom logs/")
        assert run(**QUICK) == 0
        assert files() == before

        wait_for(going, f"Run {quatrains.read_checkpoint(path)[0].runs + 1}\n")
        assert going.poll() is None
        assert run(resume=True, runs=100_000, logs=path.parent) == 2
        assert "a training is going on in" in capsys.readouterr().err
    finally:
        for process in started:
            process.kill()
            process.communicate()
    runs = quatrains.read_checkpoint(path)[0].runs
    assert runs > 3
    assert run(resume=True, runs=runs + 1, logs=path.parent) == 0
    assert f"Going on after run {runs - 1} " in capsys.readouterr().out


# ==== Checkpoints that are broken, or someone else's ====


def rewrite(path, change):
    """Change the members of a zip, a dictionary of their bytes, in place."""
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    change(members)
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)


def with_fields(**changes):
    """Change fields of what stands beside the model; `...` leaves one out."""

    def change(members):
        fields = json.loads(members["quatrains.json"])
        for name, value in changes.items():
            value = value(fields[name]) if callable(value) else value
            fields = {k: v for k, v in fields.items() if k != name}
            fields |= {} if value is ... else {name: value}
        members["quatrains.json"] = json.dumps(fields)

    return lambda path: rewrite(path, change)


def with_model(*layers, size=1):
    """Put another model in the place of ours, made of these layers' names and parameters."""

    def spoil(path):
        import keras

        model = keras.Sequential([keras.Input((size,), dtype="int32")])
        for name, *given in layers:
            model.add(getattr(keras.layers, name)(*given))
        model.compile("rmsprop", "mse")
        model.save("other.keras")
        with zipfile.ZipFile("other.keras") as archive:
            others = {name: archive.read(name) for name in archive.namelist()}
        rewrite(path, lambda members: members.update(others))

    return spoil


def with_huge_weights(path):
    """Declare the embedding to have eight billion numbers, of which none is written."""
    import h5py

    def change(members):
        with h5py.File(io.BytesIO(members["model.weights.h5"]), "r+") as file:
            variables = file["layers/embedding/vars"]
            del variables["0"]
            variables.create_dataset("0", (10**9, 8), "f4", chunks=(10**4, 8), compression="gzip")
            file.flush()
            members["model.weights.h5"] = file.id.get_file_image()

    rewrite(path, change)


def with_bomb(name):
    """Put a member in its place that is 100 KB in the file and 100 MB outside."""

    def spoil(path):
        rewrite(path, lambda members: members.pop(name, None))
        with zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr(name, bytes(100 * 2**20))

    return spoil


def without(settings, name):
    return {key: value for key, value in settings.items() if key != name}


WORDS = 29
EMBEDDED = (("Embedding", WORDS, 4), ("Flatten",))
SPOILT = {
    "cut short": lambda path: path.write_bytes(path.read_bytes()[:-5000]),
    "empty": lambda path: path.write_bytes(b""),
    "garbage": lambda path: path.write_bytes(b"garbage" * 1000),
    "a folder": lambda path: (path.unlink(), path.mkdir()),
    "of Keras alone": lambda path: rewrite(path, lambda members: members.pop("quatrains.json")),
    "no model": lambda path: rewrite(path, lambda members: members.pop("config.json")),
    "broken weights": lambda path: rewrite(
        path, lambda members: members.update({"model.weights.h5": b"\x89HDF" + bytes(2000)})
    ),
    "no JSON": lambda path: rewrite(path, lambda members: members.update({"quatrains.json": b"{"})),
    "a number": lambda path: rewrite(
        path, lambda members: members.update({"quatrains.json": b"1"})
    ),
    "deep JSON": lambda path: rewrite(
        path, lambda members: members.update({"quatrains.json": b"[" * 10**5})
    ),
    "a field too few": with_fields(seed=...),
    "a field too many": with_fields(version=2),
    "runs in words": with_fields(runs="two"),
    "a seed below 0": with_fields(seed=-1),
    "a best in words": with_fields(best={"val_loss": "low"}),
    "no settings": with_fields(settings=[]),
    "a setting too few": with_fields(settings=lambda settings: without(settings, "gru_dim")),
    "no phrase_len": with_fields(settings=lambda settings: without(settings, "phrase_len")),
    "a setting in words": with_fields(settings=lambda settings: settings | {"batch_size": "many"}),
    "a setting too large": with_fields(settings=lambda settings: settings | {"batch_size": 10**12}),
    "no generator": with_fields(random_state={}),
    "another generator": with_fields(random_state=lambda state: state | {"state": {"state": "x"}}),
    "no quatrains": with_fields(quatrains=[]),
    "quatrains without numbers": with_fields(quatrains=["the king", "the queen"]),
    "quatrains of numbers": with_fields(quatrains=[[1, 2]]),
    "another corpus": with_fields(quatrains=[["1", "The king of Rome.\n" * 50]]),
    "one number a phrase": with_model(*EMBEDDED, ("Dense", 1)),
    "one word too many": with_model(*EMBEDDED, ("Dense", WORDS + 1, "softmax")),
    "words for each place": with_model(("Embedding", WORDS, 4), ("Dense", WORDS, "softmax")),
    "no probabilities": with_model(*EMBEDDED, ("Dense", WORDS, "softmax"), ("Rescaling", -1)),
    "a model of more words": with_model(*EMBEDDED, ("Dense", WORDS, "softmax"), size=3),
    "code": with_model(
        *EMBEDDED, ("Lambda", lambda x: __import__("os").mkdir("ran") or x, (WORDS,))
    ),
    "huge weights": with_huge_weights,
    "a bomb beside the model": with_bomb("quatrains.json"),
    "a bomb of weights": with_bomb("model.weights.h5"),
    "a bomb that nobody reads": with_bomb("assets/readme.txt"),
}


@pytest.mark.parametrize("how", SPOILT)
def test_bad_checkpoints_are_one_line_and_nothing_is_touched(copied, capsys, how):
    path = checkpoint_of(copied).relative_to(copied)
    SPOILT[how](path)
    before = read_files(copied)
    large = "bomb" in how or "huge" in how
    for mode in ({"resume": True, "runs": 9}, {"generate": 2}):
        if large:
            tracemalloc.start()
        assert run(**mode) == 2
        if large:
            assert tracemalloc.get_traced_memory()[1] < 50 * 2**20
            tracemalloc.stop()
        message = capsys.readouterr().err
        assert message.startswith(
            f"quatrains: checkpoint {path} is broken, or none of this script ("
        )
        assert message.count("\n") == 1, message
        assert "without resume and generate" in message
        assert read_files(copied) == before
        assert not (copied / "ran").exists()


def test_a_missing_checkpoint_is_one_line(copied, capsys):
    checkpoint_of(copied).unlink()
    before = read_files(copied)
    for mode in ({"resume": True, "runs": 9}, {"generate": 2}):
        assert run(**mode) == 2
        message = capsys.readouterr().err
        assert message.startswith(
            "quatrains: logs logs has no checkpoint, which comes after a first"
        )
        assert message.count("\n") == 1
        assert read_files(copied) == before


# ==== Stopping ====


def test_a_stopped_training_can_go_on(tmp_path, capsys, monkeypatch):
    started = {}
    for number in (signal.SIGINT, signal.SIGTERM):
        folder = tmp_path / number.name
        folder.mkdir()
        write_verses(folder / "verses.txt")
        started[number] = folder, start_script(folder, **QUICK | {"runs": 100_000})
    for number, (folder, process) in started.items():
        told = wait_for(process, "Run 2")
        process.send_signal(number)
        out, err = process.communicate(timeout=20)
        assert (process.returncode, err) == (128 + number, "\nquatrains: stopped\n")
        assert "checkpoint.keras holds the training up to its last whole run: go on" in out
        last = int(re.findall(r"\nRun (\d+)\n", told + out)[-1])
        path = checkpoint_of(folder)
        runs = quatrains.read_checkpoint(path)[0].runs
        assert runs in (last, last + 1)
        monkeypatch.chdir(folder)
        assert run(resume=True, runs=runs + 1) == 0
        out = capsys.readouterr().out
        assert f"Going on after run {runs - 1}" in out
        assert re.findall(r"\nRun (\d+)\n", out) == [str(runs)]
        assert [*read_curve(path.parent / "train", "loss")] == [*range(2 * runs + 2)]


def test_a_second_signal_ends_it_at_once(tmp_path):
    """While the first one is being obeyed, here by a step that takes long to return."""
    code = (
        "import signal, sys, time; sys.path.insert(0, sys.argv[1]); import quatrains\n"
        "def slow(*_):\n"
        "    try:\n"
        "        print('ready', flush=True); time.sleep(60)\n"
        "    finally:\n"
        "        print('closing', flush=True); time.sleep(60)\n"
        "quatrains.run_training = slow\n"
        "signal.signal(signal.SIGINT, quatrains.stop)\n"
        "sys.exit(quatrains.main([]))"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(ROOT)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    for told in ("ready", "closing"):
        wait_for(process, told)
        process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=20)
    assert (process.returncode, err) == (-signal.SIGINT, "")


# ==== What goes wrong on the way ====


def test_a_loss_that_is_no_number_stops_the_training(copied, capsys):
    before = read_files(copied / "logs")
    vectors = copied / "vectors.txt"
    vectors.write_text("".join(f"{word}{' 3e38' * 50}\n" for word in ("king", "eagle")))
    assert run(**QUICK | {"glove": vectors, "embedding_dim": 50, "dropout": 0.5}) == 2
    assert re.fullmatch(
        r"quatrains: the loss has become (nan|inf): set learning_rate below 0\.003 and .*\n",
        capsys.readouterr().err,
    )
    after = read_files(copied / "logs")
    assert {path: after[path] for path in before} == before
    assert len([*copied.glob("logs/*/checkpoint.keras")]) == 1


def test_a_loss_that_is_no_number_leaves_the_last_good_checkpoint(copied, capsys, monkeypatch):
    path = checkpoint_of(copied)
    build_epoch = quatrains.build_epoch

    def bad_epoch(*given):
        epoch = build_epoch(*given)
        return lambda rng: epoch(rng) | ({"loss": float("nan")} if next(calls) > 2 else {})

    calls = iter(range(100))
    monkeypatch.setattr(quatrains, "build_epoch", bad_epoch)
    assert run(resume=True, runs=9) == 2
    captured = capsys.readouterr()
    assert "the loss has become nan: " in captured.err
    assert (
        f"\n{path.relative_to(copied)} holds the training up to its last whole run" in captured.out
    )
    assert quatrains.read_checkpoint(path)[0].runs == 3


class Disk:
    """A small disk that can be filled to the last byte and file, or nearly."""

    def __init__(self, folder):
        self.folder = folder

    def fill(self, spare=0, files=None):
        """Leave some kilobytes, and so many new files if a number is given."""
        with contextlib.suppress(OSError), (self.folder / "filler").open("wb", 0) as filler:
            while filler.write(bytes(4096)):
                pass
        size = (self.folder / "filler").stat().st_size
        os.truncate(self.folder / "filler", max(0, size - 1024 * spare))
        if files is not None:
            made = []
            with contextlib.suppress(OSError):
                for number in itertools.count():
                    made.append(self.folder / f"filler-{number}")
                    made[-1].touch()
            for path in made[len(made) - 1 - files :]:
                path.unlink(missing_ok=True)

    def resize(self, size):
        subprocess.run(["mount", "-o", f"remount,size={size}", self.folder], check=True)

    def empty(self):
        for path in self.folder.glob("filler*"):
            path.unlink()


@pytest.fixture
def disk(quick, tmp_path, monkeypatch):
    """A disk of two megabytes with a training on it, as the working directory."""
    folder = tmp_path / "disk"
    folder.mkdir()
    options = "size=2m,nr_inodes=300"
    if subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", folder]).returncode:
        pytest.skip("only root can mount a disk")
    shutil.copytree(quick, folder, dirs_exist_ok=True)
    monkeypatch.chdir(folder)
    yield Disk(folder)
    os.chdir("/")
    subprocess.run(["umount", folder], check=True)


BROKE_OFF = re.compile(
    r"quatrains: (broke off \(.*[Nn]o space left on device.*\): make room, .*"
    r"|logs logs cannot be written \(No space left on device\): .*)\n"
)


def live_on(disk, capfd, before):
    """Make room, resume, write and train anew; what was trained before (its files) stands still."""
    disk.empty()
    after = read_files(disk.folder / "logs")
    assert {path: after.get(path) for path in before} == before
    paths = sorted(disk.folder.glob("logs/*/checkpoint.keras"))
    runs = quatrains.read_checkpoint(paths[-1])[0].runs
    capfd.readouterr()
    assert run(resume=True, runs=runs + 1) == 0
    assert f"Going on after run {runs - 1} from {paths[-1].relative_to(disk.folder)}" in (
        capfd.readouterr().out
    )
    assert [*read_curve(paths[-1].parent / "train", "loss")] == [*range(2 * runs + 2)]
    assert run(generate=1) == 0
    assert f"\nFrom {paths[-1].relative_to(disk.folder)}" in capfd.readouterr().err
    assert run(**QUICK | {"runs": 1}) == 0
    assert len([*disk.folder.glob("logs/*/checkpoint.keras")]) == len(paths) + 1
    assert not [*disk.folder.glob("logs/*/unfinished-*")]


STEPS = {
    "the training's folder": ("make_folder", {"files": 0}),
    "the lock": ("locked", {"files": 0}),
    "the event files": ("train_runs", {"files": 2}),
    "the graph": ("log_training", {}),
    "an epoch": ("log_epoch", {}),
    "a run": ("log_run", {}),
    "the embedding": ("log_embedding", {}),
    "the projector": ("log_embedding", {"files": 1}),
    "the checkpoint": ("save_checkpoint", {}),
    "half a checkpoint": ("save_checkpoint", {"spare": 16}),
}


def mostly_long(steps, *short):
    """All of these steps with --long, and without it those that are named."""
    return [step if step in short else pytest.param(step, marks=pytest.mark.long) for step in steps]


@pytest.mark.parametrize(
    "step",
    mostly_long(
        STEPS, "the training's folder", "the event files", "the embedding", "half a checkpoint"
    ),
)
def test_a_disk_that_is_full_at_a_step_harms_no_training(disk, capfd, monkeypatch, step):
    name, spare = STEPS[step]
    before = read_files(disk.folder / "logs")
    function = getattr(quatrains, name)
    with monkeypatch.context() as patch:
        patch.setattr(quatrains, name, lambda *given: (disk.fill(**spare), function(*given))[1])
        assert run(**QUICK) == 2
    assert BROKE_OFF.fullmatch(capfd.readouterr().err)
    assert not [*disk.folder.glob("logs/*/unfinished-*")]
    live_on(disk, capfd, before)


@pytest.mark.parametrize(
    "step", mostly_long(["an epoch", "a run", "the projector", "half a checkpoint"], "a run")
)
def test_a_disk_that_is_full_while_resumed_keeps_the_checkpoint(disk, capfd, monkeypatch, step):
    name, spare = STEPS[step]
    path = checkpoint_of(disk.folder)
    function, calls = getattr(quatrains, name), itertools.count()

    def fill_in_second_run(*given):
        if next(calls) == (2 if step == "an epoch" else 1):
            disk.fill(**spare)
        return function(*given)

    with monkeypatch.context() as patch:
        patch.setattr(quatrains, name, fill_in_second_run)
        assert run(resume=True, runs=9) == 2
    assert BROKE_OFF.fullmatch(capfd.readouterr().err)
    assert quatrains.read_checkpoint(path)[0].runs == 3
    live_on(disk, capfd, {})


@pytest.mark.long
@pytest.mark.parametrize("spare", range(0, 240, 8))
def test_a_disk_with_little_room_harms_no_training(disk, capfd, spare):
    before = read_files(disk.folder / "logs")
    disk.fill(spare)
    status = run(**QUICK)
    err = capfd.readouterr().err
    assert BROKE_OFF.fullmatch(err) if status == 2 else (status, err) == (0, "")
    live_on(disk, capfd, before)


def test_a_disk_that_fills_up_keeps_the_last_checkpoint(disk, capfd):
    disk.resize("400k")
    full = run_script(disk.folder, **QUICK | {"runs": 100_000})
    assert full.returncode == 2
    assert BROKE_OFF.fullmatch(full.stderr)
    unfinished = int(re.findall(r"\nRun (\d+)\n", full.stdout)[-1])
    assert unfinished > 3
    path = max(disk.folder.glob("logs/*/checkpoint.keras"))
    assert quatrains.read_checkpoint(path)[0].runs in (unfinished, unfinished + 1)
    assert f"\n{path.relative_to(disk.folder)} holds the training up to" in full.stdout
    disk.resize("2m")
    live_on(disk, capfd, {})


def test_files_that_may_not_grow_are_one_line(copied, capsys):
    """The limit lets logs through and stops checkpoints, which start larger."""
    before = read_files(copied / "logs")
    _, hard = limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, hard))
    try:
        assert run(**QUICK | {"gru_dim": 100, "embedding_dim": 200}) == 2
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert re.fullmatch(
        r"quatrains: broke off \(.*too large.*\): make room, .*\n", capsys.readouterr().err
    )
    assert {*copied.rglob("*.keras")} == {path for path in before if path.suffix == ".keras"}


# ==== Writing without training ====


def test_quatrains_are_written_from_the_checkpoint(copied, capsys):
    (copied / "verses.txt").unlink()
    before = read_files(copied)
    process = run_script(copied, generate=20, seed=5)
    assert process.returncode == 0
    told = (
        rf"\nFrom {checkpoint_of(copied).relative_to(copied)}\. "
        r'Longest quote: \d words, "[a-z ]+" \(\d+\)\.\n'
    )
    assert re.fullmatch(told, process.stderr)
    quatrains_written = process.stdout.rstrip("\n").split("\n\n")
    assert 15 <= len(quatrains_written) <= 20
    assert all(verse.count("\n") <= 3 for verse in quatrains_written)
    assert re.search(r"\b(Mars|Rome)\b", process.stdout)
    assert not re.search(r"\b(mars|rome)\b", process.stdout)
    assert run(generate=20, seed=5) == 0
    assert capsys.readouterr().out == process.stdout
    assert run(generate=20, seed=5, raw=True) == 0
    assert capsys.readouterr().out.count("\n") == 20
    assert read_files(copied) == before
