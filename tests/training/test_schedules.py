import numpy as np
import pytest

from cyclip_jax import defaults
from cyclip_jax.errors import UserError
from cyclip_jax.training.optimizer import Optimizer
from cyclip_jax.training.schedules import learning_rate_schedule


def test_schedule_follows_the_published_formula(x64):
    schedule = learning_rate_schedule(2.0, warmup_steps=4, total_steps=12)
    warmup = [0.5, 1.0, 1.5, 2.0]
    cosine = [2.0 * 0.5 * (1 + np.cos(np.pi * (t - 4) / 8)) for t in range(4, 12)]
    np.testing.assert_allclose([schedule(t) for t in range(12)], warmup + cosine, rtol=1e-12)


def test_a_run_without_warm_up_starts_at_its_peak():
    assert float(learning_rate_schedule(2.0, warmup_steps=0, total_steps=5)(0)) == 2.0


@pytest.mark.parametrize("warmup_steps", [-1, 12, 10_000])
def test_a_warm_up_as_long_as_the_run_is_refused(warmup_steps):
    with pytest.raises(UserError, match=r"config.optimizer.warmup_steps .* 12 steps"):
        learning_rate_schedule(1.0, warmup_steps=warmup_steps, total_steps=12)


def rates(steps, *, warmup_steps=2, total_steps=10, **own):
    lengths = {"warmup_steps": warmup_steps, "total_steps": total_steps}
    schedule = learning_rate_schedule(2.0, **lengths, **own)
    return [float(schedule(step)) for step in steps]


def test_a_constant_rate_stays_after_its_warm_up(x64):
    assert rates(range(10), schedule="constant") == [1.0] + [2.0] * 9


def test_a_constant_rate_falls_to_zero_in_the_cool_down(x64):
    found = rates(range(11), schedule="constant", cooldown_steps=4)
    # Step 6 is the first of the cool-down, and still has the whole rate; step 10 would have none.
    np.testing.assert_allclose(found, [1, 2, 2, 2, 2, 2, 2, 1.5, 1, 0.5, 0], rtol=1e-12)


def test_a_linear_rate_falls_to_zero_at_the_end_of_the_run(x64):
    fall = [2 * (10 - t) / 8 for t in range(2, 11)]
    np.testing.assert_allclose(rates(range(11), schedule="linear"), [1, 2, *fall], rtol=1e-12)


def test_a_cosine_with_a_cool_down_falls_to_a_share_and_then_to_zero(x64):
    own = {"schedule": "cosine_with_cooldown", "cooldown_steps": 4, "cooldown_from": 0.1}
    cosine = [2 * (0.1 + 0.9 * (1 + np.cos(np.pi * p)) / 2) for p in (0, 0.25, 0.5, 0.75)]
    cooldown = [2 * 0.1 * (10 - t) / 4 for t in range(6, 11)]
    np.testing.assert_allclose(rates(range(11), **own), [1, 2, *cosine, *cooldown], rtol=1e-12)


@pytest.mark.parametrize("schedule", ["constant", "linear", "cosine_with_cooldown"])
def test_only_the_published_schedule_rises_again_past_its_end(schedule):
    cooldown = {"cooldown_steps": 3} if schedule == "cosine_with_cooldown" else {}
    end, *beyond = rates(range(10, 15), schedule=schedule, **cooldown)
    assert beyond == [end] * 4 and end == (2.0 if schedule == "constant" else 0.0)
    assert rates([14], schedule=schedule, **cooldown) == rates(
        [10], schedule=schedule, offset_steps=4, **cooldown
    )
    assert rates([14]) > rates([10])


def optimizer(**own):
    return Optimizer(**defaults.get_config().optimizer.to_dict() | {"warmup_steps": 4} | own)


def test_steps_on_sentences_alone_have_the_same_course_in_their_own_length(x64):
    own = {"schedule": "constant", "cooldown_steps": 8, "learning_rate": 2.0}
    lengths = {"total_steps": 60, "steps_per_epoch": 7}
    schedule = optimizer(**own).learning_rate_schedule(**lengths, steps_before=20)
    before = [float(schedule(step)) for step in range(20)]  # half as long as the 40 on pairs
    on_pairs = [float(schedule(step)) for step in range(20, 60)]
    np.testing.assert_allclose(before, [1, *[2] * 15, 2, 1.5, 1, 0.5], rtol=1e-12)
    alone = optimizer(**own).learning_rate_schedule(total_steps=40, steps_per_epoch=7)
    np.testing.assert_allclose(on_pairs, [float(alone(step)) for step in range(40)], rtol=1e-12)


def test_the_last_steps_may_have_a_course_of_their_own(x64):
    """Each part is the schedule of a run of its length, also after steps on sentences alone."""
    lengths = {"total_steps": 60, "steps_per_epoch": 7}
    whole = optimizer(learning_rate=2.0).learning_rate_schedule(**lengths, own_course=(20, 0.2, 5))
    before = optimizer(learning_rate=2.0).learning_rate_schedule(total_steps=40, steps_per_epoch=7)
    last = optimizer(learning_rate=0.2, warmup_steps=5)
    last = last.learning_rate_schedule(total_steps=20, steps_per_epoch=7)
    expected = [*map(before, range(40)), *map(last, range(20))]
    np.testing.assert_allclose([whole(step) for step in range(60)], expected, rtol=1e-12)
    own = {"own_course": (20, 0.2, 5), "steps_before": 10}
    found = optimizer(learning_rate=2.0).learning_rate_schedule(**lengths, **own)
    before = optimizer(learning_rate=2.0).learning_rate_schedule(
        total_steps=40, steps_per_epoch=7, steps_before=10
    )
    np.testing.assert_allclose(
        [found(step) for step in range(60)],
        [*map(before, range(40)), *map(last, range(20))],
        rtol=1e-12,
    )
    all_full = optimizer().learning_rate_schedule(**lengths, own_course=(70, 0.2, 5))
    alone = optimizer(learning_rate=0.2, warmup_steps=5).learning_rate_schedule(**lengths)
    np.testing.assert_allclose(all_full(30), alone(30), rtol=1e-12)


@pytest.mark.parametrize(
    "own, sentence",
    [
        ({"schedule": "sine"}, "unknown config.optimizer.schedule 'sine'; choose one of cosine, c"),
        ({"cooldown_steps": -1}, "config.optimizer.cooldown_steps -1 must be at least 0"),
        ({"cooldown_from": 1.5}, "config.optimizer.cooldown_from 1.5 must be from 0 to 1"),
        (
            {"schedule": "linear", "cooldown_steps": 5},
            "config.optimizer.schedule 'linear' falls to zero by itself and has no cool-down; set "
            "cooldown_steps to 0, or the schedule to one of constant, cosine_with_cooldown",
        ),
        (
            {"schedule": "cosine_with_cooldown"},
            "config.optimizer.schedule 'cosine_with_cooldown' needs cooldown_steps; set",
        ),
    ],
)
def test_keys_that_do_not_suit_each_other_are_refused(own, sentence):
    with pytest.raises(UserError) as error:
        optimizer(**own)
    assert str(error.value).startswith(sentence)


def test_a_cool_down_as_long_as_what_the_warm_up_leaves_is_refused():
    sentence = r"cooldown_steps 8 must be less than the 8 steps that the warm-up leaves .* 10$"
    with pytest.raises(UserError, match=sentence):
        rates([0], schedule="constant", cooldown_steps=8)
    rates([0], schedule="constant", cooldown_steps=7)
