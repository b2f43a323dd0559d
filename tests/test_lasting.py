"""Trainings that last: checkpoints, going on, side by side, stopping, full disks, writing."""

import contextlib
import io
import itertools
import os
import re
import shutil
import signal
import subprocess
import sys
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

import quatrains
from conftest import QUICK, read_curve, read_files, run, start_script, wait_for, write_verses
from quatrains import Runs, keras, np

GO_ON = {"resume": True, "runs": 9}


def checkpoint_of(folder=Path(), name="*"):
    (path,) = folder.glob(f"logs/{name}/checkpoint.keras")
    return path


def load(path):
    return quatrains.load_checkpoint(path, quatrains.Settings())


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
    assert [*Path("logs").iterdir()] == [path.parent]
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
    out = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(out):
        patch.chdir(folder)
        assert run(**settings) == 0
    return out.getvalue()


@pytest.fixture(scope="module")
def quick(tmp_path_factory):
    folder = tmp_path_factory.mktemp("quick")
    write_verses(folder / "verses.txt")
    run_in(folder, **QUICK)
    return folder


@pytest.fixture
def copied(quick, tmp_path, monkeypatch):
    """A copy of a folder with a training of two quick runs, as the working directory."""
    shutil.copytree(quick, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return checkpoint_of()


# With several steps an epoch, and dropouts.
RECIPES = {
    "2017": QUICK | {"phrase_len": 2, "dropout": 0.5, "batch_size": 256},
    "verse": QUICK | {"recipe": "verse", "phrase_len": 3, "dropout": 0.5},
}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """By recipe: a folder, and what was printed in it by two runs, two resumed, and four."""
    outs = {}
    for recipe, settings in RECIPES.items():
        folder = tmp_path_factory.mktemp(recipe)
        write_verses(folder / "verses.txt")
        both = [settings | {"name": "halves"}, settings | {"name": "whole", "runs": 4}]
        if recipe == "2017":  # By commands, with XLA, side by side.
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
    folder, first, second, four = trained[recipe]
    halves, whole = checkpoint_of(folder, "*-halves"), checkpoint_of(folder, "*-whole")
    assert second.startswith(f"Going on after run 1 of {halves.parent}.\n")
    assert re.findall(r"\nRun (\d+)\n", first + second) == ["0", "1", "2", "3"]
    assert re.findall(r"Epoch (\d)/8\n\d+/\d+ - .*\bval_loss: \d", four) == [*"12345678"]
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
        given += [checkpoint_of(folder, "*-whole"), tmp_path / f"{recipe}.npz"]
        prophet = load(given[-2])
        phrases, targets, _ = quatrains.make_samples(prophet.corpus, prophet.settings)[1]
        np.savez(given[-1], phrases, targets)
        told += re.findall(r"val_acc: (\S+) - val_loss: (\S+)\n", out)[-1][::-1]
    code = (
        "import sys, numpy, keras\n"
        "for path, data in zip(sys.argv[1::2], sys.argv[2::2]):\n"
        "    phrases, targets = numpy.load(data).values()\n"
        "    print(*keras.models.load_model(path).evaluate(phrases, targets, verbose=0))\n"
        "assert 'quatrains' not in sys.modules\n"
    )
    out = subprocess.check_output([sys.executable, "-c", code, *given], text=True)
    assert [float(word) for word in out.split()] == pytest.approx([*map(float, told)], abs=6e-5)


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


REFUSED = [
    ({"gru_dim": 9}, "{} was trained with gru_dim = 8, not 9: leave that out, or set logs to"),
    ({"generate": 1, "embedding_dim": 16}, "{} was trained with embedding_dim = 8, not 16: "),
    ({"corpus": "other.txt"}, "{} was trained with corpus = 'verses.txt', not 'other.txt': "),
    ({"recipe": "verse"}, "{} was trained with recipe = '2017', not 'verse': "),
    ({"seed": 8}, "{} was trained with seed = 7, not 8: "),
    ({"runs": 2}, "{} has its 2 runs already: set runs higher"),
    ({"opening": "the pope"}, "opening has 'the', which the corpus lacks"),
    ({"logs": "none"}, "none has no checkpoint"),
]


@pytest.mark.parametrize(("changes", "told"), REFUSED)
def test_what_cannot_go_on_is_refused_by_name_and_left_as_it_is(copied, capsys, changes, told):
    refused(capsys, told.format(copied.parent), **GO_ON | changes)


def test_a_recipe_that_is_gone_is_named(copied, monkeypatch, capsys):
    monkeypatch.delitem(quatrains.RECIPES, "2017")
    refused(capsys, "recipe = '2017' will not do: it must be one of verse\n", **GO_ON)


def test_the_training_saved_last_is_taken_and_named(copied, capsys):
    """Wherever it is in the logs, and none but it is touched."""
    assert run(**QUICK | {"runs": 1, "name": "my/second"}) == 0
    second = checkpoint_of(name="*-my/second")
    before = read_files(second.parent)
    assert run(generate=1) == 0
    assert run(generate=1, logs=f"{copied.parent.absolute()}/") == 0
    assert run(resume=True, runs=3, logs=copied.parent) == 0
    assert run(resume=True, runs=4) == 0
    assert run(generate=1) == 0
    out, err = capsys.readouterr()
    told = re.findall(r"^From (.+?)\. ", err, re.MULTILINE)
    assert told == [str(path) for path in (second, copied.absolute(), copied)]
    going = re.findall(r"Going on after run (\d) of (.+)\.\n", out)
    assert going == [("1", str(copied.parent)), ("2", str(copied.parent))]
    assert read_files(second.parent) == before


def test_three_that_start_in_one_second_get_three_folders(tmp_path):
    settings = quatrains.Settings(logs=str(tmp_path), name="rome")
    with ThreadPoolExecutor(3) as pool:
        made = [*pool.map(quatrains.make_folder, [settings] * 3)]
    assert sorted(made) == sorted(tmp_path.iterdir())
    assert [bool(re.fullmatch(r"\d{6}-\d{6}-rome", path.name)) for path in made] == [True] * 3


def test_beside_a_training_others_write_and_train_but_none_resumes_it(copied, capsys, monkeypatch):
    """Here from within it, by one of its callbacks."""
    modes, statuses = (GO_ON, {"generate": 2, "raw": True}, QUICK), []
    before_call(
        monkeypatch, 1, Runs, "on_epoch_end", lambda: statuses.extend(run(**m) for m in modes)
    )
    assert run(resume=True, runs=3) == 0
    assert statuses == [2, 0, 0]
    told = f"quatrains: a training is going on in {copied.parent}: wait for its end, or start"
    assert capsys.readouterr().err.startswith(told)
    assert len([*Path("logs").iterdir()]) == len([*copied.parent.glob("events*")]) == 2
    assert run(resume=True, runs=4, logs=copied.parent) == 0


def rewrite(name, data):
    """Put other bytes in the place of a member of a checkpoint: of two the last is read."""

    def spoil(path):
        with zipfile.ZipFile(path, "a") as archive, pytest.warns(UserWarning, match="Duplicate"):
            archive.writestr(name, data)

    return spoil


# Loaded beside a corpus it would make a file.
CODE = keras.layers.Lambda(
    lambda words: (__import__("os").system("test -f verses.txt && touch ran"), words)[1]
)
SPOILT = {
    "cut short": lambda path: path.write_bytes(path.read_bytes()[:-5000]),
    "a folder": lambda path: (path.unlink(), path.mkdir()),
    "of Keras alone": lambda path: keras.models.load_model(path).save(path),
    "broken weights": rewrite("model.weights.h5", b"\x89HDF" + bytes(2000)),
    "code": rewrite("config.json", keras.Sequential([keras.Input((1,)), CODE]).to_json()),
    "deep JSON": rewrite("quatrains.json", b"[" * 10**5),
}


@pytest.mark.parametrize("how", SPOILT)
def test_a_spoilt_checkpoint_is_one_line_and_nothing_is_touched(copied, capsys, how):
    SPOILT[how](copied)
    refused(capsys, f"checkpoint {copied} cannot be loaded (", **GO_ON)


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
    assert f"Going on after run {runs - 1} of {path.parent}.\n" in capsys.readouterr().out
    assert [*read_curve(path.parent / "train", "loss")] == [*range(1, 2 * runs + 3)]


# What is begun, before which call of what it ends, the KB that a full disk has left, and how many
# runs are kept.
STEPS = [
    (QUICK, 0, quatrains, "train_runs", 0, 2),
    (QUICK, 0, quatrains, "save_checkpoint", 16, 2),
    (GO_ON, 2, Runs, "on_epoch_end", 0, 3),
    (GO_ON, 1, quatrains, "log_run", 0, 3),
    (GO_ON, 1, quatrains, "save_checkpoint", 16, 3),
]


@pytest.mark.parametrize("step", STEPS)
def test_ctrl_c_keeps_the_last_checkpoint(copied, capsys, monkeypatch, step):
    """And of a new training, which has none, nothing at all."""
    begun, number, where, name, spare, runs = step
    if spare:  # Half saved.
        where, name = Path, "replace"
    before_call(monkeypatch, number, where, name, lambda: signal.raise_signal(signal.SIGINT))
    assert run(**begun) == 130
    out, err = capsys.readouterr()
    assert err == "quatrains: stopped\n"
    told = "Nothing is kept, for" if begun is QUICK else f"{copied} holds the training up to"
    assert f"\n{told}" in out
    kept(copied, runs)


@pytest.mark.parametrize("case", [(QUICK, 1, 2), (GO_ON, 7, 3)])
def test_a_loss_that_is_no_number_keeps_the_last_checkpoint(copied, capsys, monkeypatch, case):
    begun, epoch, runs = case

    def spoil(number, _=None):
        if number == epoch:
            callback.model.weights[0].assign(callback.model.weights[0] * np.inf)

    callback = keras.callbacks.LambdaCallback(on_epoch_begin=spoil)
    monkeypatch.setattr(quatrains, "make_callbacks", lambda settings: [callback])
    assert run(**begun) == 2
    told = "quatrains: val_loss is no number any more: lower learning_rate, and train again\n"
    assert capsys.readouterr().err == told
    kept(copied, runs)


@pytest.fixture
def disk(quick, tmp_path, monkeypatch):
    """The same on a disk of two megabytes."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", folder]).returncode:
        pytest.skip("only root can mount a disk")
    shutil.copytree(quick, folder, dirs_exist_ok=True)
    monkeypatch.chdir(folder)
    yield checkpoint_of()
    subprocess.run(["umount", "--lazy", folder], check=True)


def fill(spare):
    filler = Path("filler")
    with contextlib.suppress(OSError), filler.open("wb", 0) as file:
        while file.write(bytes(4096)):
            pass
    os.truncate(filler, filler.stat().st_size - 1024 * spare)


@pytest.mark.parametrize("step", STEPS)
def test_a_full_disk_keeps_the_last_checkpoint(disk, capfd, monkeypatch, step):
    """With room again it goes on."""
    begun, number, where, name, spare, runs = step
    before_call(monkeypatch, number, where, name, lambda: fill(spare))
    assert run(**begun) == 2
    told = r"quatrains: broke off \(.*[Nn]o space left on device.*\): make room, .*\n"
    assert re.fullmatch(told, capfd.readouterr().err)
    Path("filler").unlink()
    kept(disk, runs)
    assert run(resume=True, runs=runs + 1) == 0
    assert [*read_curve(disk.parent / "train", "loss")] == [*range(1, 2 * runs + 3)]


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
    words = {*re.findall(r"\w+", " ".join(verse))}
    assert words & {"Mars", "Rome", "mars", "rome"} == words & {"Mars", "Rome"} != set()
    assert read_files(Path()) == before
