"""The model, its training steps, and the sampling of words, all inside one process."""

import itertools

import numpy as np
import pytest

import quatrains
from conftest import run_script
from quatrains import Samples, Settings, keras, tf

layers, optimizers = keras.layers, keras.optimizers


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
    assert (embedding.trainable, embedding.mask_zero) == (True, False)
    assert (embedding.get_weights()[0] == 1).all()
    assert (gru.units, gru.dropout, gru.recurrent_dropout, gru.reset_after) == (128, 0.5, 0.5, True)
    functions = (gru.activation, gru.recurrent_activation, dense.activation)
    assert [function.__name__ for function in functions] == ["tanh", "sigmoid", "softmax"]
    for penalty in (gru.kernel_regularizer, gru.recurrent_regularizer, gru.bias_regularizer):
        assert penalty.get_config() == {"l2": pytest.approx(0.02)}
    assert dense.kernel_regularizer is None
    assert model.count_params() == 4705 * 300 + 3 * 128 * (300 + 128 + 2) + 129 * 4705
    assert (model.input_shape, model.output_shape) == ((None, 4), (None, 4705))
    assert type(model.optimizer) is optimizers.RMSprop
    assert float(model.optimizer.learning_rate) == pytest.approx(0.003)
    assert (model.optimizer.rho, model.optimizer.momentum) == (0.9, 0.0)
    assert model.loss == "sparse_categorical_crossentropy"


class Doubled(keras.Sequential):
    def train_step(self, data):
        if self.run_eagerly:
            assert data[0].numpy().shape == (13, 4)
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
    "eagerly": lambda: edited_model(layers.Flatten(), kind=Doubled, run_eagerly=True),
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


@pytest.mark.parametrize(("samples", "batch_size"), [(32_300, 512), (33_610, 512), (19, 512)])
def test_at_most_one_batch_of_an_epoch_is_filled_up(samples, batch_size):
    calls, steps, size = quatrains.plan_epoch(samples, batch_size)
    assert steps <= 8
    assert size <= batch_size
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


@pytest.mark.filterwarnings("error::DeprecationWarning:quatrains")
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_words_are_sampled_from_the_models_own_distribution(dtype):
    rare = ["".join(letters) for letters in itertools.product("abcdefghijklmno", repeat=3)]
    corpus = quatrains.index_corpus([("1", " ".join(["king", "king", *rare]))])
    # Two of three tokens, without breaks: the king, and thousands of words that are all rare.
    table = np.full((3, len(rare) + 2), 0.2 / len(rare))
    table[:, 0] = 0
    table[:, 1] = 0.8, 0.4, 0.1  # After a break, the king, and others.
    table = tf.cast(table, dtype)
    model = lambda phrases: tf.gather(table, tf.minimum(phrases[:, -1], 2))  # noqa: E731
    lm = quatrains.QuatrainLM(Settings(max_length=2), corpus, model, None)
    is_king = np.array([np.array(each.tokens) == "king" for each in lm.generate(9000, seed=1)])
    first, second = is_king.T
    weights = tf.cast(table, "float64").numpy()
    expected = weights[:, 1] / weights.sum(1)
    for before, kings in enumerate((first, second[first], second[~first])):
        assert kings.mean() == pytest.approx(expected[before], abs=2.2 / len(kings) ** 0.5)


def test_a_gpu_that_tensorflow_does_not_find_is_refused_in_one_line(verses, monkeypatch):
    monkeypatch.delenv("TF_CPP_MIN_LOG_LEVEL")  # TensorFlow prints nothing all the same.
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "-1")
    done = run_script(verses.parent, corpus="verses.txt", use_gpu=True)
    message = "quatrains: use_gpu = True, but TensorFlow found no GPU: install the GPU driver and "
    message += '"tensorflow[and-cuda]", or set use_gpu = False\n'
    assert (done.returncode, done.stdout, done.stderr) == (2, "", message)
    assert not (verses.parent / "logs").exists()
