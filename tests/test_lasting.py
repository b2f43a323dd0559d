"""Trainings that last: checkpoints, going on, stopping, and writing without training."""

import json
import re
import resource
import signal
import subprocess
import sys
import zipfile

import numpy as np
import pytest

import quatrains
from conftest import ROOT, SMALL, arguments, run_script, write_verses

SMALL = SMALL | {"corpus": "verses.txt"}


def start_script(folder, **settings):
    """Start a training that goes on in the background."""
    return subprocess.Popen(
        [sys.executable, ROOT / "quatrains.py", *arguments(**settings)],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_for(process, text):
    """Read a process's output up to the line that contains a text, and return it."""
    read = []
    for line in process.stdout:
        read.append(line)
        if text in line:
            return "".join(read)
    raise AssertionError("".join(read) + process.stderr.read())


def checkpoint_of(folder):
    (path,) = (folder / "logs").glob("*/checkpoint.keras")
    return path


def weights_of(path):
    """Weights and optimizer of a checkpoint, as plain Keras loads them."""
    import keras

    model = keras.models.load_model(path)
    return [*model.get_weights(), *(variable.numpy() for variable in model.optimizer.variables)]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder in which two runs and then, resumed, two more were trained."""
    folder = tmp_path_factory.mktemp("trained")
    write_verses(folder / "verses.txt")
    done = [run_script(folder, **SMALL | {"runs": 2})]
    done.append(run_script(folder, **SMALL | {"runs": 4, "resume": True, "quatrains_per_run": 1}))
    return folder, done


@pytest.fixture
def copied(trained, tmp_path, monkeypatch):
    """A copy of the trained folder, as the working directory."""
    subprocess.run(["cp", "-r", *trained[0].iterdir(), tmp_path], check=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


# ==== Going on ====


def test_two_runs_and_two_resumed_are_four_runs(trained, tmp_path):
    folder, (first, second) = trained
    assert (first.returncode, second.returncode) == (0, 0), first.stderr + second.stderr
    assert re.findall(r"\nRun (\d+)\n", first.stdout) == ["0", "1"]
    assert re.findall(r"\nRun (\d+)\n", second.stdout) == ["2", "3"]
    assert re.search(
        r"Going on after run 1 from logs.\d{6}-\d{6}.checkpoint.keras\.", second.stdout
    )
    write_verses(tmp_path / "verses.txt")
    whole = run_script(tmp_path, **SMALL | {"runs": 4})
    epochs = re.compile(r" - loss.*")
    parts = epochs.findall(first.stdout) + epochs.findall(second.stdout)
    assert parts == epochs.findall(whole.stdout)
    assert len(parts) == 8
    for ours, theirs in zip(
        weights_of(checkpoint_of(folder)), weights_of(checkpoint_of(tmp_path)), strict=True
    ):
        assert np.array_equal(ours, theirs)


def test_a_checkpoint_suffices_by_itself(trained):
    path = checkpoint_of(trained[0])
    checkpoint = quatrains.read_checkpoint(path)
    assert checkpoint.runs == 4
    assert checkpoint.seed == 7
    assert checkpoint.settings["gru_dim"] == 8
    read = quatrains.read_corpus(trained[0] / "verses.txt")
    assert [*zip(checkpoint.numbers, checkpoint.texts, strict=True)] == read
    assert checkpoint.words[0] == quatrains.BREAK
    assert np.random.PCG64().state.keys() == checkpoint.random_state.keys()
    assert [file.name for file in path.parent.glob("*.keras")] == ["checkpoint.keras"]


def test_logs_go_on_where_they_stopped(trained):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    folder = trained[0]
    assert {path.name for path in (folder / "logs").iterdir()} >= {"0", "1", "2", "3"}
    assert not (folder / "logs" / "earlier").exists()
    steps = []
    for run in range(4):
        events = EventAccumulator(str(folder / "logs" / str(run) / "train")).Reload()
        steps += [event.step for event in events.Tensors("loss")]
    assert steps == [*range(8)]
    whole = EventAccumulator(str(checkpoint_of(folder).parent)).Reload()
    assert [event.step for event in whole.Tensors("val_loss")] == [1, 3, 5, 7]


def test_what_differs_is_said_and_nothing_is_touched(copied, capsys):
    write_verses(copied / "other.txt", seed=2)
    before = {path: path.read_bytes() for path in copied.rglob("*") if path.is_file()}
    changes = {"resume": True, "runs": 9, "gru_dim": 9, "dropout": 0.25, "corpus": "other.txt"}
    assert quatrains.main(arguments(**SMALL | changes)) == 2
    message = capsys.readouterr().err
    assert message.startswith("quatrains: the training cannot be resumed: set these back")
    assert message.splitlines()[1:] == [
        "  gru_dim was 8 and is 9",
        "  dropout was 0.5 and is 0.25",
        "  corpus other.txt has another text than when the training began",
    ]
    assert before == {path: path.read_bytes() for path in copied.rglob("*") if path.is_file()}


def test_a_training_that_has_its_runs_is_not_resumed(copied, capsys):
    assert quatrains.main(arguments(**SMALL | {"resume": True, "runs": 4})) == 2
    assert "has its 4 runs already: set runs higher" in capsys.readouterr().err


def test_a_new_training_keeps_the_earlier_checkpoint(copied):
    before = checkpoint_of(copied)
    content = before.read_bytes()
    done = run_script(copied, **SMALL | {"runs": 1})
    assert done.returncode == 0, done.stderr
    moved = re.search(r"The logs and the checkpoint .* are now in (\S+)\.\n", done.stdout)[1]
    assert (copied / moved / before.parent.name / "checkpoint.keras").read_bytes() == content
    assert checkpoint_of(copied).parent != before.parent
    written = run_script(copied, generate=3, logs=moved)
    assert written.returncode == 0, written.stderr


def test_a_move_that_was_cut_short_is_finished(copied, capsys):
    start = checkpoint_of(copied).parent.name
    (copied / "logs" / "earlier" / start).mkdir(parents=True)
    (copied / "logs" / "0").rename(copied / "logs" / "earlier" / start / "0")
    quatrains.prepare_logs(copied / "logs")
    assert {path.name for path in (copied / "logs" / "earlier" / start).iterdir()} == {
        *"0123",
        start,
    }


def spoil(path, how):
    if how == "missing":
        path.unlink()
    elif how == "cut short":
        path.write_bytes(path.read_bytes()[:-5000])
    elif how == "empty":
        path.write_bytes(b"")
    elif how == "not ours":
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("config.json", "{}")
    elif how == "other fields":
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("quatrains.json", json.dumps({"runs": 1}))
    elif how == "broken weights":
        with zipfile.ZipFile(path) as archive:
            kept = {name: archive.read(name) for name in archive.namelist()}
        with zipfile.ZipFile(path, "w") as archive:
            for name, content in kept.items():
                archive.writestr(name, content[:2000] if name.endswith(".h5") else content)
    elif how == "another model":
        with zipfile.ZipFile(path) as archive:
            kept = {name: archive.read(name) for name in archive.namelist()}
        fields = json.loads(kept["quatrains.json"])
        fields["words"] = fields["words"][:-3]
        with zipfile.ZipFile(path, "w") as archive:
            for name, content in (kept | {"quatrains.json": json.dumps(fields)}).items():
                archive.writestr(name, content)


SPOILT = ("missing", "cut short", "empty", "not ours", "other fields")


@pytest.mark.parametrize("how", [*SPOILT, "broken weights", "another model"])
@pytest.mark.parametrize("mode", [{"resume": True, "runs": 9}, {"generate": 2}], ids=str)
def test_bad_checkpoints_are_one_line(copied, capsys, how, mode):
    path = checkpoint_of(copied)
    spoil(path, how)
    before = sorted(copied.rglob("*"))
    assert quatrains.main(arguments(**SMALL | mode)) == 2
    captured = capsys.readouterr()
    assert captured.err.count("\n") == 1, captured.err
    assert (
        "no checkpoint"
        if how == "missing"
        else f"checkpoint {path.relative_to(copied)} is broken" in captured.err
    )
    assert "without resume and generate" in captured.err
    assert sorted(copied.rglob("*")) == before


# ==== Stopping ====


@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)], ids=["Ctrl-C", "SIGTERM"]
)
def test_a_stopped_training_can_go_on(tmp_path, number, status):
    write_verses(tmp_path / "verses.txt")
    process = start_script(tmp_path, **SMALL | {"runs": 100_000})
    told = wait_for(process, "Run 2")
    process.send_signal(number)
    out, err = process.communicate(timeout=20)
    assert process.returncode == status, err
    assert err == "\nquatrains: stopped\n"
    assert "checkpoint.keras holds the training up to its last whole run: go on" in out
    last = int(re.findall(r"\nRun (\d+)\n", told + out)[-1])
    done = run_script(tmp_path, **SMALL | {"runs": last + 2, "resume": True})
    assert done.returncode == 0, done.stderr
    assert f"Going on after run {last - 1}" in done.stdout
    assert re.findall(r"\nRun (\d+)\n", done.stdout) == [str(last), str(last + 1)]
    assert len([*(tmp_path / "logs" / str(last) / "train").iterdir()]) == 1


def test_before_the_first_run_is_done_there_is_nothing_to_go_on_from(tmp_path):
    write_verses(tmp_path / "verses.txt", quatrains=3000)
    process = start_script(tmp_path, **SMALL | {"epochs_per_run": 100_000})
    wait_for(process, "Epoch 1/")
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=20)
    assert (process.returncode, err) == (130, "\nquatrains: stopped\n")
    assert "checkpoint" not in out
    done = run_script(tmp_path, **SMALL | {"resume": True})
    assert done.returncode == 2
    assert "has no checkpoint, there is one after the first run" in done.stderr


def test_a_second_signal_ends_it_at_once(tmp_path):
    """While the first one is being obeyed, here by a step that takes long to return."""
    write_verses(tmp_path / "verses.txt")
    code = (
        "import sys, time; sys.path.insert(0, sys.argv[1]); import quatrains\n"
        "def slow(settings):\n"
        "    try:\n"
        "        print('ready', flush=True); time.sleep(60)\n"
        "    finally:\n"
        "        print('closing', flush=True); time.sleep(60)\n"
        "quatrains.run_training = slow\n"
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


def test_signals_are_as_before_after_a_training(tmp_path, monkeypatch, verses):
    monkeypatch.chdir(tmp_path)
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    assert quatrains.main(arguments(**SMALL | {"corpus": "none"})) == 2
    assert before == [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]


# ==== What goes wrong on the way ====


def test_a_loss_that_is_no_number_stops_the_training(copied, capsys):
    before = checkpoint_of(copied).read_bytes()
    vectors = copied / "vectors.txt"
    vectors.write_text("".join(f"{word}{' 3e38' * 50}\n" for word in ("king", "eagle")))
    settings = SMALL | {"glove": vectors, "embedding_dim": 50}
    assert quatrains.main(arguments(**settings)) == 2
    assert re.fullmatch(
        r"quatrains: the loss has become (nan|inf) in epoch 1 of run 0: set learning_rate .*\n",
        capsys.readouterr().err,
    )
    (kept,) = (copied / "logs" / "earlier").glob("*/*/checkpoint.keras")
    assert kept.read_bytes() == before


def test_a_loss_that_is_no_number_leaves_the_last_good_checkpoint(copied, capsys, monkeypatch):
    path = checkpoint_of(copied)
    build_epoch = quatrains.build_epoch

    def bad_epoch(*given):
        epoch = build_epoch(*given)
        return lambda rng: epoch(rng) | ({"loss": float("nan")} if next(calls) > 2 else {})

    calls = iter(range(100))
    monkeypatch.setattr(quatrains, "build_epoch", bad_epoch)
    assert quatrains.main(arguments(**SMALL | {"resume": True, "runs": 9})) == 2
    captured = capsys.readouterr()
    assert "the loss has become nan in epoch 2 of run 5" in captured.err
    assert (
        f"\n{path.relative_to(copied)} holds the training up to its last whole run" in captured.out
    )
    assert quatrains.read_checkpoint(path).runs == 5


@pytest.fixture
def small_disk(tmp_path):
    """A disk of 600 kB, and a way to make it larger."""
    disk = tmp_path / "disk"
    disk.mkdir()

    def mount(options):
        done = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", disk])
        if done.returncode:
            pytest.skip("only root can mount a disk")

    mount("size=600k")
    yield disk, lambda: mount("remount,size=64m")
    subprocess.run(["umount", disk], check=True)


def test_a_full_disk_keeps_the_last_checkpoint(small_disk):
    disk, enlarge = small_disk
    write_verses(disk / "verses.txt")
    full = run_script(disk, **SMALL | {"runs": 100_000})
    assert full.returncode == 2
    assert re.fullmatch(r"quatrains: the training broke off \(.*o space.*\): .*\n", full.stderr)
    unfinished = int(re.findall(r"\nRun (\d+)\n", full.stdout)[-1])
    assert unfinished > 3
    path = checkpoint_of(disk)
    assert [file.name for file in path.parent.glob("*.keras")] == ["checkpoint.keras"]
    assert quatrains.read_checkpoint(path).runs in (unfinished, unfinished + 1)
    enlarge()
    done = run_script(disk, **SMALL | {"resume": True, "runs": unfinished + 3})
    assert done.returncode == 0, done.stderr
    assert f"Going on after run {unfinished - 1}" in done.stdout


def test_files_that_may_not_grow_keep_the_last_checkpoint(tmp_path):
    """The limit lets logs through and stops checkpoints, which start larger."""
    write_verses(tmp_path / "verses.txt")
    settings = SMALL | {"runs": 2, "gru_dim": 100, "embedding_dim": 200}
    process = subprocess.run(
        [sys.executable, ROOT / "quatrains.py", *arguments(**settings)],
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000)),
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert process.returncode == 2, process.stdout + process.stderr
    assert re.fullmatch(
        r"quatrains: the training broke off \(.*too large.*\): .*\n", process.stderr
    )
    assert not [*tmp_path.rglob("*.keras")]


# ==== Writing without training ====


def test_quatrains_are_written_from_the_checkpoint(copied):
    (copied / "verses.txt").unlink()
    process = run_script(copied, generate=20, seed=5)
    assert process.returncode == 0
    assert re.fullmatch(r'\nLongest quote: \d words, "[a-z ]+" \(\d+\)\.\n', process.stderr)
    quatrains_written = process.stdout.rstrip("\n").split("\n\n")
    assert 15 <= len(quatrains_written) <= 20
    assert all(verse.count("\n") <= 3 for verse in quatrains_written)
    assert re.search(r"\b(Mars|Rome)\b", process.stdout)
    assert not re.search(r"\b(mars|rome)\b", process.stdout)
    again = run_script(copied, generate=20, seed=5, output="new.txt")
    assert again.stdout == ""
    assert (copied / "new.txt").read_text() == process.stdout
    raw = run_script(copied, generate=20, seed=5, raw=True)
    assert raw.stdout.count("\n") == 20


def test_writing_goes_on_beside_a_training(tmp_path):
    write_verses(tmp_path / "verses.txt")
    training = start_script(tmp_path, **SMALL | {"runs": 100_000})
    try:
        wait_for(training, "Run 1\n")
        written = run_script(tmp_path, generate=4, raw=True)
        assert written.returncode == 0, written.stderr
        assert written.stdout.count("\n") == 4
        assert training.poll() is None
    finally:
        training.kill()
        training.communicate()


def test_an_output_that_cannot_be_written_is_refused(copied, capsys):
    assert quatrains.main(arguments(generate=2, output="no/such/file")) == 2
    assert capsys.readouterr().err.startswith("quatrains: output no/such/file cannot be written")
