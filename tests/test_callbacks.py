"""Keras's callbacks, which work in the script's training as they do with `fit`."""

import numpy as np
import pytest

import quatrains
from conftest import QUICK, read_curve
from quatrains import keras

CALLBACKS = keras.callbacks


@pytest.fixture
def train(verses, monkeypatch):
    """A function that trains with callbacks in a folder with verses."""

    def train(*callbacks, **overrides):
        monkeypatch.setattr(quatrains, "make_callbacks", lambda settings: [*callbacks])
        return quatrains.train(**QUICK | overrides)

    return train


def use_rates(*rates):
    return CALLBACKS.LearningRateScheduler(lambda epoch: rates[min(epoch, len(rates) - 1)])


def record_weights(weights):
    recorder = CALLBACKS.LambdaCallback(
        on_epoch_end=lambda epoch, logs: weights.append(recorder.model.get_weights())
    )
    return recorder


def load_weights(path):
    return keras.models.load_model(path).get_weights()


def test_early_stopping_in_a_run_ends_it_with_the_best_weights(train, capsys):
    """The run's quatrains and checkpoint are theirs."""
    weights = []
    stopping = CALLBACKS.EarlyStopping("val_loss", patience=2, restore_best_weights=True)
    # From the third epoch, the steps are so large that nothing improves.
    callbacks = use_rates(0.01, 0.01, 3.0), record_weights(weights), stopping
    lm = train(*callbacks, runs=9, epochs_per_run=3)
    losses = lm.model.history.history["val_loss"]
    assert lm.model.history.history["learning_rate"] == pytest.approx([0.01, 0.01, 3, 3])
    assert np.argmin(losses) == 1
    assert len(losses) == len(weights) == 4
    assert lm.completed_runs == 2
    saved = load_weights(lm.folder / "checkpoint.keras")
    assert all(map(np.array_equal, saved, weights[1]))
    assert all(map(np.array_equal, saved, lm.model.get_weights()))
    last = "\n\n".join(map(str, lm.generate(3, [QUICK["seed"], 1])))
    assert f"\n\n{last}\n\nLongest quote: " in capsys.readouterr().out
    # The next run follows the epoch that was reached.
    resumed = train(resume=True, runs=3, epochs_per_run=3)
    assert resumed.model.history.epoch == [4, 5, 6]
    assert [*read_curve(lm.folder, "slor")] == [3, 4, 7]
    assert [*read_curve(lm.folder / "train", "loss")] == [1, 2, 3, 4, 5, 6, 7]


def test_epochs_and_a_lowered_learning_rate_continue_across_runs_and_a_resume(train):
    def train_on(**overrides):
        # No epoch improves by so much, so each after the first is on a plateau.
        lower = CALLBACKS.ReduceLROnPlateau("loss", factor=0.5, patience=1, min_delta=1000)
        saver = CALLBACKS.ModelCheckpoint("model-{epoch}.keras", monitor="val_loss")
        return train(lower, saver, **overrides)

    models = [train_on(learning_rate=0.01), train_on(resume=True, runs=3)]
    histories = [lm.model.history for lm in models]
    assert [history.epoch for history in histories] == [[0, 1, 2, 3], [4, 5]]
    saved = [load_weights(f"model-{epoch}.keras") for epoch in range(1, 7)]
    assert all(map(np.array_equal, saved[5], load_weights(models[1].folder / "checkpoint.keras")))
    assert not any(map(np.array_equal, saved[5], saved[3]))
    rates = [rate for history in histories for rate in history.history["learning_rate"]]
    assert rates == pytest.approx([0.01, 0.01, 0.005, 0.0025, 0.00125, 0.00125])
    curve = read_curve(models[1].folder / "train", "learning_rate")
    assert curve == pytest.approx(dict(enumerate(rates, 1)))


def test_terminate_on_nan_ends_an_epoch_early_and_leaves_the_last_checkpoint(train, capsys):
    ends = []
    recorder = CALLBACKS.LambdaCallback(on_train_batch_end=lambda batch, logs: ends.append(batch))
    lm = train(recorder, runs=1, batch_size=64, use_xla=True)
    # Several batches end at once, but none after the last, which progress bars show.
    assert 1 < len({*ends}) < max(ends) + 1 == recorder.params["steps"]
    checkpoint = lm.folder / "checkpoint.keras"
    before = checkpoint.read_bytes()
    ends.clear()
    callbacks = use_rates(float("inf")), CALLBACKS.TerminateOnNaN(), recorder
    with pytest.raises(quatrains.UsageError, match=r"^val_loss is not finite: lower learning_rate"):
        train(*callbacks, resume=True, batch_size=64, use_xla=True)
    (end,) = ends
    assert 0 < end < recorder.params["steps"] - 1
    assert f"Batch {end}: Invalid loss, terminating training\n" in capsys.readouterr().out
    assert checkpoint.read_bytes() == before


def test_averaged_weights_replace_the_last_ones_when_training_ends(train, monkeypatch):
    def build_averaged(*arguments):
        model = build_model(*arguments)
        model.compile(keras.optimizers.SGD(1.0, use_ema=True, ema_momentum=0.5), model.loss)
        return model

    build_model, weights = quatrains.build_model, []
    monkeypatch.setattr(quatrains, "build_model", build_averaged)
    lm = train(record_weights(weights))  # An epoch has one step.
    saved = load_weights(lm.folder / "checkpoint.keras")
    for *steps, value in zip(*weights, saved, strict=True):
        share = np.array([1 / 8, 1 / 8, 1 / 4, 1 / 2])
        np.testing.assert_allclose(value, np.tensordot(share, steps, 1), atol=1e-6)
        assert not np.allclose(value, steps[-1], atol=1e-5)


def test_a_system_error_in_a_callback_keeps_its_traceback(train):
    with pytest.raises(FileNotFoundError, match="mine") as error, quatrains.one_line_errors():
        train(CALLBACKS.CSVLogger("missing/mine.csv"))
    assert "csv_logger.py" in [entry.path.name for entry in error.traceback]
