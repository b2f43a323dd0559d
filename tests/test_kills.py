"""Kills and Ctrl-C at random moments: whatever comes next finds all experiments intact."""

import random
import re
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

import quatrains
from conftest import QUICK, ROOT, arguments, read_curve, read_files, run

NEW = QUICK | {"runs": 100_000, "epochs_per_run": 1}
RESUME = {"resume": True, "runs": 100_000}
# In the first step, the first saving, the first generation, and the runs after it.
MOMENTS = (("Run ", 3), ("Epoch ", 1), ("Longest ", 0.3), ("Longest ", 2))
ENDS = {signal.SIGKILL: (-9, ""), signal.SIGTERM: (-15, ""), signal.SIGINT: (130, "stopped")}


def train_and_end(rng, moments, **settings):
    """End training some time after it has printed a text; return all that it printed."""
    text, most = rng.choice(moments)
    number = rng.choice([*ENDS])
    command = [sys.executable, ROOT / "quatrains.py", *arguments(**settings)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    output = ""
    for line in process.stdout:  # To its end, because `communicate` loses what is buffered.
        if text in line and text not in output:
            threading.Timer(rng.uniform(0, most), process.send_signal, [number]).start()
        output += line
    errors = process.communicate(timeout=60)[1]
    assert (process.returncode, errors.removeprefix("quatrains: ").strip()) == ENDS[number]
    return output


FIFTY = [pytest.param(50, 25, seed, MOMENTS, marks=pytest.mark.long) for seed in (2, 3)]


@pytest.mark.parametrize(("count", "least", "seed", "moments"), [(2, 0, 1, MOMENTS[3:]), *FIFTY])
def test_what_comes_next_finds_all_intact(verses, count, least, seed, moments):
    rng, saved, runs = random.Random(seed), 0, {}  # By checkpoint.
    for _ in range(count):
        before = read_files(Path())
        path = max(runs, key=lambda path: path.stat().st_mtime_ns, default=None)
        if path and rng.random() < 0.8:
            output = train_and_end(rng, moments, **RESUME)
            assert output.startswith(f"Resuming {path.parent} after run {runs[path] - 1}.\n")
        else:
            output = train_and_end(rng, moments, **NEW)
            (lock,) = {*Path().rglob("lock")} - {*before}
            path = lock.with_name("checkpoint.keras")
        numbers = [int(number) for number in re.findall(r"^Run (\d+)$", output, re.MULTILINE)]
        assert numbers[0] == runs.get(path, 0)
        after = read_files(Path())
        others = {file: before[file] for file in before if path.parent not in file.parents}
        assert {file: after.get(file) for file in others} == others
        if path.exists():
            runs[path] = quatrains.load_checkpoint(path, {}).completed_runs
            assert runs[path] - numbers[-1] in (0, 1)
            assert run(generate=1) == 0
            assert read_files(Path()) == after
        saved += path.exists()
    for path, number in runs.items():
        assert run(**RESUME | {"runs": number + 1}, log_dir=path.parent) == 0
        for half in ("train", "validation"):
            assert [*read_curve(path.parent / half, "loss")] == [*range(1, number + 2)]
    assert saved >= least
