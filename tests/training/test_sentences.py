"""Training on sentences: the step, its stages, and what the settings refuse."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from cyclip_jax import defaults, parallel
from cyclip_jax.errors import UserError
from cyclip_jax.losses.sentences import mask_keys
from cyclip_jax.training.configured_model import abstract_trained, create_trained
from cyclip_jax.training.objective import Objective
from cyclip_jax.training.optimizer import adamw
from cyclip_jax.training.sentences import Sentences
from cyclip_jax.training.settings import checked
from cyclip_jax.training.stages import is_of_sentences, stage_at, stages_of_run
from cyclip_jax.training.starting_point import checkpoint_items, state_of_items
from cyclip_jax.training.step import abstract_state, create_state, embed_rows, make_train_step
from cyclip_jax.training.token_reduction import TokenReduction
from tests.training import test_step as of_step
from tests.training.test_step import VIT, make_state, worst_difference

M, LENGTH = 8, 5
SECTION = {**defaults.get_config().sentences, "train": "wiki.txt", "batch_size": M}
TRIPLETS = {"train": "nli.csv"}
NO_REDUCTION = TokenReduction(**defaults.get_config().tokens)


def objective_of(**section):
    return Objective(**of_step.LOSS, chunk_size=3, sentences=SECTION | section)


def make_batch(seed=0):
    """Sixteen pairs beside eight rows of three sentences."""
    rng = np.random.default_rng(seed)
    batch = of_step.make_batch()
    for name in ("sentences", "positives", "negatives"):
        tokens = rng.integers(1, 38, (M, LENGTH), np.int32)
        tokens[np.arange(M), rng.integers(2, LENGTH, M)] = 39
        batch[name] = tokens
    return batch


def run(devices=1, section=None, only=(), **step):
    """Loss and gradient in float64 of a step with sentences."""
    with jax.enable_x64(True):
        state, graphdef = of_step.perturbed_state("float64", **VIT)
        objective = objective_of(**(section or {}))
        objective = objective.only(*only) if only else objective
        batch = {key: rows for key, rows in make_batch().items() if key in objective.inputs}
        return of_step.run_on(
            devices, state, graphdef, batch, "float64", objective=objective, **step
        )


@functools.cache
def on_one_device(kind):
    return run(section=kind == "triplets" and TRIPLETS)


@pytest.mark.parametrize(
    "kind, devices, step",
    [
        pytest.param("unsupervised", 1, {"micro_batches": 2}, marks=pytest.mark.slow),
        ("unsupervised", 1, {"micro_batches": 4}),
        ("unsupervised", 8, {"fsdp": 2}),
        ("triplets", 8, {"micro_batches": 1}),
    ],
)
def test_with_dropout_any_mesh_and_micro_batches_give_one_gradient(kind, devices, step):
    section = TRIPLETS if kind == "triplets" else {}
    assert worst_difference(run(devices, section, **step), on_one_device(kind)) <= 1e-10


def test_the_gradient_of_the_joint_loss_is_the_sum_of_both():
    joint = run(section={"weight": 0.5})
    parts = run(only=("contrastive", "cyclic")), run(only=("sentences",))
    total = [
        (path, a if path[0].key == "stats" else a + 0.5 * b)
        for (path, a), (_, b) in zip(*parts, strict=True)
    ]
    assert worst_difference(joint, total) <= 1e-12


def test_the_loss_is_that_of_the_embeddings_under_these_masks(x64):
    """With passes of the text tower of their own, each with the masks of its rows."""
    state, graphdef = of_step.perturbed_state("float64", **VIT)
    objective = objective_of().only("sentences")
    batch = make_batch()
    key = jax.random.fold_in(state.rng, state.step)
    masks = mask_keys(key, batch, ["sentences", "sentences_again"])
    model = nnx.merge(graphdef, *jax.tree.map(jnp.asarray, (state.params, state.batch_stats)))
    embeds = [
        embed_rows(model, batch | masks, {name: row})[name] for name, row in objective.rows.items()
    ]
    cosines = embeds[0] @ embeds[1].T
    logits = cosines / 0.05
    expected = jnp.mean(jax.nn.logsumexp(logits, axis=1) - jnp.diagonal(logits))
    (loss,) = (value for path, value in run(only=("sentences",)) if path[0].key == "loss")
    assert float(loss) == pytest.approx(float(expected), rel=1e-12)
    assert float(jnp.diagonal(cosines).mean()) < 1 - 1e-3  # two masks, two embeddings
    same = dict.fromkeys(masks, masks["sentences_masks"])
    once, again = embed_rows(model, batch | same, objective.rows).values()
    np.testing.assert_allclose(once, again, rtol=0, atol=1e-12)


def test_two_rows_with_one_sentence_have_masks_of_their_own():
    state, graphdef = make_state(optax.identity(), "float32", perturb=0.1, **VIT)
    objective = objective_of().only("sentences")
    batch = {"sentences": np.repeat(make_batch()["sentences"][:1], M, axis=0)}
    batch = objective.with_drawn(jax.random.key(0), batch)
    model = nnx.merge(graphdef, state.params, state.batch_stats)
    embeds = embed_rows(model, batch, objective.rows)
    rows = np.concatenate(list(embeds.values()))
    assert len({row.tobytes() for row in rows}) == 2 * M


def test_without_a_file_or_a_weight_the_program_is_the_one_without_the_section():
    state, graphdef = make_state(optax.identity(), "float32", perturb=0.1, **VIT)

    def program(objective):
        step = make_train_step(graphdef, optax.identity(), lambda _: 0.5, objective=objective)
        batch = {key: rows for key, rows in make_batch().items() if key in objective.inputs}
        return jax.jit(step).lower(state, batch).as_text()

    without = program(Objective(**of_step.LOSS, chunk_size=3))
    assert program(objective_of(train=None)) == without
    assert program(objective_of(weight=0)) == without
    assert program(objective_of()) != without


# Stages


def stages(total_steps=20, objective=None, tokens=NO_REDUCTION, **section):
    sentences = Sentences(**SECTION | section)
    objective = objective or objective_of(**section)
    sizes = {"context_length": 6, "vision_tower": "vit", "image_size": 32, "patch_size": 16}
    return stages_of_run(objective, sentences, tokens, sizes=sizes, total_steps=total_steps)


BOTH, PAIRS, ALONE = (
    ["contrastive", "cyclic", "sentences"],
    ["contrastive", "cyclic"],
    ["sentences"],
)


@pytest.mark.parametrize(
    "section, expected",
    [
        ({}, [(0, BOTH, False)]),
        ({"train": None}, [(0, PAIRS, False)]),
        ({"weight": 0}, [(0, PAIRS, False)]),
        ({"only_steps": 5}, [(0, ALONE, False), (5, BOTH, True)]),
        ({"until_step": 8}, [(0, BOTH, False), (8, PAIRS, False)]),
        (
            {"only_steps": 5, "until_step": 8},
            [(0, ALONE, False), (5, BOTH, True), (8, PAIRS, False)],
        ),
        ({"only_steps": 5, "until_step": 5}, [(0, ALONE, False), (5, PAIRS, True)]),
        ({"only_steps": 20}, [(0, ALONE, False)]),
        ({"until_step": 30}, [(0, BOTH, False)]),
    ],
)
def test_a_run_has_its_stages(section, expected):
    found = stages(**section)
    assert [(s.first_step, list(s.objective.terms), s.starts_anew) for s in found] == expected
    for stage in found:
        assert (stage.trainable is is_of_sentences) == (list(stage.objective.terms) == ALONE)
        assert stage.has_pairs == ("contrastive" in stage.objective.terms)


def test_full_steps_of_the_towers_cut_the_stages_once_more():
    tokens = dataclasses.replace(NO_REDUCTION, text_length=4, full_steps=6)
    found = stages(only_steps=5, until_step=8, tokens=tokens)
    assert [stage.first_step for stage in found] == [0, 5, 8, 14]
    batch = dict.fromkeys(("tokens", "second_tokens"), jnp.zeros((2, 6), jnp.int32))
    lengths = [
        {rows.shape[1] for rows in stage_at(found, step).view(jax.random.key(0), batch).values()}
        for step in (0, 6, 9, 15)
    ]
    assert lengths == [{6}, {4}, {4}, {6}]


def test_while_sentences_are_seen_alone_the_image_tower_stays_to_the_last_bit():
    """With weight decay, its moments and BatchNorm's statistics as well; and then it moves."""
    optimizer = adamw(beta1=0.9, beta2=0.99, eps=1e-8, weight_decay=0.2, gradient_clip_norm=None)
    state, graphdef = make_state(optimizer, "float32", perturb=0.1)
    found, before = stages(only_steps=2), state
    steps = {
        stage.first_step: jax.jit(
            make_train_step(
                *(graphdef, optimizer, lambda _: 1e-2),
                objective=stage.objective,
                trainable=stage.trainable,
            )
        )
        for stage in found
    }
    for number in range(3):
        stage = stage_at(found, number)
        if stage.starts_anew and number == stage.first_step:
            parts = (state.params, state.opt_state, state.batch_stats)
            for old, new in zip(
                jax.tree.leaves((before.params["visual"], before.batch_stats)),
                jax.tree.leaves((parts[0]["visual"], parts[2])),
                strict=True,
            ):
                np.testing.assert_array_equal(old, new)
            moments = [
                leaf
                for path, leaf in jax.tree_util.tree_leaves_with_path(parts[1])
                if "'visual'" in jax.tree_util.keystr(path)
            ]
            assert moments and not any(np.any(leaf) for leaf in moments)
            kernels = [params["text"]["text_projection"] for params in (before.params, parts[0])]
            assert not np.array_equal(*kernels)
        batch = {key: rows for key, rows in make_batch().items() if key in stage.objective.inputs}
        state, metrics = steps[stage.first_step](state, batch)
        assert int(metrics["skipped_steps"]) == 0
    assert not np.array_equal(
        before.params["visual"]["conv1"]["kernel"], state.params["visual"]["conv1"]["kernel"]
    )


def test_weights_that_grow_begin_with_the_pairs():
    objective = Objective(
        **of_step.LOSS, cyclic_warmup_steps=10, sentences=SECTION | {"only_steps": 5}
    )
    embeds = dict.fromkeys(("images", "texts"), np.eye(8, dtype=np.float32))
    objective = objective.only("contrastive", "cyclic")
    weights = [
        float(objective(embeds, {}, {"logit_scale": 2.0}, step=step)[1]["inmodal_weight"])
        for step in (5, 10, 15, 30)
    ]
    assert weights == pytest.approx([0, 0.125, 0.25, 0.25])


def test_the_schedule_of_pairs_is_that_of_a_run_without_sentences():
    settings = checked(configured(**{"optimizer.warmup_steps": 20})).optimizer
    plain = settings.learning_rate_schedule(total_steps=100, steps_per_epoch=7)
    later = settings.learning_rate_schedule(total_steps=150, steps_per_epoch=7, steps_before=50)
    steps = np.arange(100)
    np.testing.assert_allclose(later(steps + 50), plain(steps), rtol=1e-6)
    before = np.asarray(later(np.arange(50)))
    assert before.argmax() in (9, 10)  # the same share of it is warm-up
    assert before[-1] < 0.01 * before.max()
    alone = settings.learning_rate_schedule(total_steps=50, steps_per_epoch=7, steps_before=50)
    assert np.asarray(alone(np.arange(50))).argmax() in (19, 20)


# The head


def configured(**settings):
    config = defaults.get_config()
    config.total_steps = 200
    config.optimizer.warmup_steps = 10
    config.data.train = "train.csv"
    config.model.name = "ViT-tiny"
    settings = {f"model.{key}": size for key, size in of_step.SIZES.items()} | settings
    settings |= {f"model.{key}": size for key, size in VIT.items()}
    config.update_from_flattened_dict(settings)
    return config


def with_head(**settings):
    return configured(**{"sentences.train": "wiki.txt", "sentences.head": "mlp"} | settings)


def test_a_head_is_trained_and_no_part_of_the_model():
    config = with_head()
    optimizer = checked(config).optimizer.transformation()
    state = create_state(functools.partial(create_trained, config), optimizer, seed=0)
    plain = create_state(functools.partial(create_trained, configured()), optax.identity(), seed=0)
    model, training = checkpoint_items(state)
    assert set(state.params) - set(model["params"]) == {"sentence_head"}
    jax.tree.map(np.testing.assert_array_equal, model["params"], plain.params)  # the same seed
    jax.tree.map(
        np.testing.assert_array_equal, state.params, state_of_items(model, training).params
    )
    objective = Objective(sentences={**config.sentences, "batch_size": M}).only("sentences")
    step = make_train_step(
        *(abstract_trained(config)[0], optimizer, lambda _: 1e-2),
        objective=objective,
        trainable=is_of_sentences,
    )
    batch = {"sentences": make_batch()["sentences"]}
    after, metrics = jax.jit(step)(state, batch)
    kernels = [s.params["sentence_head"]["dense"]["kernel"] for s in (state, after)]
    assert not np.array_equal(*kernels)
    assert np.isfinite(float(metrics["sentence_loss"]))


def test_a_head_stands_in_place_of_the_projection():
    config = with_head()
    model = create_trained(config)
    tokens = make_batch()["sentences"]
    features = model.text(tokens, is_projected=False)
    np.testing.assert_allclose(
        model.encode_sentences(tokens), model.sentence_head(features), rtol=1e-5
    )
    assert model.encode_sentences(tokens).shape == (M, of_step.SIZES["text_width"])
    plain = create_trained(configured())
    np.testing.assert_array_equal(plain.encode_sentences(tokens), plain.encode_text(tokens))


def test_the_parameters_of_a_head_are_divided_as_others_are():
    mesh = parallel.create_mesh(jax.devices()[:8], fsdp=2)
    create = functools.partial(create_trained, with_head())
    state = abstract_state(create, optax.identity(), mesh, seed=0, min_size=1)
    assert not state.params["sentence_head"]["dense"]["kernel"].sharding.is_fully_replicated


# What the settings refuse


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"weight": -1.0}, r"config\.sentences\.weight -1\.0 must be at least 0"),
        ({"batch_size": 1}, "batch_size 1 must be at least 2"),
        ({"length": 2}, "length 2 must be at least 3"),
        ({"temperature": 0.0}, r"temperature 0\.0 must be more than 0"),
        ({"dropout": 1.0}, r"dropout 1\.0 must be at least 0 and less than 1"),
        ({"hard_negative_weight": -1.0}, "hard_negative_weight -1.0 must be at least 0"),
        ({"head": "linear"}, r"config\.sentences\.head 'linear'.*none, mlp"),
        ({"train": "a.parquet"}, "whose ending does not tell"),
        ({"train": None, "only_steps": 3}, "only_steps 3 .*train is not set"),
        ({"weight": 0.0, "only_steps": 3}, "only_steps 3 .*weight is 0"),
        ({"only_steps": 5, "until_step": 4}, "until_step 4 must be at least 1 and .*only_steps 5"),
        ({"only_steps": 201}, "only_steps 201 are more than the run's 200 steps"),
        ({"only_steps": 195}, "warmup_steps 10 must be at least 0 and less than the run's 5 steps"),
    ],
)
def test_what_is_wrong_with_the_section_is_said_in_a_sentence(settings, message):
    section = {"train": "wiki.txt"} | settings
    config = configured(**{f"sentences.{key}": value for key, value in section.items()})
    with pytest.raises(UserError, match=message):
        checked(config)


def test_a_length_in_epochs_is_that_of_the_pairs():
    own = {"total_steps": None, "num_epochs": 3, "sentences.train": "wiki.txt"}
    settings = checked(configured(**own, **{"sentences.only_steps": 7, "batch_size": 10}))
    assert settings.run_length(examples=45) == 7 + 3 * 4
    assert settings.run_length(examples=45, step=5) == 7 + 3 * 4


def test_too_few_sentences_for_the_devices_name_the_smallest_batch_that_fits():
    mesh = parallel.create_mesh(jax.devices()[:8])
    with pytest.raises(UserError, match=r"config\.sentences\.batch_size 4 .* multiple of 8"):
        parallel.check_batch_size(4, mesh, name="config.sentences.batch_size")
