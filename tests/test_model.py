"""The model, its training steps, and the drawing of words, all inside one process."""

from dataclasses import asdict
from unittest import mock

import numpy as np
import pytest

import quatrains
from conftest import QUICK, run_script
from quatrains import Settings, keras, tf

layers, optimizers = keras.layers, keras.optimizers
# The twelve words of the small models.
CORPUS = quatrains.index_corpus([("1", "one two three four five six seven eight nine ten eleven")])


def small_model(xla=False, **changes):
    """A model of few words whose predictions are far from even."""
    keras.utils.set_random_seed(3)
    rng = np.random.default_rng(5)
    settings = Settings(**{"gru_dim": 6} | changes)
    model = quatrains.build_model(rng.normal(0, 1, (12, 5)).astype("float32"), settings)
    model.jit_compile = xla
    kernel, bias = model.layers[-1].get_weights()
    model.layers[-1].set_weights([kernel * 3, rng.normal(0, 1, bias.shape)])
    return model


def edited_model(
    *middle,
    kind=keras.Sequential,
    dtype=None,
    optimizer=None,
    loss="sparse_categorical_crossentropy",
):
    """A small model with other layers, loss or optimizer, as an edit would make it."""
    keras.utils.set_random_seed(3)
    model = kind(
        [
            keras.Input((4,), dtype="int32"),
            layers.Embedding(12, 5),
            *(middle or [layers.LSTM(6, unroll=True)]),
            layers.Dense(12, activation="softmax", dtype=dtype),
        ]
    )
    model.compile(optimizer or optimizers.RMSprop(0.01), loss, metrics=["acc"], jit_compile=False)
    return model


def make_epoch(model, train, batch_size=16):
    """The script's training steps, three to a call, as a function of the order of the samples."""
    model.steps_per_execution = 3
    quatrains.check_model(model, 12, model.input_shape[1])
    train_function = quatrains.compile_training(model, train, batch_size)

    def train_epoch(order):
        model.reset_metrics()
        for numbers in np.split(order, range(3 * batch_size, len(order), 3 * batch_size)):
            figures = train_function(iter([tf.constant(numbers)]))
        return {name: float(value) for name, value in figures.items()}

    return train_epoch


def test_layers_and_hyperparameters_are_the_published_ones():
    model = quatrains.build_model(np.ones((4705, 300), np.float32), Settings())
    embedding, gru, dense = model.layers
    assert [*map(type, model.layers)] == [layers.Embedding, layers.GRU, layers.Dense]
    assert (embedding.trainable, embedding.mask_zero) == (True, False)
    assert (embedding.get_weights()[0] == 1).all()
    assert (gru.units, gru.dropout, gru.recurrent_dropout, gru.reset_after) == (128, 0.5, 0.5, True)
    functions = (gru.activation, gru.recurrent_activation, dense.activation)
    assert [function.__name__ for function in functions] == ["tanh", "sigmoid", "softmax"]
    for penalty in (gru.kernel_regularizer, gru.recurrent_regularizer, gru.bias_regularizer):
        assert type(penalty) is keras.regularizers.L2
        assert float(penalty.l2) == pytest.approx(0.02)
    assert dense.kernel_regularizer is None
    assert model.count_params() == 4705 * 300 + 3 * 128 * (300 + 128 + 2) + 129 * 4705
    assert (model.input_shape, model.output_shape) == ((None, 4), (None, 4705))
    assert type(model.optimizer) is optimizers.RMSprop
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


class Doubled(keras.Sequential):
    """A model with a step of its own, which takes twice the gradients."""

    def train_step(self, data):
        phrases, targets, weights = data
        with tf.GradientTape() as tape:
            loss = 2 * self.compute_loss(None, targets, self(phrases, training=True), weights)
        gradients = tape.gradient(loss, self.trainable_weights)
        self.optimizer.apply_gradients(zip(gradients, self.trainable_weights, strict=True))
        return self.get_metrics_result()


STEPS = {
    "the default with XLA": lambda: small_model(xla=True),
    "looped": lambda: small_model(phrase_len=9),
    "AdamW": lambda: edited_model(optimizer=optimizers.AdamW(0.01, weight_decay=0.1)),
    "SGD, decaying, another loss, dropouts in three layers": lambda: edited_model(
        layers.SpatialDropout1D(0.3),
        layers.SimpleRNN(6, dropout=0.3, recurrent_dropout=0.4, unroll=True),
        layers.Dropout(0.3),
        optimizer=optimizers.SGD(optimizers.schedules.CosineDecay(0.1, 15), momentum=0.9),
        loss=keras.losses.SparseCategoricalCrossentropy(ignore_class=3),
    ),
    # The scale grows after four steps, within an epoch.
    "loss scaling": lambda: edited_model(
        optimizer=optimizers.LossScaleOptimizer(optimizers.SGD(0.05, momentum=0.9), 1024.0, 4)
    ),
    "a step of its own": lambda: edited_model(kind=Doubled),
}


def train_by_keras(model, train, order):
    """An epoch by Keras's own steps, but for dense gradients and the script's dropouts."""
    apply = model.optimizer.apply

    def apply_dense(gradients, weights):
        apply([tf.convert_to_tensor(gradient) for gradient in gradients], weights)

    model.reset_metrics()
    with (
        mock.patch.object(model.optimizer, "apply", apply_dense),
        mock.patch.object(tf.nn.experimental, "stateless_dropout", quatrains.hash_dropout),
    ):
        for batch in np.split(order, range(16, len(order), 16)):
            model.train_step(tuple(array[batch] for array in train))
    return {name: float(value) for name, value in model.get_metrics_result().items()}


@pytest.mark.parametrize("build", STEPS.values(), ids=STEPS)
def test_steps_and_figures_are_those_of_keras(build):
    ours, theirs = build(), build()
    # An epoch is a call of three steps, one of a single step, and what is less than a batch.
    draw = np.random.default_rng(2)
    windows = draw.integers(0, 12, (74, ours.input_shape[1] + 1)).astype(np.int32)
    train = windows[:, :-1], windows[:, -1:], draw.uniform(1, 9, 74).astype(np.float32)
    epoch = make_epoch(ours, train)
    quatrains.check_model(theirs, 12, theirs.input_shape[1])
    for our, their in zip(ours.variables, theirs.variables, strict=True):
        their.assign(our)  # Seeds of dropouts are among them.
    untrained = ours.get_weights()
    for number in range(2):
        order = np.random.default_rng(number).permutation(74)
        assert epoch(order) == pytest.approx(train_by_keras(theirs, train, order), rel=2e-4)
    for our, their, before in zip(ours.get_weights(), theirs.get_weights(), untrained, strict=True):
        assert our == pytest.approx(their, abs=2e-4)
        assert np.abs(our - before).max() > 1e-3
    for our, their in zip(ours.optimizer.variables, theirs.optimizer.variables, strict=True):
        assert our.numpy() == pytest.approx(their.numpy(), rel=0.01, abs=1e-4)
    assert tf.nn.experimental.stateless_dropout is not quatrains.hash_dropout
    assert "apply_gradients" not in vars(ours.optimizer)


FLOATS = [("float32", None), ("mixed_float16", "float32"), ("float32", "bfloat16")]


@pytest.mark.parametrize(("policy", "outputs"), FLOATS)
def test_training_learns_in_floats_of_any_size(policy, outputs):
    keras.config.set_dtype_policy(policy)
    try:
        model = edited_model(dtype=outputs)
    finally:
        keras.config.set_dtype_policy("float32")
    phrases = np.arange(48).reshape(12, 4).astype(np.int32) % 12
    samples = phrases, (phrases[:, :1] + 5) % 12, np.ones(12, np.float32)
    epoch = make_epoch(model, samples, batch_size=6)
    losses = [epoch(np.arange(12))["loss"] for _ in range(40)]
    assert losses[-1] < losses[0] / 2


def test_an_epoch_takes_every_sample_once_in_an_order_of_its_own(verses, monkeypatch):
    taken = []

    def note_samples(model, train, batch_size):
        return lambda iterator: taken.append(next(iterator)) or {}

    monkeypatch.chdir(verses.parent)
    monkeypatch.setattr(quatrains, "compile_training", note_samples)
    prophet = quatrains.train(Settings(**QUICK | {"batch_size": 100}))
    count = len(quatrains.make_samples(prophet.corpus, prophet.settings)[0][1])
    # Eight batches to a call.
    assert [len(numbers) for numbers in taken] == 4 * [800, count - 800]
    epochs = np.reshape(np.concatenate(taken), (4, count))
    assert (np.sort(epochs) == np.arange(count)).all()
    assert len(np.unique(epochs, axis=0)) == 4


def test_what_is_written_changes_nothing_in_what_is_trained(verses, monkeypatch):
    monkeypatch.chdir(verses.parent)
    one, three = (
        quatrains.train(Settings(**QUICK | {"dropout": 0.5, "quatrains_per_run": count}))
        for count in (1, 3)
    )
    assert one.history.history == three.history.history
    assert all(map(np.array_equal, one.model.get_weights(), three.model.get_weights()))


@pytest.fixture(scope="module")
def prophet():
    return quatrains.Prophet(Settings(max_words=5), CORPUS, small_model(), 1)


def chi_square(drawn, probabilities):
    counts = np.bincount(drawn, minlength=len(probabilities))
    expected = probabilities * len(drawn)
    return ((counts - expected) ** 2 / expected).sum()


def draw_rows(prophet, count, start=(), **changes):
    """Draw quatrains as rows of five numbers of words; a break fills what comes after one."""
    settings = Settings(**asdict(prophet.settings) | changes)
    drawn = prophet.draw(count, list(start), settings, np.random.default_rng(1))
    index = CORPUS.words.index
    return np.array([[*map(index, quatrain.tokens), *[0] * 5][:5] for quatrain in drawn])


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
    first, same, other = (
        prophet.draw(2500, [], prophet.settings, np.random.default_rng(seed)) for seed in (1, 1, 2)
    )
    assert {len(quatrain.tokens) for quatrain in first} == {0, 1, 2, 3, 4, 5}
    assert not any(quatrains.BREAK in quatrain.tokens for quatrain in first)
    assert first == same != other


def test_a_gpu_that_tensorflow_does_not_see_is_refused_in_one_line(verses, monkeypatch):
    monkeypatch.delenv("TF_CPP_MIN_LOG_LEVEL")  # TensorFlow says nothing all the same.
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "-1")
    done = run_script(verses.parent, corpus="verses.txt", use_gpu=True)
    told = "quatrains: use_gpu = True, but TensorFlow sees no GPU: "
    way_out = 'install its driver and "tensorflow[and-cuda]", or set use_gpu = False\n'
    assert (done.returncode, done.stdout, done.stderr) == (2, "", told + way_out)
    assert not (verses.parent / "logs").exists()


def test_a_seed_makes_a_gpu_repeat_exactly(monkeypatch):
    monkeypatch.setattr(quatrains, "GPUS", ["GPU:0"])
    with mock.patch.object(tf.config.experimental, "enable_op_determinism") as determinism:
        for seed, calls in ((None, 0), (1, 1)):
            assert quatrains.prepare_device(Settings(use_gpu=True, seed=seed)) == "/gpu:0"
            assert determinism.call_count == calls
