"""The model, its training steps, and the drawing of words, all inside one process."""

import copy
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import quatrains
from conftest import ROOT
from quatrains import Settings, keras, tf

# The twelve words of the small models.
CORPUS = quatrains.index_corpus([("1", "one two three four five six seven eight nine ten eleven")])


def small_model(phrase_len=4, **changes):
    """A model of few words whose predictions are far from even."""
    keras.utils.set_random_seed(3)
    rng = np.random.default_rng(5)
    embeddings = rng.normal(0, 1, (12, 5)).astype("float32")
    settings = Settings(**{"gru_dim": 6, "phrase_len": phrase_len} | changes)
    model = quatrains.build_model(embeddings, phrase_len, settings)
    kernel, bias = model.layers[-1].get_weights()
    model.layers[-1].set_weights([kernel * 3, rng.normal(0, 1, bias.shape)])
    return model


def small_samples(count, phrase_len=4):
    draw = np.random.default_rng(2)
    phrases = draw.integers(0, 12, (count, phrase_len)).astype(np.int32)
    targets = draw.integers(0, 12, (count, 1)).astype(np.int32)
    return phrases, targets, draw.uniform(1, 9, count).astype(np.float32)


def make_epoch(model, train, validation, batch_size=16):
    """The script's epoch for a model, as a function that returns what the epoch measured."""
    callbacks = keras.callbacks.CallbackList(add_history=True, model=model)
    train_epoch = quatrains.build_epoch(model, train, validation, batch_size, callbacks)
    callbacks.on_train_begin()

    def run_epoch(rng):
        train_epoch(0, rng)
        return {name: values[-1] for name, values in model.history.history.items()}

    return run_epoch


def test_layers_and_hyperparameters_are_the_published_ones():
    settings = Settings()
    model = quatrains.build_model(np.ones((4705, 300), np.float32), 4, settings)
    embedding, gru, dense = model.layers
    assert type(embedding) is keras.layers.Embedding
    assert (embedding.input_dim, embedding.output_dim) == (4705, 300)
    assert embedding.trainable
    assert not embedding.mask_zero
    assert (embedding.get_weights()[0] == 1).all()
    assert type(gru) is keras.layers.GRU
    assert (gru.units, gru.dropout, gru.recurrent_dropout) == (128, 0.5, 0.5)
    assert gru.reset_after
    assert gru.activation is keras.activations.tanh
    assert gru.recurrent_activation is keras.activations.sigmoid
    for penalty in (gru.kernel_regularizer, gru.recurrent_regularizer, gru.bias_regularizer):
        assert type(penalty) is keras.regularizers.L2
        assert float(penalty.l2) == pytest.approx(0.02)
    assert type(dense) is keras.layers.Dense
    assert dense.units == 4705
    assert dense.activation is keras.activations.softmax
    assert dense.kernel_regularizer is None
    assert model.count_params() == 4705 * 300 + 3 * 128 * (300 + 128 + 2) + 129 * 4705
    assert (model.input_shape, model.output_shape) == ((None, 4), (None, 4705))
    assert type(model.optimizer) is keras.optimizers.RMSprop
    assert float(model.optimizer.learning_rate) == pytest.approx(0.003)
    assert (model.optimizer.rho, model.optimizer.momentum) == (0.9, 0.0)
    assert model.loss == "sparse_categorical_crossentropy"


def test_acc_is_the_share_of_words_guessed_right():
    draw = np.random.default_rng(1)
    predicted = draw.random((5000, 12)).astype(np.float32)
    targets = draw.integers(0, 12, (5000, 1))
    theirs = keras.metrics.SparseCategoricalAccuracy()(targets, predicted)
    ours = quatrains.sparse_categorical_accuracy(tf.constant(targets), tf.constant(predicted))
    assert ours.numpy().mean() == pytest.approx(float(theirs))
    assert theirs > 0.05


def edited_model(*layers, kind=keras.Sequential, dtype=None, **changes):
    """A small model with other layers, loss, metrics or optimizer, as an edit would make it."""
    keras.utils.set_random_seed(3)
    model = kind(
        [
            keras.Input((4,), dtype="int32"),
            keras.layers.Embedding(12, 5),
            *(layers or [keras.layers.LSTM(6, unroll=True)]),
            keras.layers.Dense(12, activation="softmax", dtype=dtype),
        ]
    )
    how = {"optimizer": keras.optimizers.RMSprop(0.01), "jit_compile": False}
    model.compile(**how | {"loss": "sparse_categorical_crossentropy", "metrics": ["acc"]} | changes)
    return model


def use_xla():
    model = small_model()
    model.jit_compile = True
    return model


def use_adamw():
    schedule = keras.optimizers.schedules.CosineDecay(0.01, 15)
    return edited_model(optimizer=keras.optimizers.AdamW(schedule, weight_decay=0.1))


def use_sgd():
    loss = keras.losses.SparseCategoricalCrossentropy(ignore_class=3)
    return edited_model(optimizer=keras.optimizers.SGD(0.1, momentum=0.9), loss=loss)


def use_dropouts():
    layers = keras.layers
    rnn = layers.SimpleRNN(6, dropout=0.3, recurrent_dropout=0.4, unroll=True)
    return edited_model(layers.SpatialDropout1D(0.3), rnn, layers.Dropout(0.3))


def use_loss_scaling():
    # The scale grows after four steps, within an epoch.
    inner = keras.optimizers.SGD(0.05, momentum=0.9)
    return edited_model(optimizer=keras.optimizers.LossScaleOptimizer(inner, 1024.0, 4))


def use_float16():
    keras.config.set_dtype_policy("mixed_float16")
    try:
        return edited_model(dtype="float32")
    finally:
        keras.config.set_dtype_policy("float32")


class Doubled(keras.Sequential):
    """A model with a step of its own, which takes twice the gradients and measures their norm."""

    def __init__(self, layers):
        super().__init__(layers)
        self.norm = keras.metrics.Mean("norm")

    def train_step(self, data):
        phrases, targets, weights = data
        with tf.GradientTape() as tape:
            loss = 2 * self.compute_loss(None, targets, self(phrases, training=True), weights)
        gradients = tape.gradient(loss, self.trainable_weights)
        self.optimizer.apply_gradients(zip(gradients, self.trainable_weights, strict=True))
        self.norm.update_state(tf.linalg.global_norm(gradients))
        return {"norm": self.norm.result()}

    @property
    def metrics(self):
        return [self.norm]


class TwoFigures(keras.metrics.Mean):
    """A metric of two figures: how likely the likeliest word is, and the others."""

    def update_state(self, targets, predicted, sample_weight=None):
        return super().update_state(tf.reduce_max(predicted, -1))

    def result(self):
        mean = super().result()
        return {"first": mean, "others": 1 - mean}


STEPS = {
    "the default with XLA": use_xla,
    "looped": lambda: small_model(phrase_len=9),
    "AdamW, decaying": use_adamw,
    "SGD and another loss": use_sgd,
    "dropouts in three layers": use_dropouts,
    "loss scaling": use_loss_scaling,
    "a step of its own": lambda: edited_model(kind=Doubled),
    "a metric of two figures": lambda: edited_model(metrics=["acc", TwoFigures()]),
}


def run_keras_epoch(model, train, validation, rng):
    """An epoch by Keras's own steps, one by one and not compiled, but for dense gradients.

    Those are as in 2017: Keras 3's own fit takes the square of each part of a gradient when a word
    stands several times in a batch, rather than of their sum.
    """
    for variable in model.non_trainable_variables:
        if variable.name == "seed_generator_state":
            variable.assign(rng.integers(2**32, size=2, dtype=np.uint32))
    order = rng.permutation(len(train[1]))
    model.reset_metrics()
    with quatrains.hashed_dropouts():
        for batch in np.split(order, range(16, len(order), 16)):
            model.train_step(tuple(array[batch] for array in train))
    figures = {}
    for name, value in model.get_metrics_result().items():
        figures |= value if isinstance(value, dict) else {name: value}
    validated = model.evaluate(*validation[:2], 16, verbose=0, return_dict=True)
    figures |= {f"val_{name}": value for name, value in validated.items()}
    return {name: float(value) for name, value in figures.items()}


@pytest.mark.parametrize("build", STEPS.values(), ids=STEPS)
def test_steps_and_figures_are_those_of_keras(monkeypatch, build):
    # An epoch is a call of three steps, one of a single step, and what is less than a batch.
    monkeypatch.setattr(quatrains, "STEPS_PER_CALL", 3)
    ours, theirs = build(), build()
    theirs.run_eagerly = True
    optimizer = theirs.optimizer
    apply = optimizer.apply
    optimizer.apply = lambda gradients, weights: apply(
        [tf.convert_to_tensor(gradient) for gradient in gradients], weights
    )
    untrained = ours.get_weights()
    theirs.set_weights(untrained)
    train = small_samples(74, ours.input_shape[1])
    validation = [array[:32] for array in train]
    epoch = make_epoch(ours, train, validation)
    for number in range(2):
        measured = epoch(np.random.default_rng(number))
        expected = run_keras_epoch(theirs, train, validation, np.random.default_rng(number))
        assert measured == pytest.approx(expected, rel=2e-4)
    for our, their, before in zip(ours.get_weights(), theirs.get_weights(), untrained, strict=True):
        assert our == pytest.approx(their, abs=2e-4)
        assert np.abs(our - before).max() > 1e-3
    for our, their in zip(ours.optimizer.variables, optimizer.variables, strict=True):
        assert our.numpy() == pytest.approx(their.numpy(), rel=0.01, abs=1e-4)


LEARNING = {
    "the default": lambda: small_model(dropout=0.1, regularization=0.0, learning_rate=0.01),
    "loss scaling": use_loss_scaling,
    "mixed_float16": use_float16,
    "outputs in bfloat16": lambda: edited_model(dtype="bfloat16"),
}


@pytest.mark.parametrize("build", LEARNING.values(), ids=LEARNING)
def test_training_learns(build):
    phrases = np.arange(48).reshape(12, 4).astype(np.int32) % 12
    samples = phrases, (phrases[:, :1] + 5) % 12, np.ones(12, np.float32)
    rng = np.random.default_rng(1)
    epoch = make_epoch(build(), samples, samples, batch_size=6)
    losses = [epoch(rng)["loss"] for _ in range(40)]
    assert losses[-1] < losses[0] / 2


@pytest.fixture(scope="module")
def prophet():
    return quatrains.Prophet(Settings(max_words=5), CORPUS, small_model(), Path("none"), 1)


def test_validating_and_writing_change_nothing_in_what_is_trained(prophet):
    samples = small_samples(32)
    prophet = copy.copy(prophet)
    trained = []
    for watched in (False, True):
        model = prophet.model = small_model()
        epoch = make_epoch(model, samples, samples if watched else [part[:1] for part in samples])
        losses = []
        for number in range(2):
            losses.append(epoch(np.random.default_rng(number))["loss"])
            if watched:
                prophet.write(2)
        trained.append((losses, model.get_weights()))
    (losses, weights), (others, same) = trained
    assert losses == others
    assert all(map(np.array_equal, weights, same))


def chi_square(drawn, probabilities):
    counts = np.bincount(drawn, minlength=len(probabilities))
    expected = probabilities * len(drawn)
    return ((counts - expected) ** 2 / expected).sum()


def draw_rows(prophet, count, start=(), seed=1, **changes):
    """Draw quatrains as rows of five numbers of words; a break fills what comes after one."""
    settings = prophet.settings.changed(**changes)
    drawn = prophet.draw(count, list(start), settings, np.random.default_rng(seed))
    index = CORPUS.words.index
    return np.array([[*map(index, tokens), *[0] * 5][:5] for tokens, _ in drawn])


def predict(prophet, *phrase):
    return prophet.model(np.array([[0, 0, 0, *phrase][-4:]]))[0].numpy().astype(float)


def test_words_are_drawn_from_the_models_own_distribution(prophet):
    rows = draw_rows(prophet, 30_000)
    first = predict(prophet, 0)
    assert first.max() > 3 * np.median(first)
    # 11 degrees of freedom: above 40 once in 30,000 seeds.
    assert chi_square(rows[:, 0], first) < 40
    for word in (np.argsort(first[1:]) + 1)[-3:]:
        pairs = rows[rows[:, 0] == word]
        assert chi_square(pairs[:, 1], predict(prophet, word)) < 40
        second = np.bincount(pairs[:, 1])[1:].argmax() + 1
        third = pairs[pairs[:, 1] == second, 2]
        assert chi_square(third, predict(prophet, word, second)) < 40
    for start in ([5, 6], [1, 2, 3, 4]):
        rows = draw_rows(prophet, 10_000, start)
        assert (rows[:, : len(start)] == start).all()
        assert chi_square(rows[:, len(start)], predict(prophet, *start)) < 40


def test_temperature_and_top_p_change_the_distribution(prophet):
    first = predict(prophet, 0)
    for temperature in (0.5, 2.0):
        tempered = first ** (1 / temperature) / (first ** (1 / temperature)).sum()
        drawn = draw_rows(prophet, 10_000, temperature=temperature)[:, 0]
        assert chi_square(drawn, tempered) < 40
    ranked = np.argsort(-first)
    shares = first[ranked].cumsum()
    for kept in (1, 3, 12):
        # The first of the likeliest with which the share is reached is kept, too.
        top_p = shares[kept - 1] - first[ranked[kept - 1]] / 2
        drawn = draw_rows(prophet, 10_000, top_p=float(top_p))[:, 0]
        likeliest = ranked[:kept]
        assert set(drawn) == set(likeliest)
        found = np.bincount(drawn, minlength=12)[likeliest] / len(drawn)
        assert found == pytest.approx(first[likeliest] / shares[kept - 1], abs=0.02)


def test_quatrains_stop_at_a_break_or_at_max_words(prophet):
    drawn = prophet.draw(2500, [], prophet.settings, np.random.default_rng(1))
    assert {len(tokens) for tokens, _ in drawn} == {0, 1, 2, 3, 4, 5}
    assert not any(quatrains.BREAK in tokens for tokens, _ in drawn)
    assert drawn == prophet.draw(2500, [], prophet.settings, np.random.default_rng(1))
    assert drawn != prophet.draw(2500, [], prophet.settings, np.random.default_rng(2))


def test_a_checkpoint_loads_and_measures_in_plain_keras(first_training):
    folder, _ = first_training
    (path,) = folder.glob("logs/*/checkpoint.keras")
    code = (
        "import sys, keras, numpy as np\n"
        "model = keras.models.load_model(sys.argv[1])\n"
        "phrases, targets = np.arange(80).reshape(20, 4) % 25, np.arange(20)[:, None]\n"
        "print(*map(float, model.evaluate(phrases, targets, verbose=0)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, path], cwd=folder, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    model = quatrains.load_checkpoint(path, Settings(generate=1)).model
    phrases, targets = np.arange(80).reshape(20, 4) % 25, np.arange(20)[:, None]
    expected = model.evaluate(phrases, targets, verbose=0)
    assert [float(each) for each in done.stdout.split()] == pytest.approx(expected, rel=1e-4)


def test_a_gpu_that_tensorflow_does_not_see_is_refused_in_one_line(verses, tmp_path):
    # Keras's own settings do no harm, and TensorFlow says nothing.
    (tmp_path / "keras.json").write_text('{"floatx": "float64", "backend": "jax"}')
    bare = {name: value for name, value in os.environ.items() if not name.startswith("TF_CPP")}
    done = subprocess.run(
        [sys.executable, ROOT / "quatrains.py", "--corpus", "verses.txt", "--use-gpu"],
        cwd=tmp_path,
        env=bare | {"CUDA_VISIBLE_DEVICES": "-1", "KERAS_HOME": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    told = "quatrains: use_gpu = True, but TensorFlow sees no GPU: "
    way_out = 'install its driver and "tensorflow[and-cuda]", or set use_gpu = False\n'
    assert (done.returncode, done.stdout, done.stderr) == (2, "", told + way_out)
    assert not (tmp_path / "logs").exists()


def test_models_have_floats_of_32_bits_whatever_keras_is_set_to():
    keras.config.set_floatx("float64")
    assert quatrains.prepare_device(Settings()) == "/cpu:0"
    assert keras.config.floatx() == "float32"


@pytest.mark.parametrize("count", [1, 3])
def test_gpus_get_memory_growth_and_the_first_is_used(monkeypatch, count):
    done = []
    gpus = [f"GPU:{number}" for number in range(count)]
    monkeypatch.setattr(quatrains, "GPUS", gpus)
    config = tf.config.experimental
    monkeypatch.setattr(config, "set_memory_growth", lambda gpu, on: done.append((gpu, on)))
    monkeypatch.setattr(config, "enable_op_determinism", lambda: done.append("determinism"))
    assert quatrains.prepare_device(Settings(use_gpu=True)) == "/gpu:0"
    assert done == [(gpu, True) for gpu in gpus]
    quatrains.prepare_device(Settings(use_gpu=True, seed=1))
    assert done[-1] == "determinism"
