"""Keras's callbacks, which work in the script's training as they do with `fit`."""

import csv
from pathlib import Path

import numpy as np
import pytest

import quatrains
from conftest import QUICK, read_curve
from quatrains import keras

CALLBACKS = keras.callbacks


@pytest.fixture
def train(verses, monkeypatch):
    """A function that trains with callbacks in a folder with verses."""
    monkeypatch.chdir(verses.parent)

    def train(*callbacks, **overrides):
        monkeypatch.setattr(quatrains, "make_callbacks", lambda settings: [*callbacks])
        return quatrains.train(**QUICK | overrides)

    return train


def use_rates(*rates):
    return CALLBACKS.LearningRateScheduler(lambda epoch: rates[min(epoch, len(rates) - 1)])


def load_weights(path):
    return keras.models.load_model(path).get_weights()


@pytest.mark.parametrize("restore", [True, False])
def test_early_stopping_in_a_run_ends_it_with_the_best_weights(train, restore, capsys):
    """The run's quatrains are theirs too, and so is the checkpoint."""
    weights = []
    recorder = CALLBACKS.LambdaCallback(
        on_epoch_end=lambda epoch, logs: weights.append(recorder.model.get_weights())
    )
    stopping = CALLBACKS.EarlyStopping("val_loss", patience=2, restore_best_weights=restore)
    # From the third epoch, the steps are so large that nothing improves.
    lm = train(use_rates(0.01, 0.01, 3.0), recorder, stopping, runs=9, epochs_per_run=3)
    losses = lm.model.history.history["val_loss"]
    assert np.argmin(losses) == 1
    assert len(losses) == len(weights) == 4
    assert lm.completed_runs == 2
    assert [*read_curve(lm.folder, "slor")] == [3, 4]
    saved = load_weights(lm.folder / "checkpoint.keras")
    assert all(map(np.array_equal, saved, weights[1 if restore else 3]))
    assert all(map(np.array_equal, saved, lm.model.get_weights()))
    last = "\n\n".join(map(str, lm.generate(3, [QUICK["seed"], 1])))
    assert f"\n\n{last}\n\nLongest quote: " in capsys.readouterr().out
    # The next run follows the epoch that was reached.
    resumed = train(resume=True, runs=3, epochs_per_run=3)
    assert resumed.model.history.epoch == [4, 5, 6]
    assert [*read_curve(lm.folder, "slor")] == [3, 4, 7]
    assert [*read_curve(lm.folder / "train", "loss")] == [1, 2, 3, 4, 5, 6, 7]


def test_a_lowered_learning_rate_is_logged_and_stays_low_on_resume(train):
    # No epoch improves by so much, so each after the first is on a plateau.
    def lower():
        return CALLBACKS.ReduceLROnPlateau("loss", factor=0.5, patience=1, min_delta=1000)

    lm = train(lower(), learning_rate=0.01)
    train(lower(), resume=True, runs=3)
    rates = read_curve(lm.folder / "train", "learning_rate")
    expected = [0.01, 0.01, 0.005, 0.0025, 0.00125, 0.00125]
    assert rates == pytest.approx(dict(enumerate(expected, 1)))


def test_epochs_are_counted_across_all_runs_and_a_resume(train):
    def make_callbacks():
        return [
            use_rates(*(0.01 / epoch for epoch in range(1, 99))),
            CALLBACKS.CSVLogger("epochs.csv", append=True),
            CALLBACKS.ModelCheckpoint("model-{epoch}.keras", monitor="val_loss"),
        ]

    models = [train(*make_callbacks()), train(*make_callbacks(), resume=True, runs=3)]
    with Path("epochs.csv").open() as file:
        rows = [*csv.DictReader(file)]
    assert [row["epoch"] for row in rows] == ["0", "1", "2", "3", "4", "5"]
    histories = [lm.model.history for lm in models]
    assert [history.epoch for history in histories] == [[0, 1, 2, 3], [4, 5]]
    names = {"loss", "acc", "val_loss", "val_acc", "learning_rate"}
    assert rows[0].keys() == {"epoch", *names}
    for name in names:
        values = [value for history in histories for value in history.history[name]]
        assert [float(row[name]) for row in rows] == values
    rates = dict(enumerate((0.01 / epoch for epoch in range(1, 7)), 1))
    assert read_curve(models[1].folder / "train", "learning_rate") == pytest.approx(rates)
    assert {path.name for path in Path().glob("*.keras")} == {f"model-{n}.keras" for n in rates}
    last, earlier = load_weights("model-6.keras"), load_weights("model-4.keras")
    assert all(map(np.array_equal, last, load_weights(models[1].folder / "checkpoint.keras")))
    assert not any(map(np.array_equal, last, earlier))


def test_terminate_on_nan_ends_an_epoch_early_and_leaves_the_last_checkpoint(train, capsys):
    ends = []
    recorder = CALLBACKS.LambdaCallback(on_train_batch_end=lambda batch, logs: ends.append(batch))
    lm = train(recorder, runs=1, batch_size=64, use_xla=True)
    # Several batches end at once, but none after the last, which progress bars show.
    assert 1 < len({*ends}) < max(ends) + 1 == recorder.params["steps"]
    (checkpoint,) = lm.folder.glob("*.keras")
    before = checkpoint.read_bytes()
    ends.clear()
    callbacks = use_rates(float("inf")), CALLBACKS.TerminateOnNaN(), recorder
    with pytest.raises(quatrains.UsageError, match=r"^val_loss is not finite: lower learning_rate"):
        train(*callbacks, resume=True, batch_size=64, use_xla=True)
    (end,) = ends
    assert 0 < end < recorder.params["steps"] - 1
    output = capsys.readouterr().out
    assert f"Batch {end}: Invalid loss, terminating training\n" in output
    assert f"\n{checkpoint} has the model as of the last completed run.\n" in output
    assert checkpoint.read_bytes() == before


def test_averaged_weights_replace_the_last_ones_when_training_ends(train, monkeypatch):
    def build_averaged(*arguments):
        model = build_model(*arguments)
        model.compile(keras.optimizers.SGD(1.0, use_ema=True, ema_momentum=0.5), model.loss)
        return model

    build_model, weights = quatrains.build_model, []
    monkeypatch.setattr(quatrains, "build_model", build_averaged)
    recorder = CALLBACKS.LambdaCallback(
        on_train_batch_end=lambda batch, logs: weights.append(recorder.model.get_weights())
    )
    lm = train(recorder)
    assert len(weights) == 4
    average = weights[0]
    for step in weights[1:]:
        average = [(old + new) / 2 for old, new in zip(average, step, strict=True)]
    saved = load_weights(lm.folder / "checkpoint.keras")
    for value, expected, last in zip(saved, average, weights[-1], strict=True):
        np.testing.assert_allclose(value, expected, atol=1e-6)
        assert not np.allclose(value, last, atol=1e-5)


def test_a_system_error_in_a_callback_keeps_its_traceback(train):
    def fail(epoch, logs):
        Path("mine.csv").read_text()

    callback = CALLBACKS.LambdaCallback(on_epoch_end=fail)
    with pytest.raises(FileNotFoundError, match="mine") as error, quatrains.one_line_errors():
        train(callback)
    assert fail.__code__ in [entry.frame.code.raw for entry in error.traceback]
