"""How the examples of a data set are read: the settings that all sources share."""

import contextlib
import dataclasses
from collections.abc import Iterable
from typing import ClassVar

from cyclip_jax.data.captions import CaptionRule
from cyclip_jax.data.record import Source, Unreadable
from cyclip_jax.errors import UserError

RECORDS_TRIED = 16  # for what says which fields examples have


@dataclasses.dataclass(frozen=True, kw_only=True)
class Reading:
    """What of a record is the picture, and what its captions.

    Every source takes the same settings and uses those that mean something to it. Without any of
    them a source reads what is usual in its format.

    Attributes:
      image_key: column, feature or ending of the picture; None is the source's usual one.
      caption_key: column, feature or ending of the caption, or a tuple of several; None is the
        source's usual one.
      caption_weights: how often each of several captions is drawn; None draws them equally often.
      negative_caption_key: column, feature or ending of a wrong caption; None is none.
      negative_image_key: that of a picture which the wrong caption describes; None is none.
      templates: sentences with {} in place of the caption, of which one is drawn at a time.
      delimiter: the character between the columns of a CSV; the two characters backslash and t mean
        a tab.
      kept_examples: how many of the examples read lately are kept in memory, with their neighbours.
      takes_numbers: whether numbers count as captions; no setting, see `LabelReading`.

    Raises:
      UserError: the weights do not fit the captions, or a template has no {}.
    """

    image_key: str | None = None
    caption_key: str | Iterable[str] | None = None
    caption_weights: Iterable[float] | None = None
    negative_caption_key: str | None = None
    negative_image_key: str | None = None
    templates: Iterable[str] = ()
    delimiter: str = ","
    kept_examples: int = 0
    takes_numbers: ClassVar[bool] = False

    def __post_init__(self) -> None:
        self.caption_rule("the source's usual one")

    def caption_rule(self, usual_key: str) -> CaptionRule:
        """The rule by which a record has its captions, in `usual_key` where no key is set."""
        return CaptionRule(
            self.caption_key or usual_key,
            self.caption_weights,
            self.templates,
            self.takes_numbers,
            self.negative_caption_key,
        )

    def image_keys(self, usual_key: str) -> dict[str, str]:
        """{setting: key} of the picture, in `usual_key` where none is set, and of a wrong one."""
        keys = {
            "image_key": self.image_key or usual_key,
            "negative_image_key": self.negative_image_key,
        }
        return {name: key for name, key in keys.items() if key is not None}

    def check_negatives(self, source: Source, path: str) -> None:
        """Raises UserError where what is set as wrong is in none of a source's first examples.

        It is for formats in which each example has fields of its own, so that a name that is not
        right would go unseen.
        """
        missing = {
            "negative_caption_key": self.negative_caption_key,
            "negative_image_key": self.negative_image_key,
        }
        for index in range(min(len(source), RECORDS_TRIED)):
            if not any(missing.values()):
                return
            with contextlib.suppress(Unreadable):
                record = source.read(index)
                if record.negative:
                    missing["negative_caption_key"] = None
                if record.negative_image:
                    missing["negative_image_key"] = None
        for name, key in missing.items():
            if key is not None:
                raise UserError(
                    f"none of the first {RECORDS_TRIED} examples of {path} has {key!r}; set "
                    f"config.data.{name} to what they have"
                )

    def delimiter_of(self, path: str) -> str:
        """The one character between the columns of a CSV file; files that end in .tsv have tabs.

        Raises:
          UserError: the delimiter is not one character.
        """
        is_tab = self.delimiter == "\\t" or (
            self.delimiter == "," and path.lower().endswith(".tsv")
        )
        delimiter = "\t" if is_tab else self.delimiter
        if len(delimiter) != 1:
            raise UserError(
                f"config.data.delimiter is {delimiter!r}; set it to one character, e.g. ',' or "
                "'\\t'"
            )
        return delimiter


class LabelReading(Reading):
    """How the labels of evaluations are read in place of captions: numbers name classes too."""

    takes_numbers: ClassVar[bool] = True
