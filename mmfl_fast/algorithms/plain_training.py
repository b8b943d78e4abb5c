"""How the baselines of M3Fed train: cross-entropy alone, with as many steps as M3Fed takes."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from mmfl_fast.algorithms.backbone import BackboneAlgorithm, BackboneConfig
from mmfl_fast.federation import Phase


class PlainTrainingConfig(BackboneConfig):
    """Options of the baselines."""

    schedule: Literal["alternating", "joint"] = Field(
        "alternating",
        description="a local epoch: M3Fed's passes over phi, T, psi and over f; or two over all at eta_p",
    )


class PlainTraining(BackboneAlgorithm):
    """Two passes per local epoch; subclasses decide what is exchanged."""

    Config = PlainTrainingConfig
    beside: ClassVar[tuple[str, ...]] = ()
    """Further parts, which train along with ``phi``, ``T`` and ``psi``."""

    def client_phases(self) -> list[Phase]:
        """The passes of a round."""
        c = self.config
        personal = (*(("phi", "T", "psi") if c.projection else ("phi", "psi")), *self.beside)
        passes: list[Phase]
        if c.schedule == "joint":
            passes = [
                Phase("joint", self.loss, (*personal, "f"), self.sgd(c.learning_rate), c.batch_size)
            ] * 2
        else:
            passes = [
                Phase("personal", self.loss, personal, self.sgd(c.learning_rate), c.batch_size),
                Phase("global", self.loss, ("f",), self.sgd(c.global_learning_rate), c.batch_size),
            ]
        return passes * int(c.local_epochs)
