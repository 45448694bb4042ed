"""The drafts of JSON Schema."""

from __future__ import annotations

from enum import Enum
from typing import Final


class Draft(Enum):
    """The drafts that are served, by the URI that ``$schema`` names them with."""

    DRAFT_4 = "http://json-schema.org/draft-04/schema"
    DRAFT_6 = "http://json-schema.org/draft-06/schema"
    DRAFT_7 = "http://json-schema.org/draft-07/schema"
    DRAFT_2019_09 = "https://json-schema.org/draft/2019-09/schema"
    DRAFT_2020_12 = "https://json-schema.org/draft/2020-12/schema"

    @property
    def is_classic(self) -> bool:
        """Served by fastjsonschema."""
        return self in (Draft.DRAFT_4, Draft.DRAFT_6, Draft.DRAFT_7)


DEFAULT_DRAFT: Final = Draft.DRAFT_7
