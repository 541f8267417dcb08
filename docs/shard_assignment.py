"""
Who reads what at 10^9 images and 4096 processes: the library's own rule, checked without visiting a single image.

    python docs/shard_assignment.py
    python docs/shard_assignment.py --images 50000000 --units 50000 --ranks 256 --streams_per_rank 8

Units (shards) have unequal sizes. Logical stream v of V takes the places v, v + V, v + 2V, ... of the endless list of
epochs, each a permutation of the units (`hf_geossl.data.blocks.unit_order`); process r of R reads the streams with
v % R == r, and fills batch n from its stream n % (V / R). Memory and time grow with units x epochs, not with images.
"""

import argparse
import json
import time
from dataclasses import dataclass

import numpy as np

from hf_geossl.data.batches import StreamBatches
from hf_geossl.data.blocks import unit_order
from hf_geossl.data.streams import ImageStream


@dataclass
class Assignment:
    """
    Units and streams of a run.

    Args:
        sizes (`np.ndarray` of shape `(units,)`): Images in each unit, at least 1.
        ranks (`int`): Processes.
        streams_per_rank (`int`): Logical streams of each, a multiple of its workers.
        epochs (`int`): Passes to look at.
        seed (`int`): Of the order.
    """

    sizes: np.ndarray
    ranks: int
    streams_per_rank: int
    epochs: int
    seed: int = 0

    def __post_init__(self) -> None:
        self.units, self.images = len(self.sizes), int(self.sizes.sum())
        self.streams = self.ranks * self.streams_per_rank
        # more epochs, for the streams that are ahead
        order = [unit_order(self.seed, epoch, self.units) for epoch in range(2 * self.epochs + 2)]
        self.order = np.concatenate(order).astype(np.int32)
        rows = len(self.order) // self.streams
        self.places = np.arange(rows * self.streams).reshape(rows, self.streams)  # column v is stream v
        taken = self.sizes[self.order[: self.places.size]].reshape(rows, self.streams)
        self.taken, self.before = taken, np.cumsum(taken, axis=0) - taken

    def check_complete(self) -> None:
        """Raises unless every epoch holds every unit once, and every place lies in one stream of one process."""
        for epoch in range(self.epochs):
            visits = np.bincount(self.order[epoch * self.units : (epoch + 1) * self.units], minlength=self.units)
            assert (visits == 1).all(), f"epoch {epoch} does not hold every unit once"
        owners = [np.arange(rank, self.streams, self.ranks) for rank in range(self.ranks)]  # as StreamBatches has it
        assert (np.bincount(np.concatenate(owners), minlength=self.streams) == 1).all(), "a stream without one owner"
        assert {len(streams) for streams in owners} == {self.streams_per_rank}, (
            "processes with other numbers of streams"
        )
        assert (np.diff(self.places, axis=0) == self.streams).all(), "a stream that skips a place"
        assert np.array_equal(np.sort(self.places.ravel()), np.arange(self.places.size)), "a place in two streams"

    def delivered(self, passes: float) -> np.ndarray:
        """Images that each stream has given when all together have given `passes` times the data: equal ones."""
        return np.full(self.streams, int(passes * self.images) // self.streams)

    def seen(self, passes: float) -> np.ndarray:
        """Share of the images that each epoch has been given, `(2 * epochs + 2,)`, after so many passes' worth of images."""
        part = np.clip(self.delivered(passes) - self.before, 0, self.taken)
        epoch = self.places // self.units
        return np.bincount(epoch.ravel(), part.ravel(), minlength=2 * self.epochs + 2) / self.images

    def positions(self, passes: float) -> np.ndarray:
        """Where each stream stands, in epochs: its units done, and its share of the present one."""
        given = self.delivered(passes)
        row = (self.before + self.taken <= given).sum(axis=0)
        assert (row < len(self.places)).all(), "a stream has run out of the list; look at fewer passes"
        stream = np.arange(self.streams)
        share = (given - self.before[row, stream]) / self.taken[row, stream]
        return (row + share) * self.streams / self.units


def state_bytes(streams: int) -> float:
    """Bytes of position that a checkpoint keeps for each stream, from a state of the library itself."""
    stream = ImageStream.from_dataset([{"image": np.zeros((2, 2, 3), np.uint8)}] * 64)
    few, more = (len(json.dumps(StreamBatches(stream, None, 1, num_streams=count).state_dict())) for count in (1, 33))
    return streams * (more - few) / 32


def main() -> None:
    """Prints what the assignment of a run looks like."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=10**9)
    parser.add_argument("--units", type=int, nargs="+", default=[50_000, 200_000, 1_000_000])
    parser.add_argument("--ranks", type=int, default=4096)
    parser.add_argument("--streams_per_rank", type=int, default=8)
    parser.add_argument("--spread", type=float, default=0.3, help="Deviation of the logarithm of a unit's size.")
    parser.add_argument("--epochs", type=int, default=3)
    options = parser.parse_args()
    streams = options.ranks * options.streams_per_rank
    print(
        f"{options.images:,} images, {options.ranks} processes, {streams} streams; sizes of units vary by {options.spread:.0%}"
    )
    for units in options.units:
        began = time.perf_counter()
        drawn = np.random.default_rng(0).lognormal(0.0, options.spread, units)
        sizes = np.maximum(1, np.round(drawn * options.images / drawn.sum())).astype(np.int64)
        run = Assignment(sizes, options.ranks, options.streams_per_rank, options.epochs)
        run.check_complete()
        print(
            f"\n{units:,} units of {sizes.mean():,.0f} images ({sizes.min():,} to {sizes.max():,}): complete and disjoint"
        )
        print(f"  units of a stream in an epoch: {units // streams} to {-(-units // streams)}")
        print("  after   given   of this pass   of later ones   streams stand at")
        for passes in [0.5, *range(1, options.epochs + 1)]:
            seen, at = run.seen(passes), run.positions(passes)
            last = int(np.ceil(passes)) - 1
            print(
                f"  {passes:>4} passes {seen.sum() / passes:>6.2%} {seen[last] if passes >= 1 else seen[0]:>12.2%}"
                f" {seen[last + 1 :].sum():>14.2%}      {at.min():.3f} to {at.max():.3f} epochs"
            )
        print(
            f"  position in a checkpoint: {state_bytes(streams) / 1e6:.1f} MB for all; took {time.perf_counter() - began:.1f} s"
        )


if __name__ == "__main__":
    main()
