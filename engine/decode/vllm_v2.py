"""Constraints in vLLM's V2 model runner: requests keep a slot, tokens are on the device.

There is no call for a request that ends: slots are handed out again, and `SlotRequests.add_request` begins anew. A
request that was preempted comes back as a new one whose tokens hold its output; its state is replayed from them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from obverse.engine.decode.device import to_device
from obverse.engine.decode.vllm_device import DeviceRequests
from obverse.engine.decode.vllm_host import HostRequest, end_rows, mask_rows
from obverse.engine.decode.vllm_params import CatalogShelf, request_options

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["SlotRequests"]

_FREE = -1
_ON_HOST = -2
_REFUSED = -3


class SlotRequests:
    """What a V2 `LogitsProcessor` does."""

    def __init__(self, shelf: CatalogShelf, req_states: Any, *, drafts: bool) -> None:
        """``req_states``: vLLM's `LogitsProcRequestState`; ``drafts``: whether the engine decodes speculatively."""
        self.shelf, self._states, self._drafts = shelf, req_states, drafts
        self._device = DeviceRequests(shelf, req_states.max_num_reqs, req_states.device)
        self._owners = np.full(req_states.max_num_reqs, _FREE)
        """By slot: the constraint's number, or one of the above."""
        self._hosts: dict[int, HostRequest] = {}

    def add_request(self, req_idx: int, sampling_params: Any) -> bool:
        """Begin a request in a slot, whatever the slot held; whether it is constrained."""
        options = request_options(sampling_params)
        self._hosts.pop(req_idx, None)
        owner = _FREE
        if options is not None:
            if not self.shelf.admits(options):
                owner = _REFUSED
            elif not self._device.takes(options):
                owner = _ON_HOST
                self._hosts[req_idx] = HostRequest(self.shelf.matcher(options))
        on_device = options if owner == _FREE else None
        found = self._device.assign(req_idx, on_device, int(self._states.prompt_len.np[req_idx]))
        self._owners[req_idx] = owner if on_device is None else found
        return options is not None

    def apply_staged_writes(self) -> None:
        """Send what `add_request` noted."""
        self._device.flush()

    def apply(self, logits: Tensor, ctx: Any) -> Tensor:
        """Mask the constrained rows of ``logits`` [rows, vocabulary] in place.

        Nothing is copied to the host but for requests that only the host can follow.
        """
        from obverse.kernels.mask_reference import MaskRows

        owners = set(self._owners[ctx.idx_mapping_np].tolist())
        rows = MaskRows(
            ctx.expanded_idx_mapping,
            ctx.pos,
            ctx.input_ids,
            self._states.all_token_ids.gpu,
            ctx.expanded_local_pos if self._drafts else None,
        )
        for owner in sorted(owner for owner in owners if owner >= 0):
            self._device.mask(logits, rows, owner)
        if owners & {_ON_HOST, _REFUSED}:
            self._apply_on_host(logits, ctx)
        return logits

    def _apply_on_host(self, logits: Tensor, ctx: Any) -> None:
        """Fetch the newest tokens of the host's requests, follow them, and write their rows."""
        import torch

        fields = (ctx.expanded_idx_mapping, ctx.expanded_local_pos, ctx.pos, ctx.input_ids)
        slots, drafts, positions, inputs = torch.stack([field.long() for field in fields]).cpu().numpy()
        kind = self._owners[slots]
        end_rows(logits, np.flatnonzero(kind == _REFUSED).tolist(), self.shelf.eos)
        heads = np.flatnonzero((kind == _ON_HOST) & (drafts == 0))
        self._follow(slots[heads], positions[heads])
        masked: list[tuple[int, HostRequest]] = []
        for row in np.flatnonzero(kind == _ON_HOST).tolist():
            request = self._hosts[int(slots[row])]
            drafted = inputs[row - drafts[row] + 1 : row + 1].tolist()
            masked.append((row, request.after(drafted) if drafted else request))
        if masked:
            rows, requests = zip(*masked, strict=True)
            mask_rows(logits, rows, requests, eos=self.shelf.eos)

    def _follow(self, slots: np.ndarray, positions: np.ndarray) -> None:
        """Bring each slot's matcher to the tokens up to ``positions``, in one copy from the device."""
        prompts = self._states.prompt_len.np[slots]
        ends = np.maximum(positions + 1, prompts)
        seen = np.array([self._hosts[int(slot)].seen for slot in slots])
        firsts = prompts + np.where(seen <= ends - prompts, seen, 0)
        places = [np.arange(first, end) for first, end in zip(firsts, ends, strict=True)]
        device = self._states.all_token_ids.gpu.device
        where = np.stack([np.repeat(slots, [len(part) for part in places]), np.concatenate([*places, []])])
        line, column = to_device(where.astype(np.int64), device)
        tokens = self._states.all_token_ids.gpu[line, column].tolist()
        for slot, prompt, first, part in zip(slots, prompts, firsts, places, strict=True):
            taken, tokens = tokens[: len(part)], tokens[len(part) :]
            self._hosts[int(slot)].follow(taken, int(first - prompt))
