"""Experiments over time: checkpoints, resuming, concurrency, interrupts, full disks, generating."""

import contextlib
import errno
import fcntl
import io
import itertools
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import zipfile
from pathlib import Path
from types import SimpleNamespace

import pytest

import quatrains
from conftest import QUICK, ROOT, SMALL, read_curve, read_files, run, write_verses
from quatrains import keras, np, tf

RESUME = {"resume": True, "runs": 9}


def only_checkpoint(folder=Path(), name="*"):
    (path,) = folder.glob(f"logs/{name}/checkpoint.keras")
    return path


def load(path, **overrides):
    return quatrains.load_checkpoint(path, overrides)


def resume(path, runs):
    """Resume the experiment of a checkpoint, up to so many runs."""
    assert run(resume=True, runs=runs, log_dir=path.parent) == 0


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
    """Do something, or raise an error, before the call of a function with this number, from 0."""
    function, calls = getattr(owner, name), itertools.count()

    def wrapper(*args, **kwargs):
        if next(calls) == number:
            if isinstance(action, OSError):
                raise action
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
    return only_checkpoint()


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
        resumed = {"resume": True, "runs": 4, "quatrains_per_run": 3}
        steps = settings | {"name": "halves"}, resumed, settings | {"name": "whole", "runs": 4}
        outputs[recipe] = folder, *[run_in(folder, **step) for step in steps]
    return outputs


@pytest.mark.parametrize("recipe", RECIPES)
def test_two_runs_and_two_resumed_are_four_runs(trained, recipe):
    folder, first, second, four = trained[recipe]
    halves, whole = only_checkpoint(folder, "*-halves"), only_checkpoint(folder, "*-whole")
    assert second.startswith(f"Resuming {halves.parent.relative_to(folder)} after run 1.\n")
    assert re.findall(r"\nRun (\d+)\n", first + second) == ["0", "1", "2", "3"]
    assert re.findall(r"Epoch (\d)/8\n\d+/\d+ - .*\bval_loss: \d", four) == [*"12345678"]
    assert ("compiled" in first, "compiled" in second) == (recipe == "2017",) * 2
    # The last two runs print the same, besides times and the path.
    parts = [re.sub(r"\d+s - \d+m?s/|\nlogs/.*", "", text) for text in (second, four)]
    assert len({text.partition("\nRun 2\n")[2] for text in parts} - {""}) == 1
    assert_equal(halves, whole)
    for path in (halves, whole):
        for half in ("train", "validation"):
            assert [*read_curve(path.parent / half, "loss")] == [*range(1, 9)]
        assert [*read_curve(path.parent, "quote")] == [2, 4, 6, 8]


def test_plain_keras_loads_and_evaluates_checkpoints_of_both_recipes(trained, tmp_path):
    """In a process without the script, so that the metrics are Keras's own."""
    arguments, printed = [], []
    for recipe, (folder, _, _, output) in trained.items():
        arguments += [only_checkpoint(folder, "*-whole"), tmp_path / f"{recipe}.npz"]
        lm = load(arguments[-2])
        np.savez(arguments[-1], *quatrains.make_samples(lm.corpus, lm.settings)[1][:2])
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


def test_large_batches_repeat_exactly_without_xla(tmp_path, monkeypatch):
    """TensorFlow would add up the gradients of a word in any order."""
    monkeypatch.chdir(tmp_path)
    large = {"corpus": str(ROOT / "data" / "quatrains.txt"), "batch_size": 4000, "phrase_len": 2}
    settings = SMALL | large | {"runs": 1, "epochs_per_run": 1, "embedding_dim": 300}
    models = [quatrains.train(**settings).model for _ in range(2)]
    assert all(map(np.array_equal, *[model.get_weights() for model in models]))


def test_ctrl_c_while_an_object_is_deleted_ends_training(copied, monkeypatch):
    """Python ignores errors there, so now and then, a Ctrl-C was lost."""

    class Deleted:
        def __del__(self):
            signal.raise_signal(signal.SIGINT)

    callback = keras.callbacks.LambdaCallback(on_epoch_begin=lambda epoch, logs: Deleted())
    monkeypatch.setattr(quatrains, "make_callbacks", lambda settings: [callback])
    monkeypatch.setattr(sys, "unraisablehook", quatrains.repeat_interrupt)  # As in a command.
    assert run(**RESUME | {"runs": 300}) == 130


CONTRADICTS = "contradicts the checkpoint, which was trained with"
REFUSED = [
    ({"gru_dim": 9}, f"gru_dim = 9 {CONTRADICTS} 8: leave gru_dim out, or set log_dir to"),
    ({"generate": 1, "recipe": "verse"}, f"recipe = 'verse' {CONTRADICTS} '2017': leave recipe"),
    ({"runs": 2}, "runs = 2, but {} has completed 2: increase runs"),
    ({"prompt": "the pope"}, "prompt has 'the', which is not in the corpus"),
    ({"log_dir": "none"}, "none has no checkpoint: train first"),
    ({"log_dir": "long" * 99}, f"{'long' * 99} has no checkpoint: train first"),
]


@pytest.mark.parametrize(("changes", "message"), REFUSED)
def test_what_cannot_be_resumed_is_refused_and_left_as_it_is(copied, capsys, changes, message):
    assert_refused(capsys, message.format(copied.parent), **RESUME | changes)


def test_the_latest_checkpoint_is_the_one_whose_file_is_latest(copied, capsys):
    """In any subfolder or linked folder, and even if it is damaged."""
    assert run(**QUICK | {"runs": 1, "name": "my/second", "log_dir": "elsewhere"}) == 0
    Path("logs/link").symlink_to(Path("elsewhere").absolute())
    (second,) = Path("logs/link").glob("*-my/second/checkpoint.keras")
    before = read_files(Path("elsewhere"))
    assert run(generate=1) == 0
    os.utime(second, (9, 9))
    assert run(generate=1, log_dir=f"{Path().absolute()}/") == 0
    assert run(**RESUME | {"runs": 3}) == 0
    assert read_files(Path("elsewhere")) == before
    second.write_bytes(b"PK")
    assert run(generate=1) == 2
    assert run(generate=1, log_dir=copied) == 0  # The path that is printed works as well.
    output, errors = capsys.readouterr()
    named = re.findall(r"^(?:From|quatrains: checkpoint) (\S+?)\.? ", errors, re.MULTILINE)
    assert named == [str(second), str(copied.absolute()), str(second), str(copied)]
    assert f"Resuming {copied.parent} after run 1.\n" in output


def test_a_recipe_is_respected_later_and_may_be_removed(copied, capsys, monkeypatch):
    """Its number of runs when resuming, its format when generating."""
    monkeypatch.setitem(quatrains.RECIPES, "mine", {"gru_dim": 5, "runs": 3, "raw": True})
    assert run(**QUICK | {"recipe": "mine", "gru_dim": 5}) == 0
    assert [run(resume=True), run(resume=True)] == [0, 2]
    output, errors = capsys.readouterr()
    assert re.findall(r"\nRun (\d+)\n", output) == ["0", "1", "2"]
    assert errors.endswith(" has completed 3: increase runs\n")
    assert run(generate=4) == 0
    assert capsys.readouterr().out.count("\n") == 4
    monkeypatch.delitem(quatrains.RECIPES, "mine")
    assert run(generate=4) == 0
    assert capsys.readouterr().out.count("\n\n") == 3
    assert run(**RESUME | {"runs": 4}) == 0


def test_during_training_others_generate_and_train_but_none_resumes_it(copied, capsys, monkeypatch):
    statuses, others = [], (RESUME, {"generate": 2}, QUICK)  # From within it.
    run_others = (run(**settings) for settings in others)
    before_call(monkeypatch, 1, quatrains, "log_epoch", lambda: statuses.extend(run_others))
    resume(copied, 3)
    assert statuses == [2, 0, 0]
    message = f"quatrains: another process is training in {copied.parent}: let it finish, or start"
    assert capsys.readouterr().err.startswith(message)
    assert len([*Path("logs").iterdir()]) == len([*copied.parent.glob("events*")]) == 2
    resume(copied, 4)


def test_a_checkpoint_is_read_after_its_folder_is_locked(copied, capsys, monkeypatch):
    """Another process may complete its last run just before."""
    old = copied.read_bytes()
    resume(copied, 3)
    new = copied.read_bytes()
    copied.write_bytes(old)
    before_call(monkeypatch, 0, fcntl, "flock", lambda: copied.write_bytes(new))
    assert run(**RESUME | {"runs": 3}) == 2
    assert " has completed 3: " in capsys.readouterr().err


def test_experiments_of_one_second_all_train_and_pick_seeds(verses, monkeypatch):
    starts = iter("1112234")
    clock = SimpleNamespace(strftime=lambda format: next(starts), sleep=lambda seconds: None)
    monkeypatch.setattr(quatrains, "time", clock)
    unseeded = {name: value for name, value in QUICK.items() if name != "seed"}
    assert [run(**unseeded) for _ in range(3)] == [0, 0, 0]
    paths = [only_checkpoint(name=f"{number}-2017") for number in (1, 2, 3)]
    seeds = [load(path).settings.seed for path in paths]
    assert len({*seeds}) == 3
    assert run(**unseeded, seed=seeds[0]) == 0
    assert_equal(paths[0], only_checkpoint(name="4-2017"))


def test_a_file_system_without_locks_is_trained_on(copied, monkeypatch):
    before_call(monkeypatch, 0, fcntl, "flock", OSError(errno.ENOLCK, "No locks available"))
    resume(copied, 3)


def rewrite(path, name, data):
    """Replace a member of a checkpoint: of two with one name, the last is read."""
    with zipfile.ZipFile(path, "a") as archive, pytest.warns(UserWarning, match="Duplicate"):
        archive.writestr(name, data)


def change_settings(path, change):
    state = json.loads(zipfile.ZipFile(path).read("quatrains.json"))
    change(state["settings"])
    rewrite(path, "quatrains.json", json.dumps(state))


# If this were loaded next to a corpus, it would make a file.
CODE = keras.layers.Lambda(
    lambda words: (__import__("os").system("test -f verses.txt && touch ran"), words)[1]
)
CODE = keras.Sequential([keras.Input((1,)), CODE]).to_json()
QUANTUM = '{"class_name": "Quantum", "config": {}}'
DAMAGE = {
    "cut short": lambda path: path.write_bytes(path.read_bytes()[:-5000]),
    "a folder": lambda path: (path.unlink(), path.mkdir()),
    "of Keras alone": lambda path: keras.models.load_model(path).save(path),
    "broken weights": lambda path: rewrite(path, "model.weights.h5", b"\x89HDF" + bytes(2000)),
    "of a newer Keras": lambda path: rewrite(path, "config.json", QUANTUM),
    "code": lambda path: rewrite(path, "config.json", CODE),
    "without a setting": lambda path: change_settings(path, lambda saved: saved.pop("use_xla")),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_checkpoint_is_one_line_and_no_file_changes(copied, capsys, damage):
    DAMAGE[damage](copied)
    message = f"checkpoint {copied} cannot be loaded by Keras {keras.__version__}"
    for settings in (RESUME, {"generate": 1}):
        assert_refused(capsys, message, **settings)


def test_a_checkpoint_suffices_by_itself_even_with_a_setting_that_the_file_lacks(copied):
    alone = Path("elsewhere/alone/checkpoint.keras")
    alone.parent.mkdir(parents=True)
    shutil.copy(copied, alone)
    change_settings(alone, lambda saved: saved.update(removed=1))
    copied.with_name("unfinished.keras").write_bytes(b"left by a kill")
    assert run(**QUICK | RESUME | {"runs": 3}, log_dir="logs") == 0  # Overrides may repeat it.
    Path("verses.txt").unlink()
    before = read_files(Path())
    assert run(generate=1, log_dir="elsewhere") == 0
    assert read_files(Path()) == before
    resume(alone, 3)
    assert_equal(copied, alone)
    assert load(alone, runs=2, quatrains_per_run=3).settings == quatrains.make_settings(**QUICK)


def test_keras_keeps_its_configuration_when_a_checkpoint_is_loaded(copied, request):
    """Names are counted on, and a dtype policy is kept that is not the model's."""
    number = keras.backend.get_uid("mine")
    request.addfinalizer(lambda: keras.config.set_dtype_policy("float32"))
    keras.config.set_dtype_policy("mixed_bfloat16")
    assert load(copied).model.get_layer("GRU").compute_dtype == "float32"
    resume(copied, 3)
    assert keras.config.dtype_policy().name == "mixed_bfloat16"
    assert keras.backend.get_uid("mine") == number + 1


# The settings, the call before which it ends (its number and its name), the KB that a full disk has
# left, and how many completed runs are saved.
STEPS = [
    (QUICK, 0, quatrains, "fit_runs", 0, 2),
    (QUICK, 0, quatrains, "save_checkpoint", 16, 2),
    (RESUME, 2, quatrains, "log_epoch", 0, 3),
    (RESUME, 1, quatrains, "save_checkpoint", 16, 3),
    (RESUME, 1, quatrains, "log_run", 0, 4),
]


@pytest.mark.parametrize("step", [*STEPS, (RESUME, 0, quatrains, "report_quotes", 0, 3)])
def test_ctrl_c_leaves_the_last_checkpoint(copied, capsys, monkeypatch, step):
    """A new experiment has none, and says so. A run is saved before all of it is printed."""
    settings, number, owner, name, spare, runs = step
    if spare:  # Half saved.
        owner, name = Path, "replace"
    before_call(monkeypatch, number, owner, name, lambda: signal.raise_signal(signal.SIGINT))
    assert run(**settings) == 130
    output, errors = capsys.readouterr()
    assert errors == "quatrains: stopped\n"
    saved = f"{copied} contains the model as of the last completed run."
    assert f"\n{'No checkpoint was saved:' if settings is QUICK else saved}" in output
    assert only_checkpoint() == copied
    assert load(copied).completed_runs == runs


@pytest.fixture
def disk(tmp_path):
    """A disk of two megabytes as the temporary folder."""
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", tmp_path]).returncode:
        pytest.skip("only root can mount a disk")
    yield
    subprocess.run(["umount", "--lazy", tmp_path], check=True)


@pytest.mark.parametrize("step", STEPS)
def test_a_full_disk_leaves_the_last_checkpoint(disk, copied, monkeypatch, step):
    """With space again, it can be resumed."""
    settings, *call, spare, runs = step
    filler, free = Path("filler"), lambda: shutil.disk_usage(".").free - 1024 * spare
    before_call(monkeypatch, *call, lambda: filler.write_bytes(bytes(free())))
    with pytest.raises((OSError, tf.errors.OpError), match=r"(?i)no space left on device"):
        run(**settings)
    filler.unlink()
    assert load(copied).completed_runs == runs
    resume(copied, runs + 1)
    assert [*read_curve(copied.parent / "train", "loss")] == [*range(1, 2 * runs + 3)]


def test_a_checkpoint_that_is_open_elsewhere_is_replaced_later(copied, monkeypatch):
    """As on Windows."""
    waits = []
    monkeypatch.setattr(quatrains, "time", SimpleNamespace(sleep=waits.append))
    before_call(monkeypatch, 0, Path, "replace", PermissionError())
    resume(copied, 3)
    assert len(waits) == 1
    assert load(copied).completed_runs == 3
