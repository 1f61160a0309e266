"""Similarity of sentences, for `python -m cyclip_jax.evaluate`.

`--config=configs/evals/sts.py:FOLDER` takes STS12 to STS16, STS-B and SICK-R as SentEval's script
leaves them in data/downstream; tasks that are not there are left out.
"""

from cyclip_jax import defaults
from cyclip_jax.errors import UserError


def get_config(folder=""):
    """Run with --config=configs/evals/sts.py:FOLDER, which has the folders STS and SICK."""
    if not folder:
        raise UserError(
            "name SentEval's folder, as in --config=configs/evals/sts.py:/data/SentEval/data/"
            "downstream"
        )
    config = defaults.get_config()
    config.evals = {"sts": defaults.sts(folder)}
    return config
