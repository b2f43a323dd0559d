"""A hundred kills at random moments: what goes on afterwards is whole. Takes minutes."""

import random
import re
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

import quatrains
from conftest import ROOT, SMALL, arguments, write_verses

pytestmark = pytest.mark.long

SETTINGS = SMALL | {"corpus": "verses.txt", "runs": 100_000, "epochs_per_run": 1}


def train_and_kill(folder, resume, seconds):
    """Kill a training some seconds after its first run has begun; return what it had printed."""
    process = subprocess.Popen(
        [sys.executable, ROOT / "quatrains.py", *arguments(**SETTINGS | resume)],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    read = []
    for line in process.stdout:
        read.append(line)
        if line.startswith("Run "):
            threading.Timer(seconds, process.kill).start()
            break
    rest, errors = process.communicate(timeout=60)
    assert process.returncode == -9, (errors, read)
    assert errors == ""
    return "".join(read) + rest


def kill_many(folder, kills, seed):
    draw = random.Random(seed)
    write_verses(folder / "verses.txt")
    done, resume, begun = 0, {}, 0
    for _ in range(kills):
        # Half of the kills fall into compiling, which takes about three seconds, the rest spread.
        seconds = draw.choice((draw.uniform(0, 6), draw.uniform(0, 0.3)))
        told = train_and_kill(folder, resume, seconds)
        runs = [int(run) for run in re.findall(r"^Run (\d+)$", told, re.MULTILINE)]
        # It went on with the run that was unfinished, or with the one after it if that was saved.
        assert runs[0] in (begun, begun + 1), told
        if resume:
            assert f"Going on after run {runs[0] - 1} from " in told
        begun = runs[-1]
        found = [*(folder / "logs").glob("*/checkpoint.keras")]
        assert len(found) <= 1
        if found:
            saved = quatrains.read_checkpoint(found[0])
            assert saved.runs in (begun, begun + 1)
            quatrains.load_model(found[0], saved)
            resume = {"resume": True}
            done += 1
        else:
            # Killed in its very first run: there is nothing yet, and the next starts anew.
            assert begun == 0
    return done


def test_a_hundred_kills(tmp_path):
    """In two folders side by side, for there are two cores."""
    quatrains.load_tensorflow(use_gpu=False)
    folders = [tmp_path / "a", tmp_path / "b"]
    for folder in folders:
        folder.mkdir()
    started = time.monotonic()
    with ThreadPoolExecutor(2) as pool:
        done = [*pool.map(kill_many, folders, (50, 50), (1, 2))]
    print(f"{sum(done)} of 100 kills left a checkpoint; {time.monotonic() - started:.0f} s")
    assert sum(done) >= 50
