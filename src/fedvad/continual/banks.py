"""Memory banks that learn one task after another, within a budget of bytes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import numpy as np

from fedvad.continual.base import Arrays, Cost, Task
from fedvad.data.bounds import MAX_BAD
from fedvad.data.folders import ImageSet
from fedvad.detectors.base import Detector, NormalFeatures
from fedvad.detectors.memory.feddymem import MemoryDetector, PatchCore
from fedvad.detectors.memory.site import FedDyMemConfig, MemorySite
from fedvad.detectors.scoring import ScoringConfig
from fedvad.detectors.student.parameters import under
from fedvad.errors import ArtefactError, ConfigError, MemoryBankError
from fedvad.features.extractor import FeatureExtractor
from fedvad.federation.codecs import Precision, decode, encode, overhead_bytes, row_bytes
from fedvad.memory.bank import MemoryBank, concatenate
from fedvad.memory.merge import merge_banks

BankKind = Literal["patchcore", "feddymem"]
_NUMBERS = 8  # bytes of a row's weight and spread, both float32


class BankLearner:
    """A memory of all tasks, of at most `budget` bytes, scored as one.

    kind: `patchcore` keeps a k-center coreset of each task, as many rows of each; a coreset is
    kept in the order in which it was chosen, so its first rows are the best coreset of their
    number, and forgetting means dropping last rows. `feddymem` keeps weighted averages: each
    task's memory is merged into the one there is, by `merge`, once both no longer fit.
    precision: how rows are kept, as on the wire (int8 is a quarter of float32). Rows are coded
    once with `patchcore`; a merge of `feddymem` makes new rows and codes those. Source: ours, and
    the group's benchmark (arXiv 2403.15463) for one coreset per task.
    """

    def __init__(
        self,
        extractor: FeatureExtractor,
        *,
        kind: BankKind = "patchcore",
        budget: int = 2_500_000,
        precision: Precision = "int8",
        merge: Literal["kmeans", "kcenter"] = "kmeans",
        scoring: ScoringConfig | Mapping[str, Any] | None = None,
        max_bad: float = MAX_BAD,
        seed: int = 0,
    ) -> None:
        if kind not in ("patchcore", "feddymem") or precision not in ("int8", "float16", "float32"):
            raise ConfigError(
                "a bank is patchcore or feddymem, its rows int8, float16 or float32, "
                f"not {kind!r}, {precision!r}"
            )
        self.kind = kind
        self.precision: Precision = precision
        self.merge: Literal["kmeans", "kcenter"] = merge
        self.extractor = extractor
        self.seed = seed
        self.max_bad = max_bad
        dim = extractor.grid[2]
        self.rows = (budget - overhead_bytes(precision, dim)) // (
            row_bytes(precision, dim) + _NUMBERS
        )
        if self.rows < 1:
            raise ConfigError(f"{budget} bytes hold no row of {dim} values: raise the budget")
        own = scoring if isinstance(scoring, ScoringConfig) else ScoringConfig(**(scoring or {}))
        self._scoring = own
        self._banks: dict[str, MemoryBank] = {}
        self._tasks: list[str] = []
        self._peak = 0

    def learn(self, tasks: list[Task]) -> dict[str, Any]:
        """See `Learner.learn`."""
        images = ImageSet(tuple(item for task in tasks for item in task.images))
        name = "+".join(task.name for task in tasks)
        paths = [item.path for item in images if item.label == 0]
        features = NormalFeatures(self.extractor, paths, max_bad=self.max_bad, where=name)
        features.warm_up()
        seen = len(self._tasks) + len(tasks)
        if self.kind == "patchcore":
            quota = self.rows // (len(self._banks) + 1)
            if not quota:
                raise ConfigError(
                    f"the budget holds {self.rows} rows, one for each of as many tasks: raise it"
                )
            made = PatchCore(extractor=self.extractor, rows=quota, seed=self.seed)
            bank = made.fit_features(features).bank_
            assert bank is not None
            self._banks = {
                task: kept.take(np.arange(min(quota, len(kept))))
                for task, kept in self._banks.items()
            }
            self._banks[name] = self._coded(bank)
        else:
            config = FedDyMemConfig(rows=self.rows)
            new = MemorySite(features, config, seed=self.seed).update(1, None)
            both = {f"{i:04d}": bank for i, bank in enumerate([*self._banks.values(), new])}
            merged = merge_banks(both, mode=self.merge, size=self.rows, seed=self.seed + seen)
            self._banks = {"all": self._coded(merged)}
        self._tasks += [task.name for task in tasks]
        self._peak = max(self._peak, self._bytes())
        return {"images": len(features), "rows": self._rows(), "bad": list(features.bad)}

    def detector(self, task: str) -> Detector:
        """See `Learner.detector`."""
        found: MemoryDetector = PatchCore(extractor=self.extractor, scoring=self._scoring)
        return found.with_memory(concatenate(list(self._banks.values())))

    def cost(self) -> Cost:
        """See `Learner.cost`."""
        from fedvad.detectors.student.cost import descriptor_macs, memory

        network = self.extractor.network
        kept = memory(network)
        return Cost(
            parameters=kept.parameters,
            buffers=kept.buffers,
            memory=self._bytes(),
            peak=self._peak,
            learned=0,
            optimiser=0,
            macs=descriptor_macs(network, self.extractor.config.view.input),
        )

    def state(self) -> tuple[Arrays, dict[str, Any]]:
        """See `Learner.state`."""
        arrays: Arrays = {}
        for i, bank in enumerate(self._banks.values()):
            coded = encode(bank.vectors, self.precision)
            arrays |= {f"bank/{i}/{name}": array for name, array in coded.items()}
            arrays[f"bank/{i}/weights"] = bank.weights.astype(np.float32)
            arrays[f"bank/{i}/spread"] = bank.spread
        values = {"tasks": self._tasks, "banks": list(self._banks), "peak": self._peak}
        return arrays, values | {"kind": self.kind}

    def restore(self, arrays: Arrays, values: dict[str, Any]) -> None:
        """See `Learner.restore`."""
        try:
            if values["kind"] != self.kind:
                raise ArtefactError(f"a checkpoint of a {values['kind']} bank, not {self.kind}")
            for i, name in enumerate(values["banks"]):
                own = under(f"bank/{i}/", arrays)
                weights, spread = own.pop("weights"), own.pop("spread")
                self._banks[name] = MemoryBank(decode(own), weights.astype(np.float64), spread)
            self._tasks, self._peak = list(values["tasks"]), int(values["peak"])
        except (KeyError, TypeError, ValueError, MemoryBankError) as error:
            raise ArtefactError(f"damaged checkpoint of a memory bank: {error}") from error

    def _coded(self, bank: MemoryBank) -> MemoryBank:
        """The bank as it will be read back, so that a resumed run continues from the same bits."""
        vectors = decode(encode(bank.vectors, self.precision))
        weights = bank.weights.astype(np.float32).astype(np.float64)
        return MemoryBank(vectors, weights, bank.spread)

    def _rows(self) -> int:
        return sum(map(len, self._banks.values()))

    def _bytes(self) -> int:
        arrays, _ = self.state()
        return sum(array.nbytes for array in arrays.values())
