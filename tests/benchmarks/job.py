"""The sharding job taken apart: the same units as `cc shard` does, in this process."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from colorcore.dataset.layout import DatasetInfo, ShardSettings, write_info
from colorcore.storage.location import open_store
from colorcore.storage.store import Store
from pipelines.sharding.merge_tasks import merge_units
from pipelines.sharding.plan import PlannedUnit, plan_units
from pipelines.sharding.task import shard_unit
from pipelines.sources.source import open_sources


class PlainJob:
    """What `pipelines.sharding.job.shard` does, less Ray: plan in ``target``, each unit, finish."""

    def __init__(self, photos: Path, target: Path, settings: ShardSettings) -> None:
        self.sources, self.settings = open_sources([photos]), settings
        self.target: Store = open_store(target)
        self.info = DatasetInfo(settings=settings, sources=(str(photos),))
        target.mkdir()
        write_info(self.target, self.info)
        self.units = self._plan()
        self.photos = sum(unit.photos for unit in self.units)

    def _plan(self) -> list[PlannedUnit]:
        per_unit = self.settings.photos_per_unit
        return list(plan_units(self.target, self.sources, per_unit, Counter()))

    def do_units(self) -> None:
        """All units, one after another; done ones again."""
        for unit in self.units:
            shard_unit((self.target, self.sources, self.settings), unit.unit, unit.plan)

    def finish(self) -> None:
        """Add up the units' files and find copies."""
        merge_units(self.target, self.info)
