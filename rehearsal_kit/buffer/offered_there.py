"""What a step offers to a buffer whose rows lie on the device: it stays there."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from rehearsal_kit.base.transfers import BackgroundStream, fetched, sent
from rehearsal_kit.buffer.fields import Rows
from rehearsal_kit.buffer.row_layout import Packed, RowLayout, Samples, Words


@dataclass(frozen=True)
class PackedThere:
    """Samples that were packed on the device, for work in the order of a background stream."""

    layout: RowLayout
    rows: torch.Tensor
    """int64 (sample, word), on the device."""
    numbers: Words
    """`RowLayout.number_table` of them, in host memory."""
    beside: BackgroundStream

    def __len__(self) -> int:
        """How many there are."""
        return len(self.rows)

    @property
    def identities(self) -> NDArray[np.int64] | None:
        """(sample,): `sample_id` of each, where there is one."""
        place = self.layout.identity_number
        return None if place is None else self.numbers[:, place]

    def some(self, chosen: Rows) -> PackedThere:
        """The chosen ones among them."""
        return PackedThere(self.layout, self.rows_there(chosen), self.numbers[chosen], self.beside)

    def rows_there(self, chosen: Rows | None) -> torch.Tensor:
        """Those of the chosen ones, None: of all of them; int64 (sample, word), on the device."""
        if chosen is None:
            return self.rows
        with self.beside.entered():
            return self.rows.index_select(0, sent(torch.from_numpy(chosen), self.beside.device))

    def in_host(self) -> Packed:
        """The same in host memory; waits for the device."""
        with self.beside.entered():
            arrived = fetched(self.rows)
        return Packed(self.layout, arrived().numpy())


class OfferedThere:
    """Some samples of a mini-batch, to be stored on the device; never asked by two threads at once.

    samples: lent, each where it lies, made by what the current stream of the thread that offers them was
    given; `pack` makes it free of them. chosen: which of them are offered.
    """

    def __init__(
        self, layout: RowLayout, samples: Samples, *, chosen: Rows, beside: BackgroundStream
    ) -> None:
        self._layout = layout
        self._samples = {name: tensor.detach() for name, tensor in samples.items()}
        self._chosen = chosen
        self._beside = beside
        self._made = beside.reached()
        self._rows: torch.Tensor | None = None
        self._accepted: PackedThere | None = None

    def pack(self) -> torch.Tensor:
        """Copy them on the device in the order of the current stream: int64 (sample, word)."""
        if self._rows is None:
            self._rows = packed_there(
                self._layout, self._samples, chosen=self._chosen, device=self._beside.device
            )
            self._samples, self._made = {}, self._beside.reached()
        return self._rows

    def accepted(self) -> PackedThere:
        """Them, to be copied into the rows of a store; waits for the step that offered them.

        SettingsError if a value is not finite, as `RowLayout.accept`.
        """
        if self._accepted is None:
            layout, made = self._layout, self._made
            with self._beside.entered():
                self._beside.after(made, self._samples.values() if self._rows is None else [self._rows])
                rows = self.pack()
                sound = layout.sound_there(rows).long()[:, None]
                arrived = fetched(torch.cat([layout.number_table_there(rows), sound], dim=1))
            table = arrived().numpy()
            accepted = PackedThere(layout, rows, table[:, :-1], self._beside)
            if not table[:, -1].all():
                layout.checked(accepted.in_host().rows, chosen=self._chosen)
            self._accepted = accepted
        return self._accepted

    def __call__(self) -> Words:
        """(sample, word): a copy of them in host memory; SettingsError as above."""
        return self.accepted().in_host().rows


def packed_there(layout: RowLayout, samples: Samples, *, chosen: Rows, device: torch.device) -> torch.Tensor:
    """int64 (sample, word): rows of the chosen ones on the device, wherever each of their fields lies."""
    there = {name: sent(tensor.detach(), device) for name, tensor in samples.items()}
    return layout.pack_there(there).index_select(0, sent(torch.from_numpy(chosen), device))
