"""What `dinv grow` is asked for: when it ends, and how much a round adds."""

from __future__ import annotations

from pydantic import model_validator

from .planning import Duration
from .settings import Settings, setting


class GrowSettings(Settings):
    """Rounds of drawing, training and measuring on folds; whichever end comes first ends them."""

    images: int | None = setting(None, "end when so many images were added", unset="no end", ge=1)
    target_gain: float | None = setting(
        None,
        "end when classifiers recognise so many points more of held-out training images than before, or when three "
        "rounds in turn brought no more",
        unset="no end",
        gt=0,
        le=100,
    )
    time_limit: Duration | None = setting(
        None, "end before a round would go beyond e.g. 45min, 2h or 1d", unset="no end", gt=0
    )
    balance: str = setting(
        "class",
        "what gets images in proportion to its error: class, or COLUMN of --attributes, each value within each class",
        min_length=1,
    )
    round_images: int | None = setting(None, "images that a round adds", unset="as many as there are vectors", ge=1)

    @model_validator(mode="after")
    def _it_has_an_end(self) -> GrowSettings:
        if self.images is None and self.target_gain is None and self.time_limit is None:
            raise ValueError("no end was given; give --images, --target-gain or --time-limit")
        return self
