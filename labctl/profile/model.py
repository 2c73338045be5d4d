"""What all models of a profile share."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict

from labctl.profile.types import Text

# A list in YAML is a tuple here, so that a frozen model is frozen all the way down.
Texts = tuple[Text, ...]


class Model(BaseModel):
    """What all models share: unknown keys refused, nothing changes after loading."""

    model_config = ConfigDict(extra="forbid", frozen=True, defer_build=True, validate_default=False)
