"""Training batches of two augmented views of each image, in the order and with the replacements of every other run."""

import numpy as np
import torch

from cjepa.data.augmentation import VIEW_DRAWS, random_view
from cjepa.data.order import sample_at
from cjepa.data.stream import TrainingStream
from cjepa.randomness import Stream, uniform_rows
from cjepa.types import Batch, Unreadable

VIEWS = 2


class ViewsStream(TrainingStream):
    """The batch of every step, or a rank's part of it, with two views of each image as `images` and `second`."""

    def __getitem__(self, step: int) -> Batch:
        positions = step * self.batch_size + self.first_slot + np.arange(self.slots, dtype=np.int64)
        samples = sample_at(self.seed, positions, len(self.source))
        first, count = VIEWS * self.first_slot, VIEWS * self.slots
        draws = uniform_rows(self.seed, Stream.VIEWS, step, first, count, VIEW_DRAWS).tolist()
        views = np.empty((VIEWS, self.slots, 3, *self.config.size), dtype=np.uint8)
        unreadable: list[Unreadable] = []
        for slot in range(self.slots):
            image, samples[slot] = self._load(int(positions[slot]), int(samples[slot]), unreadable)
            for view in range(VIEWS):
                views[view, slot] = random_view(
                    image, draws[VIEWS * slot + view], self.config.size, self.config.crop_ratio, self.config.views
                )
        images, second = torch.from_numpy(views).unbind()
        masks = self.sampler(step, self.first_slot, self.slots)
        return Batch(images, masks, torch.from_numpy(samples), tuple(unreadable), second)
