"""Pictures in a fixed order."""

import dataclasses
from collections.abc import Hashable

from cyclip_jax.data.sources import Source


@dataclasses.dataclass(frozen=True)
class ImageSet:
    """Pictures in a fixed order.

    Attributes:
      source: whose examples they are.
      identity: equal for equal data, which are embedded once.
      path: what names it in a message.
    """

    source: Source
    identity: tuple[Hashable, ...]
    path: str
