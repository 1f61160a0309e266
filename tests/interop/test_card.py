"""The card of an export, as text."""

import dataclasses

from cyclip_jax import defaults
from cyclip_jax.evals.metric import SHARE
from cyclip_jax.files import write_json
from cyclip_jax.interop.card import model_card
from tests.interop.models import drawn_checkpoint

TINY = {"name": "ViT-tiny"}


def test_the_card_shows_metrics_by_what_they_say_of_themselves(tmp_path):
    files = {
        "metrics.json": {"new_loss": {"meaning": "The new term"}},
        "evals/val/metrics.json": {"never_seen": dataclasses.asdict(SHARE)},
    }
    for name, told in files.items():
        write_json(tmp_path / name, told)
    checkpoint = dataclasses.replace(
        drawn_checkpoint(TINY, None),
        config=defaults.get_config(),
        metrics={"loss": 2.0, "new_loss": 1.25, "val/never_seen": 0.5},
        source=str(tmp_path),
    )
    card = model_card(
        checkpoint, name="x", export_format="cyclip", dtype="float32", license_name="unknown"
    )
    rows = {line.split()[0]: line.split()[1:] for line in card.splitlines() if line.split()}
    assert rows["new_loss"] == ["1.250"]
    assert rows["never_seen"] == ["50.0%"]


def test_the_card_tells_no_folder_of_the_machine():
    config = defaults.get_config()
    config.data.train = "/home/me/data/{00..09}.tar"
    config.evals.dtd = defaults.zeroshot("preset:dtd=/home/me/dtd@test")
    config.init_from, config.data.validation = "gs://b/run", "{workdir}/../val.csv"
    checkpoint = dataclasses.replace(drawn_checkpoint(TINY, None), config=config)
    card = model_card(
        checkpoint, name="x", export_format="cyclip", dtype="float32", license_name="unknown"
    )
    assert "/home" not in card and "| training data | {00..09}.tar |" in card
    for kept in ('"preset:dtd=dtd@test"', '"init_from": "run"', '"{workdir}/../val.csv"'):
        assert kept in card
