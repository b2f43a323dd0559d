"""Trainings that last: checkpoints, going on, side by side, stopping, full disks, writing."""

import contextlib
import functools
import io
import itertools
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import zipfile
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta
from pathlib import Path

import pytest

import quatrains
from conftest import QUICK, read_curve, read_files, run, start_script, wait_for, write_verses
from quatrains import Logs, keras, np

GO_ON = {"resume": True, "runs": 9}
long = functools.partial(pytest.param, marks=pytest.mark.long)


def checkpoint_of(folder=Path(), name="*"):
    (path,) = folder.glob(f"logs/{name}/checkpoint.keras")
    return path


def load(path, **settings):
    return quatrains.load_checkpoint(path, quatrains.Settings(**settings))


def assert_alike(*paths):
    """Weights and optimizers of checkpoints are one to the bit, as plain Keras loads them."""
    models = [keras.models.load_model(path) for path in paths]
    states = [[*model.get_weights(), *model.optimizer.variables] for model in models]
    for weights in zip(*states, strict=True):
        assert all(np.array_equal(weights[0], weight) for weight in weights)


def refused(capsys, told, **settings):
    """Run what is refused: with one line, and nothing is touched."""
    before = read_files(Path())
    capsys.readouterr()
    assert run(**settings) == 2
    message = capsys.readouterr().err
    assert message.startswith(f"quatrains: {told}")
    assert message.count("\n") == 1
    assert read_files(Path()) == before


def kept(path, runs):
    """A training has so many runs in its checkpoint, and of others there is nothing."""
    assert [*Path("logs").iterdir(), *Path("logs").rglob("*.keras")] == [path.parent, path]
    assert load(path).runs == runs


def before_call(patch, number, where, name, act):
    """Do something just before a function is called for so many a time, from 0."""
    function, calls = getattr(where, name), itertools.count()

    def acting(*given, **named):
        if next(calls) == number:
            act()
        return function(*given, **named)

    patch.setattr(where, name, acting)


def run_in(folder, **settings):
    """Run the script in a folder, in this process; return what it prints."""
    out = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(out):
        patch.chdir(folder)
        assert run(**settings) == 0
    return out.getvalue()


@pytest.fixture(scope="module")
def quick(tmp_path_factory):
    """A folder with a training of two quick runs."""
    folder = tmp_path_factory.mktemp("quick")
    write_verses(folder / "verses.txt")
    run_in(folder, **QUICK)
    return folder


@pytest.fixture
def copied(quick, tmp_path, monkeypatch):
    """A copy of that folder, as the working directory; returns the checkpoint."""
    shutil.copytree(quick, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return checkpoint_of()


# ==== Going on ====

# With several steps an epoch, and dropouts.
RECIPES = {
    "2017": QUICK | {"phrase_len": 2, "dropout": 0.5, "batch_size": 256},
    "verse": QUICK | {"recipe": "verse", "phrase_len": 3, "dropout": 0.5},
}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """By recipe: a folder, and what was printed in it by two runs, two resumed, and four.

    Of 2017 by commands, with XLA, of which the first and the last train side by side.
    """
    outs = {}
    for recipe, settings in RECIPES.items():
        folder = tmp_path_factory.mktemp(recipe)
        write_verses(folder / "verses.txt")
        both = [settings | {"name": "halves"}, settings | {"name": "whole", "runs": 4}]
        if recipe == "2017":
            started = [start_script(folder, **each) for each in both]
            first, four = [process.communicate()[0] for process in started]
        else:
            first, four = [run_in(folder, **each) for each in both]
        logs = checkpoint_of(folder, "*-halves").parent
        second = run_in(folder, resume=True, runs=4, quatrains_per_run=3, logs=logs)
        outs[recipe] = folder, first, second, four
    return outs


def runs_from(number, out):
    """What is printed from a run on, but for times and the checkpoint's path."""
    runs = out.partition(f"\nRun {number}\n")[2].rpartition("checkpoint.keras")[0]
    return re.sub(r"- \d+s - \d+m?s/step -|.*-\d{6}-\w+/$", "", runs)


@pytest.mark.parametrize("recipe", RECIPES)
def test_two_runs_and_two_resumed_are_four_runs(trained, recipe):
    """Also where they are trained beside others."""
    folder, first, second, four = trained[recipe]
    assert re.findall(r"\nRun (\d+)\n", first + second) == ["0", "1", "2", "3"]
    assert re.findall(r"Epoch (\d)/8\n\d+/\d+ - .*\bval_loss: \d", four) == [*"12345678"]
    halves, whole = checkpoint_of(folder, "*-halves"), checkpoint_of(folder, "*-whole")
    assert second.startswith(f"Going on after run 1 with the model saved in {halves}.\n")
    assert runs_from(2, second) == runs_from(2, four) != ""
    assert_alike(halves, whole)
    for path in (halves, whole):
        for half in ("train", "validation"):
            assert [*read_curve(path.parent / half, "loss")] == [*range(1, 9)]
        assert [*read_curve(path.parent, "quote")] == [2, 4, 6, 8]


def test_plain_keras_loads_and_measures_checkpoints_of_both_recipes(trained, tmp_path):
    """In a process that knows nothing of the script; so the metrics are Keras's own."""
    given, told = [], []
    for recipe, (folder, _, _, out) in trained.items():
        path = checkpoint_of(folder, "*-whole")
        prophet = load(path)
        phrases, targets, _ = quatrains.make_samples(prophet.corpus, prophet.settings)[1]
        np.savez(tmp_path / f"{recipe}.npz", phrases, targets)
        given += [path, tmp_path / f"{recipe}.npz"]
        told += re.findall(r"val_acc: (\S+) - val_loss: (\S+)\n", out)[-1]
    code = (
        "import sys, numpy, keras\n"
        "for path, data in zip(sys.argv[1::2], sys.argv[2::2]):\n"
        "    phrases, targets = numpy.load(data).values()\n"
        "    model = keras.models.load_model(path)\n"
        "    figures = model.evaluate(phrases, targets, verbose=0, return_dict=True)\n"
        "    print(figures['acc'], figures['loss'])\n"
        "assert 'quatrains' not in sys.modules\n"
    )
    done = subprocess.run([sys.executable, "-c", code, *given], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    measured = [float(figure) for figure in done.stdout.split()]
    assert measured == pytest.approx([float(figure) for figure in told], abs=6e-5)


def test_a_checkpoint_suffices_by_itself(copied):
    alone = Path("elsewhere/alone/checkpoint.keras")
    alone.parent.mkdir(parents=True)
    shutil.copy(copied, alone)
    copied.with_name("unfinished.keras").write_bytes(b"left by a kill")
    assert run(**QUICK | {"resume": True, "runs": 3}) == 0  # What it has may be said again.
    kept(copied, 3)
    Path("verses.txt").unlink()
    assert run(generate=2, logs=alone.parent) == 0
    assert run(resume=True, runs=3, logs=alone.parent) == 0
    assert_alike(copied, alone)


def test_a_training_without_a_seed_keeps_its_own(verses, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    unseeded = {name: value for name, value in QUICK.items() if name != "seed"} | {"runs": 1}
    for name in ("one", "other"):
        assert run(**unseeded, name=name) == 0
    one, other = checkpoint_of(name="*-one"), checkpoint_of(name="*-other")
    assert load(one).seed != load(other).seed
    assert run(resume=True, runs=2, logs=one.parent) == 0
    assert run(**QUICK | {"seed": load(one).seed, "name": "again"}) == 0
    assert_alike(one, checkpoint_of(name="*-again"))


def test_a_recipe_that_was_renamed_since_is_no_obstacle(verses, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with monkeypatch.context() as patch:
        patch.setitem(quatrains.RECIPES, "mine", {"gru_dim": 9, "whole_quatrains": True})
        given = {name: value for name, value in QUICK.items() if name != "gru_dim"}
        assert run(**given, recipe="mine") == 0
    assert run(resume=True, runs=3) == 0
    assert run(generate=1) == 0
    prophet = load(checkpoint_of())
    assert (prophet.runs, prophet.settings.gru_dim) == (3, 9)
    told = f"{prophet.folder} was trained with recipe = 'mine', not '2017': "
    refused(capsys, told, resume=True, runs=4, recipe="2017")


REFUSED = [
    ({"gru_dim": 9}, "{} was trained with gru_dim = 8, not 9: leave that out, or set logs to"),
    ({"embedding_dim": 16, "gru_dim": 8}, "{} was trained with embedding_dim = 8, not 16: "),
    ({"generate": 1, "embedding_dim": 16}, "{} was trained with embedding_dim = 8, not 16: "),
    ({"corpus": "other.txt"}, "{} was trained with corpus = 'verses.txt', not 'other.txt': "),
    ({"recipe": "verse"}, "{} was trained with recipe = '2017', not 'verse': "),
    ({"whole_quatrains": True}, "{} was trained with whole_quatrains = False, not True: "),
    ({"seed": 8}, "{} was trained with seed = 7, not 8: "),
    ({"runs": 2}, "{} has its 2 runs already: set runs higher"),
    ({"opening": "the pope"}, "opening has 'the', which the corpus lacks"),
    ({"logs": "none"}, "none has no checkpoint, which comes after a first run: train first, or"),
    ({"logs": ".", "generate": 1}, ". has no checkpoint, which comes after a first run: "),
]


@pytest.mark.parametrize(("changes", "told"), REFUSED)
def test_what_cannot_go_on_is_refused_by_name_and_left_as_it_is(copied, capsys, changes, told):
    refused(capsys, told.format(copied.parent), **GO_ON | changes)


# ==== Which training is meant ====


def test_the_training_saved_last_is_taken_and_named(copied, capsys):
    """Folders of other names are neither taken nor touched."""
    others = [Path("logs", name) for name in ("my-best", "991231-235959", "old-991231-235959-2017")]
    assert run(**QUICK | {"runs": 1, "name": "my second"}) == 0
    second = checkpoint_of(name="*-my second")
    for other in others:
        shutil.copytree(second.parent, other)
        os.utime(other / "checkpoint.keras")
    before = [read_files(path) for path in (second.parent, *others)]
    assert run(generate=1) == 0
    assert run(generate=1, logs=copied.parent) == 0
    assert run(generate=1, logs=f"{copied.parent.absolute()}/") == 0
    assert run(resume=True, runs=3, logs=copied.parent) == 0
    assert run(resume=True, runs=4) == 0
    assert run(generate=1) == 0
    out, err = capsys.readouterr()
    told = re.findall(r"^From (.+?)\. ", err, re.MULTILINE)
    assert told == [str(path) for path in (second, copied, copied.absolute(), copied)]
    going = re.findall(r"Going on after run (\d) with the model saved in (.+)\.\n", out)
    assert going == [("1", str(copied)), ("2", str(copied))]
    assert [read_files(path) for path in (second.parent, *others)] == before


def test_a_broken_checkpoint_of_another_training_is_its_own_problem(copied, capsys):
    bad = Path(shutil.copytree(copied.parent, "logs/991231-235959-2017"))
    for name in ("words.tsv", "projector_config.pbtxt", "checkpoint.keras"):
        (bad / name).write_bytes(b"\xff{")
    told = f"checkpoint {bad}/checkpoint.keras is broken, or none of this script ("
    refused(capsys, told, generate=1)
    refused(capsys, told, **GO_ON)
    before = read_files(bad)
    assert run(generate=1, logs=copied.parent) == 0
    assert run(**QUICK) == 0
    assert read_files(bad) == before


# ==== Side by side ====


def test_three_that_start_in_one_second_get_three_folders(tmp_path):
    time.sleep(1.1 - time.time() % 1)
    now = datetime.now()
    with ThreadPoolExecutor(3) as pool:
        made = [*pool.map(quatrains.make_folder, [tmp_path] * 3, ["rome"] * 3)]
    seconds = [now + timedelta(seconds=late) for late in range(3)]
    assert sorted(made) == [tmp_path / f"{second:%y%m%d-%H%M%S}-rome" for second in seconds]
    assert sorted(made) == sorted(tmp_path.iterdir())


def test_beside_a_training_others_write_and_train_but_none_resumes_it(copied, capsys, monkeypatch):
    """Here from within it, by one of its callbacks."""
    statuses = []

    def meanwhile():
        before = {*copied.parent.rglob("*")}
        for mode in (GO_ON, {"generate": 2, "raw": True}, QUICK):
            statuses.append(run(**mode))
        assert {*copied.parent.rglob("*")} == before

    before_call(monkeypatch, 1, Logs, "on_epoch_end", meanwhile)
    assert run(resume=True, runs=3) == 0
    assert statuses == [2, 0, 0]
    told = f"quatrains: a training is going on in {copied.parent}: wait for its end, or start a new"
    assert capsys.readouterr().err.startswith(told)
    assert len([*Path("logs").iterdir()]) == 2
    assert run(resume=True, runs=4, logs=copied.parent) == 0


# ==== Checkpoints that are broken, or that the system does not let be read ====


def rewrite(**changes):
    """Put other bytes, or none, in the place of members of a checkpoint."""

    def spoil(path):
        with zipfile.ZipFile(path) as archive:
            members = {name: archive.read(name) for name in archive.namelist()}
        members |= {name.replace("_", "."): data for name, data in changes.items()}
        with zipfile.ZipFile(path, "w") as archive:
            for name, data in members.items():
                if data is not None:
                    archive.writestr(name, data)

    return spoil


def model_of(layer):
    return keras.Sequential([keras.Input((1,), dtype="int32"), layer]).to_json()


# Loaded beside a corpus it would make a folder.
CODE = keras.layers.Lambda(
    lambda words: (__import__("os").system("test -f verses.txt && mkdir ran"), words)[1]
)
SPOILT = {
    "cut short": lambda path: path.write_bytes(path.read_bytes()[:-5000]),
    "empty": lambda path: path.write_bytes(b""),
    "of Keras alone": rewrite(quatrains_json=None),
    "no model": rewrite(config_json=None),
    "broken weights": rewrite(model_weights_h5=b"\x89HDF" + bytes(2000)),
    "another model": rewrite(config_json=model_of(keras.layers.Embedding(9, 9))),
    "code": rewrite(config_json=model_of(CODE)),
    "no JSON": rewrite(quatrains_json=b"{"),
    "deep JSON": rewrite(quatrains_json=b"[" * 10**5),
    "a part too few": rewrite(quatrains_json='[2, {"whole_quatrains": false}, [["1", "a"]]]'),
    "no settings": rewrite(quatrains_json='[2, 7, {}, [["1", "The king of Rome."]]]'),
    "no quatrains": rewrite(quatrains_json='[2, 7, {"whole_quatrains": false}, []]'),
}


@pytest.mark.parametrize("how", SPOILT)
def test_a_spoilt_checkpoint_is_one_line_and_nothing_is_touched(copied, how):
    SPOILT[how](copied)
    before = read_files(Path())
    told = rf"checkpoint {copied} is broken, or none of this script \(.+\): set logs to another .*"
    with pytest.raises(quatrains.InputError) as caught:
        load(copied, **GO_ON)
    assert re.fullmatch(told, str(caught.value))
    assert read_files(Path()) == before
    assert not Path("ran").exists()


@contextlib.contextmanager
def limited(what, size):
    """Let this process have so much of something."""
    before = resource.getrlimit(what)
    resource.setrlimit(what, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(what, before)


def why_not_loaded(path):
    """What the system says of a checkpoint that it does not let be read, or nothing."""
    try:
        load(path)
    except quatrains.InputError as error:
        told = r"checkpoint \S+ cannot be read \(\[Errno \d+\] ([\w ]+): .+\): mend that"
        return re.fullmatch(told, str(error))[1]
    return None


def test_what_the_system_says_is_passed_on(copied):
    assert why_not_loaded(copied) is None
    os.close(first := os.dup(0))
    reasons = []
    while None not in reasons:
        with limited(resource.RLIMIT_NOFILE, first + len(reasons)):
            reasons.append(why_not_loaded(copied))
    assert {*reasons[:-1]} == {"Too many open files"}

    copied.chmod(0)
    os.seteuid(os.geteuid() or 65534)
    try:
        assert why_not_loaded(copied) == "Permission denied"
    finally:
        os.seteuid(os.getuid())

    copied.unlink()
    copied.mkdir()
    assert why_not_loaded(copied) == "Is a directory"


def test_a_full_temporary_folder_is_named(disk, monkeypatch):
    fill()
    monkeypatch.setattr(tempfile, "tempdir", str(Path().absolute()))
    assert why_not_loaded(disk) == "No space left on device"


# ==== Stopping ====


def test_a_stopped_training_can_go_on(tmp_path, monkeypatch, verses, capsys):
    process = start_script(tmp_path, **QUICK | {"runs": 100_000})
    told = wait_for(process, "Run 2")
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=20)
    assert (process.returncode, err) == (130, "quatrains: stopped\n")
    monkeypatch.chdir(tmp_path)
    path = checkpoint_of()
    assert f"{path} holds the training up to its last whole run.\nGo on with" in out
    runs = load(path).runs
    assert runs - int(re.findall(r"\nRun (\d+)\n", told + out)[-1]) in (0, 1)
    assert run(resume=True, runs=runs + 1) == 0
    assert f"Going on after run {runs - 1} with the model" in capsys.readouterr().out
    assert [*read_curve(path.parent / "train", "loss")] == [*range(1, 2 * runs + 3)]


# What is begun, before which call of what it ends, and the KB and files a full disk has left.
STEPS = [
    long((QUICK, 0, quatrains, "make_folder", 0, 0)),
    (QUICK, 0, quatrains, "locked", 0, 0),
    (QUICK, 0, quatrains, "train_runs", 0, 2),
    long((QUICK, 0, Logs, "log_training", 0, 9)),
    long((QUICK, 0, Logs, "log_run", 0, 9)),
    (QUICK, 0, quatrains, "log_embedding", 0, 1),
    (QUICK, 0, quatrains, "save_checkpoint", 16, 9),
    long((GO_ON, 2, Logs, "on_epoch_end", 0, 9)),
    (GO_ON, 1, Logs, "log_run", 0, 9),
    long((GO_ON, 1, quatrains, "save_checkpoint", 0, 9)),
    (GO_ON, 1, quatrains, "save_checkpoint", 16, 9),
]


@pytest.mark.parametrize("step", STEPS)
def test_ctrl_c_keeps_the_last_checkpoint(copied, capsys, monkeypatch, step):
    """And of a new training, which has none, nothing at all."""
    begun, number, where, name, spare, _ = step
    if spare:  # Half saved.
        where, name = Path, "replace"
    before_call(monkeypatch, number, where, name, lambda: signal.raise_signal(signal.SIGINT))
    assert run(**begun) == 130
    out, err = capsys.readouterr()
    assert err == "quatrains: stopped\n"
    told = f"\n{copied} holds the training up to its last whole run.\nGo on "
    if begun is QUICK:
        told = "\nNothing is kept, for the first run had not ended.\n"
    assert told in out or name in ("make_folder", "locked")
    kept(copied, 2 if begun is QUICK else 3)


# ==== What goes wrong on the way ====


def test_a_loss_that_is_no_number_leaves_nothing_of_a_new_training(copied, capsys):
    Path("vectors.txt").write_text("".join(f"{word}{' 3e38' * 8}\n" for word in ("king", "eagle")))
    told = "the loss (nan) or a weight has become infinite or no number: lower the learning rate of"
    refused(capsys, told, **QUICK | {"glove": "vectors.txt", "dropout": 0.5})
    kept(copied, 2)


@pytest.mark.parametrize(("moment", "loss"), [("begin", "nan"), ("end", r"\d+\.\d+")])
def test_weights_that_are_no_numbers_are_not_saved(copied, capsys, monkeypatch, moment, loss):
    """Be they so before an epoch, whose loss tells, or only after it."""

    def spoil(epoch, _=None):
        if epoch == 6:
            callback.model.weights[0].assign(callback.model.weights[0] * np.inf)

    callback = keras.callbacks.LambdaCallback(**{f"on_epoch_{moment}": spoil})
    monkeypatch.setattr(quatrains, "make_callbacks", lambda settings: [callback])
    assert run(**GO_ON) == 2
    out, err = capsys.readouterr()
    told = rf"quatrains: the loss \({loss}\) or a weight .*: lower the learning rate of .*\n"
    assert re.fullmatch(told, err)
    assert f"\n{copied} holds the training up to its last whole run" in out
    kept(copied, 3)


@pytest.fixture
def disk(quick, tmp_path, monkeypatch):
    """A disk of two megabytes as the working directory; returns the checkpoint on it."""
    folder = tmp_path / "disk"
    folder.mkdir()
    options = "size=2m,nr_inodes=300"
    if subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", folder]).returncode:
        pytest.skip("only root can mount a disk")
    shutil.copytree(quick, folder, dirs_exist_ok=True)
    with monkeypatch.context() as patch:
        patch.chdir(folder)
        yield checkpoint_of()
    subprocess.run(["umount", folder], check=True)


def fill(spare=0, files=0):
    """Fill the disk, but for some kilobytes and so many new files."""
    made = []
    with contextlib.suppress(OSError):
        while True:
            made.append(Path(f"filler{len(made)}"))
            made[-1].touch()
    for path in made[len(made) - 1 - files :]:
        path.unlink(missing_ok=True)
    with contextlib.suppress(OSError), made[0].open("wb", 0) as file:
        while file.write(bytes(4096)):
            pass
    os.truncate(made[0], made[0].stat().st_size - 1024 * spare)


BROKE_OFF = re.compile(
    r"quatrains: (broke off \(.*[Nn]o space left on device.*\): make room, .*"
    r"|the folder logs cannot be written \(No space left on device\): .*)\n"
)


@pytest.mark.parametrize("step", STEPS)
def test_a_full_disk_keeps_the_last_checkpoint(disk, capfd, monkeypatch, step):
    """And of a new training, which has none, nothing at all; with room again it goes on."""
    begun, number, where, name, *spare = step
    with monkeypatch.context() as patch:
        before_call(patch, number, where, name, lambda: fill(*spare))
        assert run(**begun) == 2
    assert BROKE_OFF.fullmatch(capfd.readouterr().err)
    for filler in Path().glob("filler*"):
        filler.unlink()
    runs = 2 if begun is QUICK else 3
    kept(disk, runs)
    assert run(resume=True, runs=runs + 1) == 0
    assert [*read_curve(disk.parent / "train", "loss")] == [*range(1, 2 * runs + 3)]


def test_files_that_may_not_grow_are_one_line(copied, capsys):
    """The limit lets logs through and stops checkpoints, which start larger."""
    with limited(resource.RLIMIT_FSIZE, 200_000):
        told = "broke off ([Errno 27] File too large): make room, or mend what else it names"
        refused(capsys, told, **QUICK | {"gru_dim": 100, "embedding_dim": 200})
    kept(copied, 2)


# ==== Writing without training ====


def test_quatrains_are_written_from_the_checkpoint(copied, capsys):
    Path("verses.txt").unlink()
    before = read_files(Path())
    texts = []
    for raw in ({}, {}, {"raw": True}):
        assert run(generate=20, seed=5, **raw) == 0
        out, err = capsys.readouterr()
        texts.append(out.splitlines())
        told = rf'\nFrom {copied}\. Longest quote: \d words, "[a-z ]+" \(\d+\)\.\n'
        assert re.fullmatch(told, err)
    verse, again, raw = texts
    assert verse == again
    assert verse.count("") == len(raw) - 1
    assert 15 <= len(raw) <= 20
    assert {len([*lines]) for full, lines in itertools.groupby(verse, bool) if full} <= {1, 2, 3, 4}
    assert {"Mars", "Rome"} & {*re.findall(r"\w+", " ".join(verse))}
    assert not {"mars", "rome"} & {*re.findall(r"\w+", " ".join(verse))}
    assert read_files(Path()) == before
