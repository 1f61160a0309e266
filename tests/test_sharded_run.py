"""A run over eight devices with all that makes steps cheaper, continued without most of it."""

import shutil

import pytest

from cyclip_jax import defaults
from cyclip_jax.errors import UserError
from cyclip_jax.models.presets import sizes_in
from cyclip_jax.train import train
from cyclip_jax.training.objective import configured_objective
from cyclip_jax.training.sentences import Sentences
from cyclip_jax.training.stages import batch_shapes, batches_of_run, stages_of_run
from cyclip_jax.training.token_reduction import TokenReduction, see_everything
from cyclip_jax.workdir.metrics import metrics_at, read_metrics
from tests import tiny

STEPS, FULL_STEPS = 6, 2


def configure(pairs, *, fsdp=1, micro_batches=1):
    config = tiny.get_config()
    config.batch_size = 16
    config.total_steps = STEPS
    config.checkpoint_every_steps = 3
    config.optimizer.warmup_steps = 2
    config.data.train = str(pairs)
    config.evals = {}
    config.model = type(config.model)(
        config.model.to_dict()
        | {
            "name": "ViT-tiny",
            "vision_width": 16,
            "vision_heads": 2,
            "vision_layers": 1,
            "patch_size": 8,
            "text_heads": 2,
        }
    )
    config.tokens.patch_dropping = "grid"
    config.tokens.image_size = 16
    config.tokens.text_length = 5
    config.tokens.text_choice = "block"
    config.tokens.full_steps = FULL_STEPS
    config.tokens.full_learning_rate = 1e-3
    config.tokens.full_warmup_steps = 1
    config.mesh.fsdp = fsdp
    config.mesh.fsdp_min_size = 100
    config.micro_batches = micro_batches
    return config.lock()


def test_a_run_goes_on_over_another_mesh_with_the_same_losses(pairs, tmp_path, capsys):
    train(configure(pairs, fsdp=4, micro_batches=2), tmp_path / "first")
    shutil.copytree(tmp_path / "first", tmp_path / "second")
    shutil.rmtree(tmp_path / "second" / "checkpoints" / str(STEPS))
    train(configure(pairs), tmp_path / "second")
    assert "continuing from step 3" in capsys.readouterr().out
    for step in range(4, STEPS + 1):
        first, second = (metrics_at(tmp_path / name, step) for name in ("first", "second"))
        assert second["loss"] == pytest.approx(first["loss"], rel=1e-5)
        assert second["grad_norm"] == pytest.approx(first["grad_norm"], rel=1e-4)
        assert 0 <= first["data_wait_share"] <= 1
    # On a device whose peak is not known, no utilisation is made up.
    assert not any("model_flops_utilisation" in line for line in read_metrics(tmp_path / "first"))


VIT = {"vision_tower": "vit", "image_size": 32, "patch_size": 8, "context_length": 16}
NOTHING = defaults.get_config().tokens.to_dict() | {"full_steps": 10}
DROPPING = NOTHING | {"patch_dropping": "random", "text_length": 8}


def test_the_last_steps_see_everything():
    def views_of_run(**settings):
        return TokenReduction(**DROPPING | settings).views_of_run(VIT, 100)

    (start, first), (full, last) = views_of_run()
    assert (start, full, last) == (0, 90, see_everything) and first is not see_everything
    assert len(views_of_run(full_steps=0)) == 1
    assert views_of_run(full_steps=100) == [(0, see_everything)]
    assert views_of_run(**NOTHING) == [(0, see_everything)]
    smaller = views_of_run(**NOTHING | {"image_size": 16})
    assert smaller == [(0, see_everything), (90, see_everything)]
    sizes = TokenReduction(**NOTHING | {"image_size": 16})
    assert [sizes.image_size_at(step, 100) for step in (0, 89, 90)] == [16, 16, None]


def test_pairs_are_opened_anew_where_images_change_their_size():
    """At the place in the data that the step before has led to, and what was open is closed."""
    config = configure("pairs.csv")
    stages = stages_of_run(
        *(configured_objective(config), Sentences(**config.sentences)),
        TokenReduction(**config.tokens),
        sizes=sizes_in(config.model),
        total_steps=STEPS,
    )
    assert [(stage.first_step, stage.image_size) for stage in stages] == [(0, 16), (4, None)]
    opened, closed = [], []

    def pairs_from(position, size):
        opened.append((position, size))

        def rows():
            number = position
            try:
                while True:
                    number += 1
                    yield {"images": size, "tokens": number}, number
            finally:
                closed.append(size)

        return rows()

    batches = batches_of_run(stages, 2, pairs_from, 20, None)
    assert opened == [(20, 16)]
    found = [next(batches) for _ in range(4)]
    assert opened == [(20, 16), (22, None)] and closed == [16]
    assert [batch["images"] for batch, _ in found] == [16, 16, None, None]
    assert [position for _, position in found] == [21, 22, 23, 24]
    batches.close()
    assert closed == [16, None]
    assert batch_shapes(config, ["images"], image_size=16)["images"].shape == (16, 16, 16, 3)


@pytest.mark.parametrize(
    "changed, message",
    [
        ({"patch_dropping": "some"}, r"config\.tokens\.patch_dropping 'some'"),
        ({"kept_patches": 0.0}, r"config\.tokens\.kept_patches 0\.0"),
        ({"patch_dropping": "grid", "kept_patches": 0.3}, r"1/0\.3 patches that tile 4×4"),
        ({"image_size": 12}, r"config\.tokens\.image_size 12 must be a multiple of .* of 8 pixels"),
        ({"image_size": 32}, r"config\.tokens\.image_size 32 .* less than its images of 32"),
        ({"image_size": 0}, r"config\.tokens\.image_size 0 must be a multiple"),
        (
            {"image_size": 8, "patch_dropping": "grid"},
            r"1/0\.5 patches that tile 1×1",
        ),
        ({"text_length": 1}, r"config\.tokens\.text_length 1"),
        ({"text_length": 17}, r"config\.tokens\.text_length 17 .* context_length 16"),
    ],
)
def test_a_view_that_the_model_cannot_have_is_an_error(changed, message):
    with pytest.raises(UserError, match=message):
        TokenReduction(**DROPPING | changed).reduced_view(VIT)


def test_a_resnet_has_no_patches_to_drop():
    with pytest.raises(UserError, match=r"config\.tokens\.patch_dropping"):
        TokenReduction(**DROPPING).reduced_view(
            {**VIT, "vision_tower": "resnet", "patch_size": None}
        )
    with pytest.raises(
        UserError, match=r"config\.tokens\.image_size 16 does not apply to a ResNet"
    ):
        TokenReduction(**NOTHING | {"image_size": 16}).reduced_view(
            {**VIT, "vision_tower": "resnet", "patch_size": None}
        )


def test_a_negative_tuning_phase_is_an_error():
    with pytest.raises(UserError, match=r"config\.tokens\.full_steps -1"):
        TokenReduction(**DROPPING | {"full_steps": -1})


@pytest.mark.parametrize(
    "changed, message",
    [
        ({"text_choice": "last"}, r"unknown config\.tokens\.text_choice 'last'"),
        ({"text_choice": "block", "text_length": None}, r"set config\.tokens\.text_length"),
        ({"full_learning_rate": 0.0}, r"full_learning_rate 0\.0 must be greater than 0"),
        (
            {"full_learning_rate": 1.0, "full_steps": 0},
            r"is that of the last config\.tokens\.full_s",
        ),
        ({"full_warmup_steps": 3}, r"is the warm-up of config\.tokens\.full_learning_rate"),
        (
            {"full_learning_rate": 1.0, "full_warmup_steps": 10},
            r"config\.tokens\.full_warmup_steps 10 must be at least 0 and less than",
        ),
    ],
)
def test_settings_of_phases_that_do_not_suit_each_other_are_refused(changed, message):
    with pytest.raises(UserError, match=message):
        TokenReduction(**DROPPING | changed)
