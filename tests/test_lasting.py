"""Experiments over time: checkpoints, resuming, concurrency, interrupts, full disks, generating."""

import contextlib
import errno
import io
import itertools
import os
import re
import shutil
import signal
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import quatrains
from conftest import QUICK, read_curve, read_files, run, start_script, wait_for, write_verses
from quatrains import RunCallback, keras, np

RESUME = {"resume": True, "use_xla": False, "runs": 9}


def find_checkpoint(folder=Path(), name="*"):
    (path,) = folder.glob(f"logs/{name}/checkpoint.keras")
    return path


def load(path):
    return quatrains.load_checkpoint(path.parent, {})


def resume(path, runs):
    """Resume the experiment of a checkpoint, up to so many runs."""
    assert run(**RESUME | {"runs": runs}, log_dir=path.parent) == 0


def assert_equal(*paths):
    """Weights and optimizers of checkpoints are equal to the bit, as plain Keras loads them."""
    models = [keras.models.load_model(path) for path in paths]
    states = [[*model.get_weights(), *model.optimizer.variables] for model in models]
    for weights in zip(*states, strict=True):
        assert all(np.array_equal(weights[0], weight) for weight in weights)


def assert_refused(capsys, message, **settings):
    """The command ends with one line, and no file changes."""
    before = read_files(Path())
    capsys.readouterr()
    assert run(**settings) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"quatrains: {message}")
    assert error.count("\n") == 1
    assert read_files(Path()) == before


def before_call(patch, number, owner, name, action):
    """Do something just before the call of a function with this number, counted from 0."""
    function, calls = getattr(owner, name), itertools.count()

    def wrapper(*args, **kwargs):
        if next(calls) == number:
            action()
        return function(*args, **kwargs)

    patch.setattr(owner, name, wrapper)


def run_in(folder, **settings):
    output = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(output):
        patch.chdir(folder)
        assert run(**settings) == 0
    return output.getvalue()


@pytest.fixture(scope="module")
def quick(tmp_path_factory):
    folder = tmp_path_factory.mktemp("quick")
    write_verses(folder / "verses.txt")
    run_in(folder, **QUICK)
    return folder


@pytest.fixture
def copied(quick, tmp_path, monkeypatch):
    """A copy of a folder with an experiment of two quick runs, as the working directory."""
    shutil.copytree(quick, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return find_checkpoint()


# With several steps per epoch, and dropout.
RECIPES = {
    "2017": QUICK | {"use_xla": True, "phrase_len": 2, "dropout": 0.5, "batch_size": 128},
    "verse": QUICK | {"recipe": "verse", "phrase_len": 3, "dropout": 0.5, "batch_size": 512},
}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """By recipe: a folder, and what two runs, two resumed runs, and four runs in it printed."""
    outputs = {}
    for recipe, settings in RECIPES.items():
        folder = tmp_path_factory.mktemp(recipe)
        write_verses(folder / "verses.txt")
        first = run_in(folder, **settings, name="halves")
        same = {name: settings[name] for name in ("use_xla", "quatrains_per_run")}
        second = run_in(folder, resume=True, runs=4, **same)
        four = run_in(folder, **settings | {"name": "whole", "runs": 4})
        outputs[recipe] = folder, first, second, four
    return outputs


def output_from(number, output):
    """What is printed from a run on, without times and the checkpoint's path."""
    runs = output.partition(f"\nRun {number}\n")[2].rpartition("checkpoint.keras")[0]
    return re.sub(r"- \d+s - \d+m?s/step -|.*-\d{6}-\w+/$", "", runs)


@pytest.mark.parametrize("recipe", RECIPES)
def test_two_runs_and_two_resumed_are_four_runs(trained, recipe):
    folder, first, second, four = trained[recipe]
    halves, whole = find_checkpoint(folder, "*-halves"), find_checkpoint(folder, "*-whole")
    assert second.startswith(f"Resuming {halves.parent.relative_to(folder)} after run 1.\n")
    assert re.findall(r"\nRun (\d+)\n", first + second) == ["0", "1", "2", "3"]
    assert re.findall(r"Epoch (\d)/8\n\d+/\d+ - .*\bval_loss: \d", four) == [*"12345678"]
    assert ("compiled" in first, "compiled" in second) == (recipe == "2017",) * 2
    assert output_from(2, second) == output_from(2, four) != ""
    assert_equal(halves, whole)
    for path in (halves, whole):
        for half in ("train", "validation"):
            assert [*read_curve(path.parent / half, "loss")] == [*range(1, 9)]
        assert [*read_curve(path.parent, "quote")] == [2, 4, 6, 8]


def test_plain_keras_loads_and_evaluates_checkpoints_of_both_recipes(trained, tmp_path):
    """In a process without the script, so that the metrics are Keras's own."""
    arguments, printed = [], []
    for recipe, (folder, _, _, output) in trained.items():
        arguments += [find_checkpoint(folder, "*-whole"), tmp_path / f"{recipe}.npz"]
        lm = load(arguments[-2])
        phrases, targets, _ = quatrains.make_samples(lm.corpus, lm.settings)[1]
        np.savez(arguments[-1], phrases, targets)
        printed += re.findall(r"val_acc: (\S+) - val_loss: (\S+)\n", output)[-1][::-1]
    code = (
        "import sys, numpy, keras\n"
        "for path, data in zip(sys.argv[1::2], sys.argv[2::2]):\n"
        "    phrases, targets = numpy.load(data).values()\n"
        "    print(*keras.models.load_model(path).evaluate(phrases, targets, verbose=0))\n"
        "assert 'quatrains' not in sys.modules\n"
    )
    output = subprocess.check_output([sys.executable, "-c", code, *arguments], text=True)
    assert [*map(float, output.split())] == pytest.approx([*map(float, printed)], abs=6e-5)


def test_a_checkpoint_suffices_by_itself(copied):
    alone = Path("elsewhere/alone/checkpoint.keras")
    alone.parent.mkdir(parents=True)
    shutil.copy(copied, alone)
    copied.with_name("unfinished.keras").write_bytes(b"left by a kill")
    assert run(**QUICK | RESUME | {"runs": 3}, log_dir="logs") == 0  # Overrides may repeat it.
    Path("verses.txt").unlink()
    resume(alone, 3)
    assert_equal(copied, alone)


@pytest.mark.long
def test_an_experiment_without_a_seed_keeps_the_one_it_picks(verses, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    unseeded = {name: value for name, value in QUICK.items() if name != "seed"} | {"runs": 1}
    for name in ("one", "other"):
        assert run(**unseeded, name=name) == 0
    one, other = find_checkpoint(name="*-one"), find_checkpoint(name="*-other")
    seed = load(one).settings.seed
    assert seed != load(other).settings.seed
    resume(one, 2)
    assert run(**QUICK | {"seed": seed, "name": "again"}) == 0
    assert_equal(one, find_checkpoint(name="*-again"))
    assert run(**RESUME | {"runs": 2, "seed": 8}, log_dir=other.parent) == 0  # It may change.
    assert load(other).settings.seed == 8


REFUSED = [
    ({"gru_dim": 9}, "{} was trained with gru_dim = 8, not 9: remove that, or set log_dir to"),
    ({"generate": 1, "recipe": "verse"}, "{} was trained with recipe = '2017', not 'verse': "),
    ({"runs": 2}, "{} has already completed 2 runs: increase runs"),
    ({"prompt": "the pope"}, "prompt has 'the', which is not in the corpus"),
    ({"log_dir": "none"}, "none has no checkpoint: train first"),
]


@pytest.mark.parametrize(("changes", "message"), REFUSED)
def test_what_cannot_be_resumed_is_refused_and_left_as_it_is(copied, capsys, changes, message):
    assert_refused(capsys, message.format(copied.parent), **RESUME | changes)


@pytest.mark.parametrize("damaged", [False, True])
def test_the_latest_checkpoint_is_the_one_saved_last_even_if_copied(copied, capsys, damaged):
    assert run(**QUICK | {"runs": 1, "name": "second"}) == 0
    second = find_checkpoint(name="*-second")
    os.utime(copied, (4e9, 4e9))
    os.utime(second, (5e9, 5e9) if damaged else (9, 9))
    if damaged:  # It cannot say when it was saved, but its file does.
        second.write_bytes(b"PK")
    assert run(generate=1) == (2 if damaged else 0)
    assert str(second) in capsys.readouterr().err
    # The path that is printed works as well.
    assert run(generate=1, log_dir=copied) == 0
    assert run(**RESUME | {"log_dir": copied, "runs": 3}) == 0
    out, err = capsys.readouterr()
    assert err.startswith(f"\nFrom {copied}. ")
    assert f"Resuming {copied.parent} after run 1.\n" in out


def test_a_checkpoint_of_a_recipe_that_was_removed_generates_and_resumes(
    copied, capsys, monkeypatch
):
    monkeypatch.setitem(quatrains.RECIPES, "mine", {"gru_dim": 5, "temperature": 0.5})
    assert run(**QUICK | {"recipe": "mine"}) == 0
    monkeypatch.delitem(quatrains.RECIPES, "mine")
    assert run(generate=2) == 0
    assert run(**RESUME | {"runs": 3}) == 0
    assert run(recipe="mine") == 2
    assert "recipe = 'mine' is invalid: expected 2017 or verse" in capsys.readouterr().err


def test_the_latest_checkpoint_is_used_and_named(copied, capsys):
    """In any subfolder of the log directory, and no other experiment changes."""
    assert run(**QUICK | {"runs": 1, "name": "my/second"}) == 0
    second = find_checkpoint(name="*-my/second")
    before = read_files(second.parent)
    assert run(generate=1) == 0
    resume(copied, 3)
    assert run(**RESUME | {"runs": 4}) == 0
    assert run(generate=1, log_dir=f"{Path().absolute()}/") == 0
    output, errors = capsys.readouterr()
    named = re.findall(r"^From (.+?)\. ", errors, re.MULTILINE)
    assert named == [str(second), str(copied.absolute())]
    for run_number in (1, 2):
        assert f"Resuming {copied.parent} after run {run_number}.\n" in output
    assert read_files(second.parent) == before


def test_during_training_others_generate_and_train_but_none_resumes_it(copied, capsys, monkeypatch):
    def run_others():  # From within it.
        statuses.extend(run(**settings) for settings in (RESUME, {"generate": 2}, QUICK))

    statuses = []
    before_call(monkeypatch, 1, RunCallback, "on_epoch_end", run_others)
    resume(copied, 3)
    assert statuses == [2, 0, 0]
    message = f"quatrains: another process is training in {copied.parent}: let it finish, or start"
    assert capsys.readouterr().err.startswith(message)
    assert len([*Path("logs").iterdir()]) == len([*copied.parent.glob("events*")]) == 2
    resume(copied, 4)


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOSYS])
def test_a_file_system_without_locks_is_trained_on(copied, monkeypatch, number):
    def refuse(*arguments):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("fcntl.flock", refuse)
    resume(copied, 3)


def rewrite(name, data):
    """Replace a member of a checkpoint: of two with one name, the last is read."""

    def damage(path):
        with zipfile.ZipFile(path, "a") as archive, pytest.warns(UserWarning, match="Duplicate"):
            archive.writestr(name, data)

    return damage


# If this were loaded next to a corpus, it would make a file.
CODE = keras.layers.Lambda(
    lambda words: (__import__("os").system("test -f verses.txt && touch ran"), words)[1]
)
DAMAGE = {
    "cut short": lambda path: path.write_bytes(path.read_bytes()[:-5000]),
    "a folder": lambda path: (path.unlink(), path.mkdir()),
    "of Keras alone": lambda path: keras.models.load_model(path).save(path),
    "broken weights": rewrite("model.weights.h5", b"\x89HDF" + bytes(2000)),
    "of a newer Keras": lambda path: (
        rewrite("metadata.json", '{"keras_version": "77.0"}')(path),
        rewrite("config.json", '{"class_name": "Quantum", "config": {}}')(path),
    ),
    "code": rewrite("config.json", keras.Sequential([keras.Input((1,)), CODE]).to_json()),
}


READABLE = ("of a newer Keras", "broken weights", "code")


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_checkpoint_is_one_line_and_no_file_changes(copied, capsys, damage):
    DAMAGE[damage](copied)
    version = "77.0" if "newer" in damage else keras.__version__
    saved = f" (saved by Keras {version})" if damage in READABLE else ""
    message = f"checkpoint {copied}{saved} cannot be loaded by Keras {keras.__version__}, so set"
    assert_refused(capsys, message, **RESUME)


def test_a_stopped_experiment_can_be_resumed(tmp_path, monkeypatch, verses):
    process = start_script(tmp_path, **QUICK | {"runs": 100_000})
    output = wait_for(process, "Run 2")
    process.send_signal(signal.SIGINT)
    rest, errors = process.communicate(timeout=20)
    assert (process.returncode, errors) == (130, "quatrains: stopped\n")
    monkeypatch.chdir(tmp_path)
    path = find_checkpoint()
    assert f"\nSaved {path}, up to the last completed run.\nTo continue: --resume" in rest
    runs = load(path).completed_runs
    assert runs - int(re.findall(r"\nRun (\d+)\n", output + rest)[-1]) in (0, 1)
    resume(path, runs + 1)
    assert [*read_curve(path.parent / "train", "loss")] == [*range(1, 2 * runs + 3)]


# What is started, the number and name of the call before which it ends, the KB that a full disk has
# left, and how many completed runs are saved.
STEPS = [
    (QUICK, 0, quatrains, "fit_runs", 0, 2),
    (QUICK, 0, quatrains, "save_checkpoint", 16, 2),
    (RESUME, 2, RunCallback, "on_epoch_end", 0, 3),
    (RESUME, 1, quatrains, "log_run", 0, 3),
    (RESUME, 1, quatrains, "save_checkpoint", 16, 3),
]


@pytest.mark.parametrize("step", STEPS)
def test_ctrl_c_leaves_the_last_checkpoint(copied, capsys, monkeypatch, step):
    """A new experiment has none, and says so."""
    settings, number, owner, name, spare, runs = step
    if spare:  # Half saved.
        owner, name = Path, "replace"
    before_call(monkeypatch, number, owner, name, lambda: signal.raise_signal(signal.SIGINT))
    assert run(**settings) == 130
    output, errors = capsys.readouterr()
    assert errors == "quatrains: stopped\n"
    assert f"\n{'Nothing was saved:' if settings is QUICK else f'Saved {copied}, up to'}" in output
    assert find_checkpoint() == copied
    assert load(copied).completed_runs == runs


@pytest.fixture
def disk(quick, tmp_path, monkeypatch):
    """A copy of the same folder on a disk of two megabytes."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", folder]).returncode:
        pytest.skip("only root can mount a disk")
    shutil.copytree(quick, folder, dirs_exist_ok=True)
    monkeypatch.chdir(folder)
    yield find_checkpoint()
    subprocess.run(["umount", "--lazy", folder], check=True)


def fill(spare):
    filler = Path("filler")
    with contextlib.suppress(OSError), filler.open("wb", 0) as file:
        while file.write(bytes(4096)):
            pass
    os.truncate(filler, filler.stat().st_size - 1024 * spare)


@pytest.mark.parametrize("step", STEPS)
def test_a_full_disk_leaves_the_last_checkpoint(disk, capfd, monkeypatch, step):
    """With space again, it can be resumed."""
    settings, *call, spare, runs = step
    before_call(monkeypatch, *call, lambda: fill(spare))
    assert run(**settings) == 2
    message = r"quatrains: stopped by .*[Nn]o space left on device.* \(check disk space, .*\)\n"
    assert re.fullmatch(message, capfd.readouterr().err)
    Path("filler").unlink()
    assert load(disk).completed_runs == runs
    resume(disk, runs + 1)
    assert [*read_curve(disk.parent / "train", "loss")] == [*range(1, 2 * runs + 3)]


def test_quatrains_are_generated_from_the_checkpoint(copied, capsys):
    Path("verses.txt").unlink()
    before = read_files(Path())
    texts = []
    for raw in (False, False, True):
        assert run(generate=20, seed=5, raw=raw) == 0
        output, errors = capsys.readouterr()
        texts.append(output)
        message = rf'\nFrom {copied}\. Longest quote: \d words, "[a-z ]+" \(\d+\)\.\n'
        assert re.fullmatch(message, errors)
    assert texts[0] == texts[1]
    assert texts[0].count("\n\n") + 1 == texts[2].count("\n") == 20
    assert {*re.findall(r"(?i)\b(?:mars|rome)\b", texts[0])} == {"Mars", "Rome"}
    assert read_files(Path()) == before
