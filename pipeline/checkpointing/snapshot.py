"""A copy of a training state in CPU memory, taken again and again into the same buffers."""

from typing import Any

import torch

_Layout = tuple[torch.dtype, torch.Size, tuple[int, ...]]


class Snapshot:
    """Holds one copy of a state: nested dicts, lists and tuples of tensors and plain values.

    The buffers are kept from one copy to the next, so that only the first one asks for memory, and are pinned
    for tensors on a GPU: there `take` returns when the copies are queued, and `wait` when they are done. What
    is queued on the GPU after them may change the state.
    """

    def __init__(self) -> None:
        self._buffers: dict[tuple[object, ...], torch.Tensor] = {}
        self._copied: torch.cuda.Event | None = None

    def take(self, state: Any) -> Any:
        """The copy; the one before it is overwritten."""
        self._copied = None
        used: dict[tuple[object, ...], torch.Tensor] = {}
        shared: dict[tuple[int, _Layout], torch.Tensor] = {}
        # Many copies by several threads wait for the slowest of them each time: one is faster, and steadier.
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            copy = self._copy(state, (), used, shared)
        finally:
            torch.set_num_threads(threads)
        self._buffers = used
        return copy

    def wait(self) -> None:
        """Return when the copy is there."""
        if self._copied is not None:
            self._copied.synchronize()

    def _copy(
        self,
        value: Any,
        place: tuple[object, ...],
        used: dict[tuple[object, ...], torch.Tensor],
        shared: dict[tuple[int, _Layout], torch.Tensor],
    ) -> Any:
        if isinstance(value, dict):
            return {key: self._copy(item, (*place, key), used, shared) for key, item in value.items()}
        if isinstance(value, list | tuple):
            items = [self._copy(item, (*place, number), used, shared) for number, item in enumerate(value)]
            return type(value)(items)
        if not isinstance(value, torch.Tensor):
            return value
        value = value.detach()
        layout = (value.dtype, value.shape, value.stride())
        # Tensors that are one in memory stay one in the copy, and so in the file.
        if (found := shared.get((value.data_ptr(), layout))) is not None and value.numel():
            return found
        buffer = self._buffers.get(place)
        if buffer is None or (buffer.dtype, buffer.shape, buffer.stride()) != layout:
            buffer = torch.empty_like(value, device="cpu", pin_memory=value.is_cuda)
        buffer.copy_(value, non_blocking=True)
        if value.is_cuda:
            if self._copied is None:
                self._copied = torch.cuda.Event()
            self._copied.record()
        used[place] = shared[value.data_ptr(), layout] = buffer
        return buffer
