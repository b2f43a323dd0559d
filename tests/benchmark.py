"""Measure the script against an earlier commit, a straightforward port, and matrix products alone.

    python tests/benchmark.py                            everything, about half an hour
    python tests/benchmark.py epoch generate             some of it; --help lists the measurements
    python tests/benchmark.py --rounds 5 epoch
    python tests/benchmark.py --against 2e2bcff          measure the script of that commit as well

In each round, the versions take turns. Prints the minimum and the median of each, and the median of
the current script's time divided by that of each. Run it by hand on a quiet machine. benchmark.md
has the results.
"""

import argparse
import contextlib
import importlib.util
import io
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from functools import partial
from pathlib import Path
from unittest import mock

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
import quatrains  # noqa: E402

CORPUS = ROOT / "data" / "quatrains.txt"
NOW = "now"


def load_commit(commit):
    """Import the script of another commit, 2e2bcff or later."""
    command = ["git", "show", f"{commit}:quatrains.py"]
    path = Path(tempfile.mkdtemp(), "other.py")
    path.write_bytes(subprocess.run(command, cwd=ROOT, capture_output=True, check=True).stdout)
    spec = importlib.util.spec_from_file_location("other", path)
    script = sys.modules["other"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    return script


def train(script, **overrides):
    """Train one run with the script of any commit, and return the model with its corpus."""
    overrides |= {"corpus": str(CORPUS), "glove": "none", "seed": 1, "name": f"{time.time_ns()}"}
    return script.train(runs=1, **overrides)


def timed(work, *arguments):
    """Return the seconds that a call takes. Discard what it prints."""
    start = time.perf_counter()
    with contextlib.redirect_stdout(io.StringIO()):
        work(*arguments)
    return time.perf_counter() - start


def compare(title, rounds, sides):
    """Print the seconds that each version returns, and the current script's divided by them."""
    seconds = {name: [] for name in sides}
    for _ in range(rounds + 1):
        for name, side in sides.items():
            seconds[name].append(side())
    print(f"\n{title} ({rounds} rounds after a warm-up)")
    for name, (_, *values) in seconds.items():
        ratio = statistics.median(np.array(seconds[NOW][1:]) / values)
        middle = statistics.median(values)
        print(f"  {name:14} min {min(values):8.3f} s   median {middle:8.3f} s   ratio {ratio:.3f}")


class Epochs(quatrains.keras.callbacks.Callback):
    """Let training wait before each epoch, so that the versions take turns."""

    def __init__(self, script, recipe):
        super().__init__()
        self.go, self.done = threading.Semaphore(0), threading.Semaphore(0)
        experiment = partial(train, script, recipe=recipe, epochs_per_run=10**6)
        with mock.patch.object(script, "make_callbacks", lambda settings: [self]):
            threading.Thread(target=experiment, daemon=True).start()
            timed(self.train_epoch)  # Compiles.

    def on_epoch_begin(self, epoch, logs=None):
        self.go.acquire()

    def on_epoch_end(self, epoch, logs=None):
        self.done.release()

    def train_epoch(self):
        self.go.release()
        self.done.acquire()


def make_plain_port(samples, counts):
    """Build the system of 2017 in the most obvious Keras 3. Return what trains an epoch of it."""
    keras, vocab_size = quatrains.keras, len(counts)
    (phrases, targets), validation = [
        (phrases, np.eye(vocab_size, dtype=bool)[targets[:, 0]]) for phrases, targets, _ in samples
    ]
    penalty = keras.regularizers.L2(0.02)
    gru = keras.layers.GRU(
        128,
        dropout=0.5,
        recurrent_dropout=0.5,
        kernel_regularizer=penalty,
        recurrent_regularizer=penalty,
        bias_regularizer=penalty,
    )
    dense = keras.layers.Dense(vocab_size, activation="softmax")
    model = keras.Sequential([keras.layers.Embedding(vocab_size, 300), gru, dense])
    model.compile("rmsprop", "categorical_crossentropy", metrics=["acc"])
    return partial(
        model.fit,
        phrases,
        targets,
        batch_size=512,
        class_weight=dict(enumerate(np.sqrt(counts))),
        validation_data=validation,
    )


def make_floor(batch, phrase_len, dim, units, vocab_size):
    """Return the matrix products of one step, forward and both backward, and nothing else: of the
    GRU's inputs, its states, and the dense layer."""
    tf = quatrains.tf

    def operands(rows, inner, outer):
        return tuple(map(tf.random.normal, ((rows, inner), (inner, outer), (rows, outer))))

    def products(x, weights, y):
        return [
            tf.matmul(x, weights),
            tf.matmul(x, y, transpose_a=True),
            tf.matmul(y, weights, transpose_b=True),
        ]

    inputs = operands(batch * phrase_len, dim, 3 * units)
    states = operands(batch, units, 3 * units)
    dense = operands(batch, units, vocab_size)

    @tf.function
    def floor():
        results = products(*inputs) + products(*dense)
        state, weights, y = states
        for _ in range(phrase_len):
            # In sequence, as in a GRU. All at once, they disturb each other on two cores, which
            # makes the floor 12% too high.
            made = products(state, weights, y)
            results += made
            state = made[2]
        return [tf.reduce_sum(result[0]) for result in results]

    return floor


def measure_epoch(rounds, scripts):
    corpus = quatrains.index_corpus(quatrains.read_corpus(CORPUS))
    samples = quatrains.make_samples(corpus, quatrains.Settings())
    steps = round(len(samples[0][1]) / 512)
    floor = make_floor(512, 4, 300, 128, len(corpus.counts))
    others = {
        "plain port": make_plain_port(samples, corpus.counts),
        "products": lambda: [floor() for _ in range(steps)],
    }
    for recipe in quatrains.RECIPES:
        sides = {name: Epochs(script, recipe).train_epoch for name, script in scripts.items()}
        sides |= others if recipe == "2017" else {}
        sides = {name: partial(timed, work) for name, work in sides.items()}
        compare(f"An epoch of recipe {recipe}, with its validation", rounds, sides)


def measure_generate(rounds, scripts):
    for recipe in quatrains.RECIPES:
        methods, weights = {}, None
        for name, script in scripts.items():
            with contextlib.redirect_stdout(io.StringIO()):
                lm = train(script, recipe=recipe, epochs_per_run=1 if weights else 15)
            weights = weights or lm.model.get_weights()
            # Otherwise the mean lengths of the quatrains would differ.
            lm.model.set_weights(weights)
            temperature = quatrains.make_settings(recipe=recipe).temperature
            methods[name] = partial(lm.generate, temperature=temperature)
        for count in (5, 100):
            sides = {name: partial(timed, method, count) for name, method in methods.items()}
            compare(f"{count} quatrains of recipe {recipe}", rounds, sides)


def start(script, *options):
    """Start a script as a command."""
    command = [sys.executable, script.__file__, f"--corpus={CORPUS}", "--glove=none", *options]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL, "encoding": "utf-8"}
    return subprocess.Popen(command, **pipes)


def time_first_epoch(script, recipe):
    """Return the seconds from the line before the first epoch to the line with its metrics."""
    with start(script, f"--recipe={recipe}", "--runs=1", "--epochs-per-run=1") as process:
        lines = ((line, time.perf_counter()) for line in process.stdout)
        begin = next(now for line, now in lines if line.startswith("Train on"))
        end = next(now for line, now in lines if "val_loss" in line)
        process.communicate()
    return end - begin


def measure_first(rounds, scripts):
    for recipe in quatrains.RECIPES:
        sides = {name: partial(time_first_epoch, each, recipe) for name, each in scripts.items()}
        compare(f"The first epoch of recipe {recipe}, with compilation", rounds, sides)


def measure_stop(rounds, scripts):
    """Send SIGINT at a random moment of the first 30 seconds, in which the first run ends."""
    # A shell may start background jobs with SIGINT ignored, which new processes would inherit.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    moments = [random.uniform(0, 30) for _ in range(rounds)]
    for name, script in scripts.items():
        seconds = []
        for moment in moments:
            with start(script) as process:
                next(line for line in process.stdout if line.startswith("Train on"))
                time.sleep(moment)
                process.send_signal(signal.SIGINT)
                seconds.append(timed(process.communicate))
        print(f"\nSeconds from Ctrl-C to the end, {name}:", *(f"{s:.2f}" for s in sorted(seconds)))


MEASUREMENTS = {
    "epoch": measure_epoch,
    "generate": measure_generate,
    "first": measure_first,
    "stop": measure_stop,
}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", nargs="*", default=list(MEASUREMENTS), choices=list(MEASUREMENTS))
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--against", metavar="COMMIT", help="commit to compare with")
    options = parser.parse_args()
    scripts = {NOW: quatrains}
    if options.against:
        scripts[options.against] = load_commit(options.against)
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)  # For the logs.
        for name in options.what:
            MEASUREMENTS[name](options.rounds, scripts)


if __name__ == "__main__":
    main()
