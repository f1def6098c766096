"""A uniform sample of all pixels of a stream."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from sfda.ranks import smallest_over_ranks


class UniformSample:
    """A uniform sample, without replacement, of the probability vectors of all pixels of a stream; constant memory.

    Every pixel draws a random number, and those with the smallest numbers stay: at any time all pixels so far are
    equally likely to be in the sample.

    Args:
        capacity: Number of vectors that are kept.
        seed: With the number of batches seen before it makes the seed of a batch.
    """

    def __init__(self, capacity: int, seed: Sequence[int]) -> None:
        self.capacity = capacity
        self.seed = tuple(seed)
        self._step = 0
        self.clear()

    def clear(self) -> None:
        """Forget the sample; the next one draws other numbers."""
        self.vectors = torch.empty(0)
        """(n, C), n at most the capacity."""
        self._keys = torch.empty(0, dtype=torch.float64)

    def add(self, probabilities: Tensor) -> None:
        """Offer the pixels of a batch, (B, C, H, W)."""
        pixels = probabilities.flatten(2)
        images, num_classes, area = pixels.shape
        keys, kept_before = self._draw(images * area, pixels.device), len(self._keys)
        if kept_before == 0:
            self.vectors, self._keys = pixels.new_empty(0, num_classes), keys[:0]
        keys = torch.cat([self._keys, keys])
        chosen = keys.topk(min(self.capacity, len(keys)), largest=False, sorted=False).indices
        old, new = chosen[chosen < kept_before], chosen[chosen >= kept_before]
        position = new - kept_before
        self.vectors = torch.cat([self.vectors[old], pixels[position // area, :, position % area]])
        self._keys = torch.cat([keys[old], keys[new]])

    def of_all_ranks(self, device: torch.device) -> Tensor:
        """This process's part of a uniform sample of the pixels of all processes; all call it together.

        A process that saw more pixels has the larger part: all keep the numbers up to the smallest bound of any.

        Args:
            device: Where the processes communicate, and where the result is wanted.

        Returns:
            (n, C), n at most the capacity; (0,) where no pixel was offered.
        """
        keys = self._keys.to(device)
        bound = keys.amax() if len(keys) == self.capacity else keys.new_ones(())
        return self.vectors.to(device)[keys <= smallest_over_ranks(bound)]

    def _draw(self, count: int, device: torch.device) -> Tensor:
        seed = int(np.random.SeedSequence([*self.seed, self._step]).generate_state(1)[0])
        self._step += 1
        # Of float32's 2^24 numbers only some hundreds are small enough to stay when billions are drawn.
        generator = torch.Generator(device).manual_seed(seed)
        return torch.rand(count, generator=generator, device=device, dtype=torch.float64)
