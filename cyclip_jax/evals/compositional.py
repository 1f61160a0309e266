"""Compositional understanding: the right caption or picture among ones that differ by little."""

import dataclasses

from cyclip_jax.evals.checks import check_named, check_types
from cyclip_jax.evals.data.choices import check_layout, open_choices
from cyclip_jax.evals.evaluator import Evaluator, Needs, Opened
from cyclip_jax.evals.statistics.choices import score_choices
from cyclip_jax.files import FilePath


@dataclasses.dataclass(frozen=True)
class Compositional:
    """Scores choices between captions that share most of their words.

    The layout "choice" has a picture, its caption and one or more wrong ones; a choice is right
    when its own caption is more similar than every other. ARO's files (Yuksekgonul et al. 2023),
    also with boxes, its order tasks' `test_cases` written to a .json, and SugarCrepe's files (Hsieh
    et al. 2023) are read as they are.

    The layout "winoground" has two pictures and their two captions of the same words (Thrush et al.
    2022): the text score asks that each picture prefer its caption, the image score that each
    caption prefer its picture, the group score both.

    Ties are misses everywhere. The intervals are over pictures, of which one brings all its
    examples and boxes along; of "winoground" over pairs of pictures, which are its examples.

    Attributes:
      name: of the evaluation.
      examples: a .json, .jsonl or .csv, or a folder of such, of which each then is a category.
        Fields of "choice": image_path, image or filename; true_caption or caption; false_caption or
        negative_caption, one or a list, or in place of these caption_options, the right one first;
        bbox_x, bbox_y, bbox_w, bbox_h, the part of the picture that is meant, in pixels. Of
        "winoground": image_0, image_1 (".png" is added to a name without ending), caption_0,
        caption_1.
      images: folder of the pictures; default that of `examples`.
      layout: "choice" or "winoground".
      category_key: field that examples are grouped by; default what the published files have
        (relation_name, attributes, category; collapsed_tag, tag), else the file's name.

    Raises:
      UserError: the settings alone show that something is wrong.
    """

    name: str
    _: dataclasses.KW_ONLY
    examples: FilePath
    images: FilePath | None = None
    layout: str = "choice"
    category_key: str | None = None

    def __post_init__(self) -> None:
        check_types(self)
        check_layout(self.layout, f"config.evals.{self.name}")
        check_named(self, "examples")

    def open(self) -> Evaluator:
        """Opens the data.

        Returns:
          An evaluator (see evals/__init__.py) that gives, with intervals, `accuracy` and
          `macro_accuracy`, the mean over the categories, and `blind_accuracy`, which chooses by the
          text alone: every picture is the mean of all; or `text_score`, `image_score` and
          `group_score`; what `chance_…` gets, a wrong caption that is listed again counting once;
          `examples`, `images`, `captions`: what was scored. `categories.json` has the same by
          category. Outcomes: each of `examples` has its `category`, its accuracies or its three
          scores, and `cluster`, which are of the same pictures.

        Raises:
          UserError: what is wrong with the files.
        """
        choices = open_choices(
            self.examples,
            images=self.images,
            layout=self.layout,
            category_key=self.category_key,
            config_key=f"config.evals.{self.name}",
        )

        def evaluate(encoders, output):
            scored = score_choices(choices, encoders.image_embeds, encoders.text_embeds)
            output.json("categories", scored.table)
            output.outcomes({"examples": scored.outcomes})
            return scored.metrics

        return Opened(evaluate, lambda: Needs([choices.images], [choices.captions]))
