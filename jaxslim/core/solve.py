"""What the records of a walk say together: which ids share their fate, and whose fate depends on whose."""

from itertools import pairwise

import numpy as np

from jaxslim.core.classes import Classes, Grid, Pairs, Span, common_ends, components, unique_pairs
from jaxslim.core.walk import Walk


class Solution(Classes):
    """The classes of a whole walk, with those that lie below others."""

    def __init__(self, walk: Walk, *, selection: bool) -> None:
        products = list(walk.products)
        whys = [
            [walk.because(product.reason._replace(expected=expected)) for expected in (False, True)]
            for product in products
        ]
        super().__init__(walk)
        self._pending: Pairs = []
        self._grids = [
            self.grid(product, *self.of(np.array(why)).tolist()) for product, why in zip(products, whys, strict=True)
        ]
        below = [self.all_of([pair[side] for pair in walk.below]) for side in (0, 1)]
        self.selected = unique_pairs(np.stack(below))
        """int (2, n): classes behind a norm, and the classes of the streams that they were taken from."""
        self._marks = {
            "summed": self.all_of(walk.summed),
            "reduced": self.all_of(walk.reduced),
            "inexact": self.all_of(walk.inexact),
            "alone": self.all_of(walk.inexact_alone),
        }
        self._settle_grids()
        while self._tie_selections(selection):
            self._settle_grids()
        self.composite = unique_pairs(self._composite())
        """int (2, n): cells of a grid, each with the class of its index along each factor."""
        self.places = self._places()
        """int (classes,): for an index along a factor of a grid the number of the factor, the last is 1; else 0."""

    def marked(self, name: str) -> np.ndarray:
        marks = np.zeros(self.num, bool)
        marks[self._marks[name]] = True
        return marks

    @property
    def closed(self) -> np.ndarray:
        """bool (classes,): whether nothing but norms read the class, so that it goes when all behind them go."""
        read = self.fixed | self.marked("summed") | self.marked("reduced")
        read[self.composite.reshape(-1)] = True
        has_below = np.zeros(self.num, bool)
        has_below[self.selected[1]] = True
        return has_below & ~read

    @property
    def inexact(self) -> np.ndarray:
        """bool (classes,): what goes with a class goes inexactly, so the class does."""
        inexact = self.marked("inexact")
        inexact[self.selected[0]] |= self.marked("alone")[self.selected[0]]
        below, above = np.concatenate([self.selected, self.composite], axis=1)
        while (fresh := inexact[below] & ~inexact[above]).any():
            inexact[above[fresh]] = True
        return inexact

    def _places(self) -> np.ndarray:
        places = np.zeros(self.num, np.int64)
        for grid in self._grids:
            for place, factor in enumerate(grid.factors[::-1], start=1):
                places[factor] = np.where(places[factor] > 0, np.minimum(places[factor], place), place)
        places[self.fixed] = 0
        return places

    def _composite(self) -> np.ndarray:
        pairs = [np.stack([g.cells, g.along(k)]) for g in self._grids for k in range(len(g.factors))]
        together = np.concatenate([np.zeros((2, 0), np.int64), *pairs], axis=1)
        cells, factors = together
        return together[:, ~self.fixed[cells] & ~self.fixed[factors] & (cells != factors)]

    def _tie(self, one: np.ndarray, other: np.ndarray) -> None:
        differ = (one != other) & ~(self.fixed[one] & self.fixed[other])
        if differ.any():
            self._pending.append((one[differ], other[differ]))

    def _relabel(self) -> bool:
        """Join the classes that were tied; false if there were none."""
        if not self._pending:
            return False
        new = components(self.num, self._pending)
        self._pending = []
        old_fixed = self.fixed
        self.label, self.num = new[self.label], int(new.max(initial=-1)) + 1
        self.fixed = np.zeros(self.num, bool)
        self.fixed[new[old_fixed]] = True
        for grid in self._grids:
            grid.cells, grid.factors, grid.why = new[grid.cells], [new[f] for f in grid.factors], int(new[grid.why])
            grid.held = int(new[grid.held])
        self.selected = unique_pairs(new[self.selected])
        self._marks = {name: new[marks] for name, marks in self._marks.items()}
        self._marks = {name: np.flatnonzero(self.marked(name)) for name in self._marks}
        return True

    def _settle_grids(self) -> None:
        while True:
            self._owner = np.full((2, self.num), -1)
            grids, self._grids = self._grids, []
            for grid in grids:
                self._settle(grid)
            if not self._relabel():
                return

    def _settle(self, grid: Grid) -> None:
        """Tie what a grid demands. A grid with one factor left that can go is no grid any more."""
        for factor in grid.factors:  # one that goes only as a whole has to stay
            if (factor == factor[0]).all() and not self.fixed[factor[0]]:
                self._tie(factor[:1], np.array([grid.held]))
        can_go = [
            k for k, factor in enumerate(grid.factors) if not (factor == factor[0]).all() or self.fixed[factor[0]]
        ]
        can_go = [k for k in can_go if not self.fixed[grid.factors[k]].all()]
        if len(can_go) < 2:
            nothing = np.full(len(grid.cells), grid.why)
            self._tie(grid.cells, grid.along(can_go[0] if can_go else 0) if grid.factors else nothing)
            return
        self._grids.append(grid)
        along = np.stack([grid.along(k) for k in range(len(grid.factors))])
        loose = ~self.fixed[along]
        left = loose.sum(0)
        self._tie(grid.cells[left == 0], along[0, left == 0])
        last = along[loose.argmax(0), np.arange(along.shape[1])]
        self._tie(grid.cells[left == 1], last[left == 1])
        for own in along:  # a cell that stays keeps its index along every factor
            stays = self.fixed[grid.cells] & ~self.fixed[own]
            self._tie(own[stays], grid.cells[stays])
            itself = (grid.cells == own) & (left > 1)
            for other in along:
                if other is not own:
                    free = itself & ~self.fixed[other] & (other != own)
                    self._tie(other[free], np.full(np.count_nonzero(free), grid.why))
        self._share(grid, along, left)

    def _share(self, grid: Grid, along: np.ndarray, left: np.ndarray) -> None:
        """Cells that share their fate, of one grid or of two, share the fates of their indices along each factor."""
        number = len(self._grids) - 1
        cells = np.flatnonzero((left > 1) & ~self.fixed[grid.cells])
        classes = grid.cells[cells]
        new = self._owner[0, classes] < 0
        self._owner[0, classes[new]] = number
        self._owner[1, classes[new][::-1]] = cells[new][::-1]  # of equal cells, the first
        owners, owned = self._owner[:, classes]
        for owner in np.unique(owners):
            other, here = self._grids[owner], owners == owner
            if other.spans != grid.spans or len(other.cells) != len(grid.cells):
                self._refine(grid, other)
                return
            for k, own in enumerate(along):
                self._tie(own[cells[here]], other.along(k)[owned[here]])

    def _refine(self, *grids: Grid) -> None:
        """Give grids of other factors the same ones: those between the ends that all their own can be counted in."""
        common = common_ends([{end for span in grid.spans for end in span} for grid in grids])
        spans = list(pairwise(common))
        inside = [{span for start, end in grid.spans for span in spans if start <= span[0] and span[1] <= end}
                  for grid in grids]  # fmt: skip
        shared = set.intersection(*inside)
        if not shared or len({len(grid.cells) for grid in grids}) > 1:  # every row loses the same columns
            for grid in grids:
                for factor in grid.factors[:-1]:
                    self._tie(factor, np.full(len(factor), grid.why))
            return
        for grid in grids:
            parts: list[np.ndarray] = []
            part_spans: list[Span] = []
            for factor, (start, end) in zip(grid.factors, grid.spans, strict=True):
                own = sorted((s for s in shared if start <= s[0] and s[1] <= end), reverse=True)
                made = [factor if span == (start, end) else self._new(span[1] // span[0]) for span in own]
                if own != [(start, end)]:
                    self._grids.append(
                        Grid(factor, made, [(a // start, b // start) for a, b in own], grid.why, grid.held)
                    )
                parts, part_spans = parts + made, part_spans + own
            self._grids[self._grids.index(grid)] = Grid(grid.cells, parts, part_spans, grid.why, grid.held)
        nothing = np.zeros(1, np.int64)
        self._pending.append((nothing, nothing))  # another round

    def _new(self, n: int) -> np.ndarray:
        made = np.arange(self.num, self.num + n)
        self.num += n
        self.fixed = np.concatenate([self.fixed, np.zeros(n, bool)])
        self._owner = np.concatenate([self._owner, np.full((2, n), -1)], axis=1)
        return made

    def _tie_selections(self, selection: bool) -> bool:
        """Make one of a class behind a norm and its stream where they cannot differ, or need not."""
        below, above = self.selected[:, self.selected[0] != self.selected[1]]
        self.selected = np.stack([below, above])
        cells = np.zeros(self.num, bool)
        cells[self._composite()[0]] = True
        readers = np.bincount(above, minlength=self.num)
        only = (readers == 1) & ~self.marked("summed") & ~self.fixed
        one = (not selection) | self.fixed[below] | cells[below] | self.marked("alone")[below] | only[above]
        self._tie(below[one], above[one])
        return self._relabel()
