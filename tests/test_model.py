"""The model, its training steps, and the sampling of words, all inside one process."""

import itertools

import numpy as np
import pytest

import quatrains
from conftest import run_script
from quatrains import Samples, Settings, keras, tf

layers, optimizers = keras.layers, keras.optimizers
# The twelve words of the small models.
CORPUS = quatrains.index_corpus([("1", "one two three four five six seven eight nine ten eleven")])


def small_model(**changes):
    """Build a model with a small vocabulary whose predictions are far from even."""
    keras.utils.set_random_seed(3)
    rng = np.random.default_rng(5)
    settings = Settings(**{"gru_dim": 6} | changes)
    model = quatrains.build_model(rng.normal(0, 1, (12, 5)).astype("float32"), settings)
    kernel, bias = model.layers[-1].get_weights()
    model.layers[-1].set_weights([kernel * 3, rng.normal(0, 1, bias.shape)])
    return model


def edited_model(*middle, kind=keras.Sequential, optimizer=None, **kwargs):
    """Build a small model with other layers, loss or optimizer, as an edit would."""
    keras.utils.set_random_seed(3)
    middle = middle or [layers.LSTM(6, unroll=True)]
    ends = layers.Embedding(12, 5), layers.Dense(12, activation="softmax")
    model = kind([keras.Input((4,), dtype="int32"), ends[0], *middle, ends[1]])
    kwargs = {"loss": "sparse_categorical_crossentropy", "jit_compile": False} | kwargs
    model.compile(optimizer or optimizers.RMSprop(0.01), metrics=["acc"], **kwargs)
    return model


def test_layers_and_hyperparameters_are_the_published_ones():
    model = quatrains.build_model(np.ones((4705, 300), np.float32), Settings())
    embedding, gru, dense = model.layers
    assert [*map(type, model.layers)] == [layers.Embedding, layers.GRU, layers.Dense]
    assert [layer.name for layer in model.layers] == ["Embedding", "GRU", "Dense"]
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


def test_acc_is_keras_accuracy():
    rng = np.random.default_rng(1)
    predicted = rng.random((5000, 12)).astype(np.float32)
    targets = rng.integers(0, 12, (5000, 1))
    theirs = keras.metrics.SparseCategoricalAccuracy()(targets, predicted)
    ours = quatrains.sparse_categorical_accuracy(tf.constant(targets), tf.constant(predicted))
    assert ours.numpy().mean() == pytest.approx(float(theirs))
    assert theirs > 0.05


class Doubled(keras.Sequential):
    def train_step(self, data):
        super().train_step(data)
        return super().train_step(data)


STEPS = {
    "the default": lambda: small_model(dropout=0.0),
    "its dropout, looped": lambda: small_model(phrase_len=9),
    "SGD, decaying, another loss, dropout in three layers": lambda: edited_model(
        layers.SpatialDropout1D(0.3),
        layers.SimpleRNN(6, dropout=0.3, recurrent_dropout=0.4, unroll=True),
        layers.Dropout(0.3),
        optimizer=optimizers.SGD(optimizers.schedules.CosineDecay(0.1, 15), momentum=0.9),
        loss=keras.losses.SparseCategoricalCrossentropy(ignore_class=3),
    ),
    # The scale grows after four steps, within a call.
    "loss scaling": lambda: edited_model(
        optimizer=optimizers.LossScaleOptimizer(optimizers.AdamW(0.01, weight_decay=0.1), 1024.0, 4)
    ),
    "its own step": lambda: edited_model(kind=Doubled),
    "eagerly": lambda: edited_model(layers.Flatten(), run_eagerly=True),
    "clipped norms": lambda: edited_model(
        layers.Flatten(), optimizer=optimizers.Adam(0.01, clipnorm=0.05)
    ),
}


# The others need --long, because each takes some seconds.
USUAL = [("the default", True), ("eagerly", True), ("clipped norms", False)]
CASES = itertools.product(STEPS, (True, False))


@pytest.mark.parametrize(
    ("name", "use_xla"),
    [pytest.param(*case, marks=[pytest.mark.long] * (case not in USUAL)) for case in CASES],
)
def test_steps_and_metrics_are_those_of_keras(name, use_xla):
    ours, theirs = STEPS[name](), STEPS[name]()
    rng = np.random.default_rng(2)
    windows = rng.integers(0, 12, (74, ours.input_shape[1] + 1)).astype(np.int32)
    samples = Samples(windows[:, :-1], windows[:, -1:], rng.uniform(1, 9, 74).astype(np.float32))
    train_steps = quatrains.compile_steps(ours, samples, 3, use_xla)
    for our, their in zip(ours.variables, theirs.variables, strict=True):
        their.assign(our)  # With the seeds of dropout.
    untrained = ours.get_weights()
    # Two epochs of two calls of three steps on 13 samples.
    for epoch in rng.integers(0, 74, (2, 2, 3, 13), np.int32):
        ours.reset_metrics()
        for indices in epoch:
            train_steps(tf.constant(indices))
        phrases, targets, weights = (array[epoch.ravel()] for array in samples)
        with quatrains.fast_dropout():
            plain = theirs.fit(phrases, targets, 13, 1, 0, sample_weight=weights, shuffle=False)
        expected = {metric: value for metric, (value,) in plain.history.items()}
        assert expected.keys() == {"loss", "acc"}
        metrics = {name: float(value) for name, value in ours.get_metrics_result().items()}
        assert metrics == pytest.approx(expected, rel=2e-4)
    for our, their, before in zip(ours.get_weights(), theirs.get_weights(), untrained, strict=True):
        assert our == pytest.approx(their, abs=2e-4)
        assert np.abs(our - before).max() > 1e-3
    for our, their in zip(ours.optimizer.variables, theirs.optimizer.variables, strict=True):
        assert our.numpy() == pytest.approx(their.numpy(), rel=0.01, abs=1e-4)


def test_an_epoch_is_divided_into_equal_calls_of_equal_steps():
    assert quatrains.plan_epoch(32_300, 512) == (8, 8, 505)
    for samples, batch_size in itertools.product(range(19, 3000, 7), (1, 20, 64, 512, 10**9)):
        calls, steps, size = quatrains.plan_epoch(samples, batch_size)
        assert steps <= 8
        assert size <= batch_size
        assert 0 <= calls * steps * size - samples < calls * steps


@pytest.mark.parametrize(("samples", "batch_size"), [(32_300, 512), (33_610, 512), (1300, 20)])
def test_at_most_one_batch_of_an_epoch_is_filled_up(samples, batch_size):
    calls, steps, size = quatrains.plan_epoch(samples, batch_size)
    assert 0 <= calls * steps * size - samples < size


def test_each_epoch_has_all_samples_in_another_order_and_each_layer_another_seed():
    model = small_model(dense_dropout=0.5)

    def start_epochs(seed):
        """Return the indices of each epoch, and the seed of each layer."""
        epochs, seeds = [], []
        for epoch in range(9):
            rng = np.random.default_rng([seed, epoch])
            epochs.append(quatrains.start_epoch(model, rng, 19, (2, 3, 4)).numpy())
            seeds += [variable.numpy()[0] for variable in model.non_trainable_variables]
        return np.reshape(epochs, (9, 24)), seeds

    epochs, seeds = start_epochs(1)
    assert (np.sort(epochs[:, :19]) == np.arange(19)).all()
    assert np.array_equal(epochs[:, 19:], epochs[:, :5])
    assert len(np.unique(epochs, axis=0)) == 9
    assert len({*seeds}) == len(seeds) == 2 * 9
    assert not {*start_epochs(2)[1]} & {*seeds}
    same, same_seeds = start_epochs(1)
    assert np.array_equal(same, epochs)
    assert same_seeds == seeds


@pytest.fixture(scope="module")
def lm():
    return quatrains.QuatrainLM(Settings(max_length=5), CORPUS, small_model(), None)


def chi_square(sampled, probs):
    counts = np.bincount(sampled, minlength=len(probs))
    assert not counts[probs == 0].any()
    expected = (probs * len(sampled))[probs > 0]
    return ((counts[probs > 0] - expected) ** 2 / expected).sum()


def sample_rows(lm, count, prompt=(), **overrides):
    """Sample quatrains as rows of five token IDs, with breaks after the end."""
    words = " ".join(CORPUS.vocabulary[token_id] for token_id in prompt)
    sampled = lm.generate(count, seed=1, prompt=words, **overrides)
    index = CORPUS.vocabulary.index
    return np.array([[*map(index, quatrain.tokens), *[0] * 5][:5] for quatrain in sampled])


def predict(lm, *phrase):
    """Return the model's probabilities. The first token is never a break."""
    probs = lm.model(np.array([[0, 0, 0, *phrase][-4:]]))[0].numpy().astype(float)
    probs[0] *= phrase != (0,)
    return probs / probs.sum()


def test_words_are_sampled_from_the_models_own_distribution(lm):
    rows = sample_rows(lm, 30_000)
    first = predict(lm, 0)
    assert first.max() > 3 * np.median(first)
    # At most 11 degrees of freedom: above 40 once in 30,000 seeds.
    assert chi_square(rows[:, 0], first) < 40
    for word in np.argsort(first)[-3:]:
        pairs = rows[rows[:, 0] == word]
        assert chi_square(pairs[:, 1], predict(lm, word)) < 40
        second = np.bincount(pairs[:, 1])[1:].argmax() + 1
        third = pairs[pairs[:, 1] == second, 2]
        assert chi_square(third, predict(lm, word, second)) < 40
    for prompt in ([5, 6], [1, 2, 3, 4]):
        rows = sample_rows(lm, 10_000, prompt)
        assert (rows[:, : len(prompt)] == prompt).all()
        assert chi_square(rows[:, len(prompt)], predict(lm, *prompt)) < 40


def test_quatrains_end_at_a_break_or_at_max_length(lm):
    first, same, other = (lm.generate(2500, seed) for seed in (1, 1, 2))
    assert {len(quatrain.tokens) for quatrain in first} == {1, 2, 3, 4, 5}
    assert not any(quatrains.BREAK in quatrain.tokens for quatrain in first)
    assert first == same != other


@pytest.mark.filterwarnings("error::DeprecationWarning:quatrains")
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_rare_words_are_sampled_from_outputs_in_half_precision(dtype):
    rare = ["".join(letters) for letters in itertools.product("abcdefghijklmno", repeat=3)]
    corpus = quatrains.index_corpus([("1", " ".join(["king", "king", *rare]))])
    # The break is not the first token.
    probs = tf.cast([[0.0, 0.8] + [0.2 / len(rare)] * len(rare)], dtype)
    model = lambda phrases: tf.repeat(probs, tf.shape(phrases)[0], 0)  # noqa: E731
    lm = quatrains.QuatrainLM(Settings(max_length=1), corpus, model, None)
    sampled = [quatrain.tokens != ["king"] for quatrain in lm.generate(5000, seed=1)]
    weights = tf.cast(probs[0], float).numpy()
    # Within four standard errors.
    assert np.mean(sampled) == pytest.approx(weights[2:].sum() / weights.sum(), abs=0.023)


def test_a_gpu_that_tensorflow_does_not_find_is_refused_in_one_line(verses, monkeypatch):
    monkeypatch.delenv("TF_CPP_MIN_LOG_LEVEL")  # TensorFlow prints nothing all the same.
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "-1")
    done = run_script(verses.parent, corpus="verses.txt", use_gpu=True)
    message = "quatrains: use_gpu = True, but TensorFlow found no GPU: install the GPU driver and "
    message += '"tensorflow[and-cuda]", or set use_gpu = False\n'
    assert (done.returncode, done.stdout, done.stderr) == (2, "", message)
    assert not (verses.parent / "logs").exists()
