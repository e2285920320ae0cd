"""Which images each training step takes, by the seed alone. Processes that decode import it, so JAX stays out."""

import dataclasses
import functools

import numpy as np

from jaxslim.data.streams import Asked


def order(seed: int, epoch: int, count: int, batch_size: int) -> np.ndarray:
    """Indices (steps, batch_size) of an epoch's batches, by the arguments alone; a last short batch is left out."""
    shuffled = np.random.default_rng([seed, epoch]).permutation(count)
    return shuffled[: count // batch_size * batch_size].reshape(-1, batch_size).astype(np.int32)


_order = functools.lru_cache(2)(order)


@dataclasses.dataclass(frozen=True)
class Order:
    """What each step of training sees of a stream, by its number since the start of the run."""

    seed: int
    count: int
    batch_size: int
    mine: np.ndarray
    """Which places of a batch this process decodes."""
    crop: bool

    def __call__(self, number: int) -> Asked:
        """What the step `number` asks for."""
        steps = self.count // self.batch_size
        epoch, step = number // steps + 1, number % steps
        rows = _order(self.seed, epoch, self.count, self.batch_size)[step][self.mine]
        if not self.crop:
            return Asked(rows)
        places = step * self.batch_size + self.mine
        return Asked(rows, np.stack([np.full_like(places, self.seed), np.full_like(places, epoch), places], 1))


@dataclasses.dataclass(frozen=True)
class Rows:
    """Rows (steps, n) that were chosen."""

    rows: np.ndarray

    def __call__(self, number: int) -> Asked:
        """Whole pictures."""
        return Asked(self.rows[number])
