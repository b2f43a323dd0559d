"""A hundred kills at random moments: whatever comes next finds all trainings whole. Long."""

import random
import re
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

import quatrains
from conftest import (
    SMALL,
    read_curve,
    read_files,
    run_script,
    start_script,
    wait_for,
    write_verses,
)

pytestmark = pytest.mark.long

SETTINGS = SMALL | {"corpus": "verses.txt", "runs": 100_000, "epochs_per_run": 1}


def train_and_kill(folder, settings, line, seconds):
    """Kill a training some seconds after it has printed such a line; return what it had printed."""
    process = start_script(folder, **settings)
    told = wait_for(process, line)
    threading.Timer(seconds, process.kill).start()
    rest, errors = process.communicate(timeout=60)
    assert (process.returncode, errors) == (-9, "")
    return told + rest


def kill_many(folder, kills, seed):
    draw = random.Random(seed)
    write_verses(folder / "verses.txt")
    done, begun = 0, {}
    for _ in range(kills):
        before = read_files(folder)
        paths = sorted(folder.glob("logs/*/checkpoint.keras"))
        resumed = bool(paths) and draw.random() < 0.8
        if resumed and draw.random() < 0.1:
            written = run_script(folder, generate=1)
            assert written.returncode == 0
            assert written.stderr.startswith(f"\nFrom {paths[-1].relative_to(folder)}")
            assert read_files(folder) == before
        # Into compiling, the first writing, the first saving, and the runs after it.
        moment = draw.choice((("Run ", 3), ("Epoch ", 1), ("Longest ", 0.3), ("Longest ", 2)))
        settings = {"resume": True, "runs": 100_000} if resumed else SETTINGS
        told = train_and_kill(folder, settings, moment[0], draw.uniform(0, moment[1]))

        runs = [int(run) for run in re.findall(r"^Run (\d+)$", told, re.MULTILINE)]
        after = read_files(folder)
        if resumed:
            path = paths[-1]
            assert runs[0] == begun[path], told
            assert f"Going on after run {runs[0] - 1} from {path.relative_to(folder)}" in told
        else:
            assert runs[0] == 0
            (own,) = {file.parent for file in after.keys() - before.keys() if file.name == "lock"}
            path = own / "checkpoint.keras"
        others = {file: data for file, data in before.items() if path.parent not in file.parents}
        assert {file: after.get(file) for file in others} == others
        if path.exists():
            checkpoint, corpus = quatrains.read_checkpoint(path)
            quatrains.load_model(path, len(corpus.words), 4)
            assert checkpoint.runs in (runs[-1], runs[-1] + 1)
            begun[path] = checkpoint.runs
            done += 1
        else:
            assert not resumed
            assert runs == [0]
    return done


def test_a_hundred_kills(tmp_path):
    """In two folders side by side, for there are two cores."""
    quatrains.load_tensorflow(use_gpu=False)
    folders = [tmp_path / "a", tmp_path / "b"]
    for folder in folders:
        folder.mkdir()
    started = time.monotonic()
    with ThreadPoolExecutor(2) as pool:
        done = [*pool.map(kill_many, folders, (8, 8), (3, 4))]
    print(f"{sum(done)} of 100 kills left a checkpoint; {time.monotonic() - started:.0f} s")
    assert sum(done) >= 5
    for path in tmp_path.glob("*/logs/*/checkpoint.keras"):
        runs = quatrains.read_checkpoint(path)[0].runs
        for half in ("train", "validation"):
            assert [*read_curve(path.parent / half, "loss")][:runs] == [*range(runs)]
        assert [*read_curve(path.parent, "quote")][:runs] == [*range(runs)]
