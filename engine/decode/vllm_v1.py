"""Constraints in vLLM's V1 model runner: rows move, tokens are lists on the host.

Under async scheduling the newest token of a row is -1 while `RowRequests.update_state` runs and is filled in just
before `RowRequests.apply`; so states go on in `apply`, from the live lists.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from obverse.engine.decode.device import to_device
from obverse.engine.decode.vllm_device import DeviceRequests
from obverse.engine.decode.vllm_host import HostRequest, end_rows, mask_rows
from obverse.engine.decode.vllm_params import CatalogShelf, RequestOptions, request_options

if TYPE_CHECKING:
    import torch
    from torch import Tensor

__all__ = ["RowRequests"]


class _Row:
    """A request in a row of the batch: on the host, or in a slot of the device."""

    def __init__(self, tokens: list[int], host: HostRequest | None = None, slot: int = -1, owner: int = -1) -> None:
        self.tokens, self.host, self.slot, self.owner = tokens, host, slot, owner
        self.seen = -1  # the length that the slot's state stands for


class RowRequests:
    """What a V1 `LogitsProcessor` does."""

    def __init__(self, shelf: CatalogShelf, num_rows: int, device: torch.device, *, on_device: bool) -> None:
        """``num_rows``: the most rows of a batch; ``on_device``: whether states live there, else on the host."""
        self.shelf, self._num_rows = shelf, num_rows
        self._rows: dict[int, _Row] = {}
        self._device = DeviceRequests(shelf, num_rows, device) if on_device else None
        self._free = list(range(num_rows - 1, -1, -1))

    def is_argmax_invariant(self) -> bool:
        """False: greedy rows are constrained too."""
        return False

    def update_state(self, batch_update: Any) -> None:
        """Follow the batch: rows removed, added, moved, in this order; either of the last two may replace a row."""
        if batch_update is None:
            return
        for row in batch_update.removed:
            self._drop(row)
        for row, params, _, tokens in batch_update.added:
            self._drop(row)
            options = request_options(params)
            if options is not None:
                self._rows[row] = self._admit(options, tokens)
        for source, target, direction in batch_update.moved:
            moved = self._rows.pop(source, None)
            if direction.name == "SWAP":
                if (other := self._rows.pop(target, None)) is not None:
                    self._rows[source] = other
            else:
                self._drop(target)
            if moved is not None:
                self._rows[target] = moved

    def apply(self, logits: Tensor) -> Tensor:
        """Mask the constrained rows of ``logits`` [rows, vocabulary] in place."""
        if not self._rows:
            return logits
        rows = sorted(self._rows.items())
        host = [(row, found.host) for row, found in rows if found.host is not None]
        for row, request in host:
            request.follow(self._rows[row].tokens)
        if host:
            mask_rows(logits, *zip(*host, strict=True), eos=self.shelf.eos)
        end_rows(logits, [row for row, found in rows if found.host is None and found.slot < 0], self.shelf.eos)
        self._apply_on_device(logits, {row: found for row, found in rows if found.slot >= 0})
        return logits

    def _admit(self, options: RequestOptions, tokens: list[int]) -> _Row:
        if not self.shelf.admits(options):
            return _Row(tokens)
        if self._device is None or not self._device.takes(options):
            return _Row(tokens, HostRequest(self.shelf.matcher(options)))
        slot = self._free.pop()
        return _Row(tokens, slot=slot, owner=self._device.assign(slot, options, 0))

    def _drop(self, row: int) -> None:
        found = self._rows.pop(row, None)
        if found is not None and found.slot >= 0:
            self._free.append(found.slot)

    def _apply_on_device(self, logits: Tensor, rows: dict[int, _Row]) -> None:
        """Send every row's slot, length and newest token; whole histories only of rows that did not go on by one."""
        if not rows or self._device is None:
            return
        from obverse.kernels.mask_reference import MaskRows

        self._device.flush()
        sent = np.zeros((3, len(logits)), np.int32)
        sent[0] = -1
        for row, found in rows.items():
            newest = found.tokens[-1] if found.tokens else 0
            if newest < 0:
                raise RuntimeError("vLLM has not filled in a request's newest token")
            sent[:, row] = found.slot, len(found.tokens) - 1, newest
        history = self._history([found for found in rows.values() if len(found.tokens) - found.seen not in (0, 1)])
        slots, positions, tokens = to_device(sent, logits.device)
        given = MaskRows(slots, positions, tokens, to_device(history, logits.device))
        for owner in sorted({found.owner for found in rows.values()}):
            self._device.mask(logits, given, owner)
        for found in rows.values():
            found.seen = len(found.tokens)

    def _history(self, rows: list[_Row]) -> np.ndarray:
        """Tokens by slot, int32; those of ``rows`` alone."""
        columns = max((len(found.tokens) for found in rows), default=1)
        history = np.zeros((self._num_rows if rows else 1, max(columns, 1)), np.int32)
        for found in rows:
            history[found.slot, : len(found.tokens)] = found.tokens
        return history
