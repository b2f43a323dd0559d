"""Keras's callbacks, which act in the script's trainings as they do under `fit`."""

import csv
from pathlib import Path

import numpy as np
import pytest

import quatrains
from conftest import QUICK, read_curve, write_verses
from quatrains import Settings, keras

CALLBACKS = keras.callbacks


@pytest.fixture
def training(verses, monkeypatch):
    """A function that trains with callbacks in a folder with verses."""
    monkeypatch.chdir(verses.parent)

    def train(*callbacks, **settings):
        monkeypatch.setattr(quatrains, "make_callbacks", lambda settings: [*callbacks])
        return quatrains.train(Settings(**QUICK | settings))

    return train


def use_rates(*rates):
    return CALLBACKS.LearningRateScheduler(lambda epoch: rates[min(epoch, len(rates) - 1)])


def load_weights(path):
    return keras.models.load_model(path).get_weights()


@pytest.mark.parametrize("restore", [True, False])
def test_early_stopping_ends_a_training_and_keeps_the_best_weights(training, restore):
    weights = []
    noting = CALLBACKS.LambdaCallback(
        on_epoch_end=lambda epoch, logs: weights.append(noting.model.get_weights())
    )
    stopping = CALLBACKS.EarlyStopping("val_loss", patience=2, restore_best_weights=restore)
    # From the third epoch on steps are so large that nothing gets better.
    prophet = training(use_rates(0.01, 0.01, 3.0), noting, stopping, runs=9, epochs_per_run=3)
    losses = prophet.history.history["val_loss"]
    assert np.argmin(losses) == 1
    assert len(losses) == len(weights) == 4
    assert prophet.runs == 2
    saved = load_weights(prophet.folder / "checkpoint.keras")
    assert all(map(np.array_equal, saved, weights[1 if restore else 3]))
    assert all(map(np.array_equal, saved, prophet.model.get_weights()))


def test_a_lowered_learning_rate_is_a_curve_and_stays_low_when_resumed(training):
    # No epoch is so much better, so each after the first is on a plateau.
    def lower():
        return CALLBACKS.ReduceLROnPlateau("loss", factor=0.5, patience=1, min_delta=1000)

    prophet = training(lower(), learning_rate=0.01)
    assert prophet.history.history["learning_rate"] == pytest.approx([0.01, 0.01, 0.005, 0.0025])
    training(lower(), resume=True, runs=3)
    rates = read_curve(prophet.folder / "train", "learning_rate")
    expected = [0.01, 0.01, 0.005, 0.0025, 0.00125, 0.00125]
    assert rates == pytest.approx(dict(enumerate(expected, 1)))


@pytest.fixture(scope="module")
def resumed(tmp_path_factory):
    """A training of two runs and a resumed one, with callbacks that write files."""
    folder = write_verses(tmp_path_factory.mktemp("callbacks") / "verses.txt").parent

    def make_callbacks(settings):
        assert (settings.name, settings.batch_size) == ("mine", QUICK["batch_size"])
        return [
            use_rates(*(0.01 / epoch for epoch in range(1, 99))),
            CALLBACKS.CSVLogger("epochs.csv", append=True),
            CALLBACKS.ModelCheckpoint("model-{epoch}.keras", monitor="val_loss"),
            CALLBACKS.LambdaCallback(on_epoch_begin=lambda epoch, logs: epochs.append(epoch)),
        ]

    epochs = []
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(quatrains, "make_callbacks", make_callbacks)
        first = quatrains.train(Settings(**QUICK, name="mine"))
        second = quatrains.train(Settings(resume=True, runs=3, name="mine"))
    return folder, first, second, epochs


def test_epochs_count_through_all_runs_and_a_resumed_training(resumed):
    folder, first, second, epochs = resumed
    assert epochs == [0, 1, 2, 3, 4, 5]
    with (folder / "epochs.csv").open() as file:
        rows = [*csv.DictReader(file)]
    assert [row["epoch"] for row in rows] == ["0", "1", "2", "3", "4", "5"]
    assert (first.history.epoch, second.history.epoch) == ([0, 1, 2, 3], [4, 5])
    figures = first.history.history
    assert figures.keys() == {"loss", "acc", "val_loss", "val_acc", "learning_rate"}
    assert rows[0].keys() == {"epoch", *figures}
    for name, values in figures.items():
        written = [float(row[name]) for row in rows]
        assert written == values + second.history.history[name]
    rates = dict(enumerate((0.01 / epoch for epoch in range(1, 7)), 1))
    assert read_curve(folder / second.folder / "train", "learning_rate") == pytest.approx(rates)


def test_model_checkpoints_are_those_of_their_epochs(resumed):
    folder, _, second, _ = resumed
    names = {path.name for path in folder.glob("*.keras")}
    assert names == {f"model-{epoch}.keras" for epoch in range(1, 7)}
    last = load_weights(folder / "model-6.keras")
    assert all(map(np.array_equal, last, load_weights(folder / second.folder / "checkpoint.keras")))
    assert not any(map(np.array_equal, last, load_weights(folder / "model-4.keras")))


def test_terminate_on_nan_ends_an_epoch_at_its_first_bad_batch(training, verses, capsys):
    ends = []
    noting = CALLBACKS.LambdaCallback(on_train_batch_end=lambda batch, logs: ends.append(batch))
    with pytest.raises(quatrains.InputError, match=r"^val_loss is no number any more: lower"):
        training(use_rates(float("inf")), CALLBACKS.TerminateOnNaN(), noting, batch_size=64)
    assert ends == [7]
    printed = capsys.readouterr().out
    assert "Batch 7: Invalid loss, terminating training\n" in printed
    assert printed.endswith("Nothing is kept, for the first run had not ended.\n")
    assert not [*verses.parent.glob("logs/*")]


def test_a_training_stopped_after_a_run_goes_on_as_if_it_had_not(training):
    def scale():
        return CALLBACKS.LearningRateScheduler(lambda epoch, rate: rate / 2)

    def stop(batch, logs):
        if [*Path().glob("logs/*/checkpoint.keras")]:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        training(scale(), CALLBACKS.LambdaCallback(on_train_batch_begin=stop), learning_rate=0.08)
    prophet = training(scale(), resume=True, learning_rate=0.08)
    rates = read_curve(prophet.folder / "train", "learning_rate")
    assert rates == pytest.approx({1: 0.04, 2: 0.02, 3: 0.01, 4: 0.005})
