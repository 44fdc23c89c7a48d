"""Requests whose state is on the device: constraints as tensors, made when a request first asks for one."""

from __future__ import annotations

from typing import TYPE_CHECKING

from obverse.engine.decode.device import DeviceConstraint, DeviceSlots, DeviceTries, runs_on_device
from obverse.engine.decode.vllm_params import CatalogShelf, RequestOptions

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from obverse.kernels.mask_reference import MaskRows

__all__ = ["DeviceRequests"]


class DeviceRequests:
    """Slots of a batch, each with a request's constraint or none."""

    def __init__(self, shelf: CatalogShelf, num_slots: int, device: torch.device) -> None:
        """Copies the tries of every catalogue to ``device``."""
        self.shelf, self.device = shelf, device
        self.slots = DeviceSlots(num_slots, device)
        self._tries: dict[str, DeviceTries] = {}
        self._owners: dict[tuple[str, str], int] = {}
        self._constraints: list[DeviceConstraint] = []
        for name in shelf.catalogs:
            self._owner(shelf.plain(name))

    def takes(self, options: RequestOptions) -> bool:
        """Whether a request can be followed here; else it is the host's."""
        return options.entities is None and runs_on_device(self.shelf.constraint(options))

    def assign(self, slot: int, options: RequestOptions | None, prompt_length: int) -> int:
        """Give ``slot`` to a new request (None: to none), from the next `flush` on; the constraint's number, or -1."""
        if options is None:
            self.slots.assign(slot, owner=-1)
            return -1
        owner = self._owner(options)
        self.slots.assign(slot, owner=owner, max_triplets=options.max_triplets, prompt_length=prompt_length)
        return owner

    def flush(self) -> None:
        """Tell the device what was assigned."""
        self.slots.flush()

    def mask(self, logits: Tensor, rows: MaskRows, owner: int) -> None:
        """Advance and mask the rows of one constraint, by its number."""
        from obverse.kernels.mask_logits import mask_logits

        constraint = self._constraints[owner]
        mask_logits(logits, rows, constraint.tries, constraint.automaton, self.slots.states, owner=owner)

    def _owner(self, options: RequestOptions) -> int:
        """The number of a catalogue and form; the greatest number of triplets is a slot's own."""
        key = (options.catalog, options.form)
        if key not in self._owners:
            constraint = self.shelf.constraint(RequestOptions(*key))
            if options.catalog not in self._tries:
                self._tries[options.catalog] = DeviceTries(
                    constraint.entities, constraint.relations, constraint.vocab_size, self.device
                )
            self._constraints.append(DeviceConstraint.of(constraint, self._tries[options.catalog], self.device))
            self._owners[key] = len(self._constraints) - 1
        return self._owners[key]
