"""Lanes: replicas that are passes of their own, one after the other in step, each on an example's own sizes."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from evenkeel.errors import TraceError
from evenkeel.graph.kinds import Kind
from evenkeel.graph.layer_graph import Layer, LayerGraph
from evenkeel.graph.unseen_calls import hidden_calls, unchecked_laws
from evenkeel.model.batches import device_of
from evenkeel.prediction.anchors import Stored
from evenkeel.prediction.arrivals import Arrival, arrived, fits
from evenkeel.prediction.noisy_call import is_unknown_factor
from evenkeel.prediction.replica_recorder import ReplicaRecorder, is_multiple
from evenkeel.prediction.replicas import COUNT, Channels, Energies, as_trained, channels_of, energies_of


class _Abandoned(BaseException):
    """Ends the lanes that wait when another has failed; no model catches it."""


class Turns:
    """Lets threads run one at a time, in order, each from one meeting to the next.

    So the same seed gives the same random numbers, and what is patched for one is patched for all.
    """

    def __init__(self, count: int) -> None:
        self.count = count
        self.failure: BaseException | None = None
        self.running = 0  # the lane whose turn it is
        self._gates = [threading.Semaphore(int(lane == 0)) for lane in range(count)]
        self._offers: list[tuple[str, Any]] = []
        self._answer: Any = None

    def wait(self, lane: int) -> None:
        """Wait for a lane's turn."""
        self._gates[lane].acquire()
        if self.failure is not None:
            raise _Abandoned
        self.running = lane

    def meet(self, lane: int, place: str, offer: Any, act: Callable[[list[Any]], Any]) -> Any:
        """Hand in an offer, and return what is made of all lanes' offers, in order.

        Raises:
            TraceError: the lanes are at different places.
        """
        self._offers.append((place, offer))
        if lane == self.count - 1:
            (places, offers), self._offers = zip(*self._offers, strict=True), []
            if len(apart := dict.fromkeys(places)) > 1:
                first, other, *_ = apart
                raise TraceError(
                    f"in train mode its passes part, at {first} and {other}: what runs, or on how much, is left to "
                    "chance, as where edges or samples are left out; measure on data: variance_shift, reestimate_"
                )
            self._answer = act(list(offers))
        self.leave(lane)
        self.wait(lane)
        return self._answer

    def leave(self, lane: int) -> None:
        """Let the next lane run."""
        self._gates[(lane + 1) % self.count].release()

    def fail(self, error: BaseException) -> None:
        """End all lanes."""
        self.failure = self.failure or error
        for gate in self._gates:
            gate.release()


class LaneRecorder(ReplicaRecorder):
    """Records one lane: a pass of one replica, which meets the others wherever what they share is asked for.

    Args:
        lane: which one; the first third of all lanes is without noise, the others are in train mode.
        turns: of all lanes.
        options: as for `ReplicaRecorder`.
    """

    def __init__(self, model: nn.Module, lane: int, turns: Turns, **options: Any) -> None:
        super().__init__(model, samples=0, **options)
        self.lane, self.turns = lane, turns
        self.quiet = lane < turns.count // COUNT
        self.graph: LayerGraph | None = None
        self._thread = 0

    def follow(self, run: Callable[[Any], Any], inputs: Any) -> None:
        """Make the lane's pass, in a thread of its own."""
        self._thread = threading.get_ident()
        device = device_of(self.model)
        try:
            self.turns.wait(self.lane)
            with ExitStack() as stack:
                stack.enter_context(torch.no_grad())
                if device.type == "cuda":
                    stack.enter_context(torch.cuda.device(device))
                given = self._begin(inputs)
                with self:
                    outputs = run(inputs)
                self.graph = self._end(given, outputs)
            self.turns.meet(self.lane, "the end", None, lambda offers: None)
            self.turns.leave(self.lane)
        except BaseException as error:
            self.turns.fail(error)

    def _enter(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        if threading.get_ident() == self._thread:  # other lanes run the same modules, and their hooks
            super()._enter(module, args, kwargs)

    def _leave(self, module: nn.Module, args: Any, output: Any) -> None:
        if threading.get_ident() == self._thread:
            super()._leave(module, args, output)

    def _takes(self, x: Tensor, stored: Stored) -> bool:
        return fits(x, stored)

    def _noise_free(self, x: Tensor) -> Tensor | None:
        return x if self.quiet else None

    def _noise_free_count(self, rows: int) -> int:
        return rows if self.quiet else 0

    def _energies(self, x: Tensor) -> Energies | None:
        if not x.is_floating_point() or x.layout is not torch.strided or not x.numel():
            return None
        rows = x if x.dim() else x[None]
        return self._together(rows, lambda all_: energies_of(all_, len(all_) // COUNT), written=False)

    def _moments(self, x: Tensor) -> Channels:
        return self._together(x, channels_of, written=False)

    def _match_(self, x: Tensor, stored: Stored) -> Arrival:
        return self._together(x, lambda all_: arrived(all_, stored), written=True)

    def _as_trained(self, x: Tensor, stored: Stored, *, mean_matched: bool) -> tuple[Tensor, Tensor]:
        known = partial(as_trained, mean=stored.mean, variance=stored.variance, mean_matched=mean_matched)
        return self._together(x, known, written=False)

    def _together(self, x: Tensor, act: Callable[[Tensor], Any], *, written: bool) -> Any:
        """What a function makes of the replicas of all lanes, one after the other."""
        place = self.layers[-1].label if self.layers else "the inputs"
        return self.turns.meet(self.lane, f"{place} {tuple(x.shape)}", x, lambda given: _act(given, act, written))

    def _vary(self, layer: Layer, outputs: list[Tensor]) -> None:
        """Take the noise out of a parameter in a lane that is to have none; what the others have is one mask each."""
        call, self._call = self._call, None
        if call is not None and self.quiet and (layer.drops or layer.kind is Kind.NOISE):
            outputs[0].copy_(call.quiet(layer))
        self.unresolved.add(layer)

    def _remove_noise(self, layer: Layer, out: Tensor) -> bool:
        """Take a call's noise out of a lane that is to have none; return whether that is known to be right."""
        call, mask = self._call, self._mask
        if call is None or mask is None or layer.kind not in (Kind.DROPOUT, Kind.NOISE):
            return False
        if layer.site in self.always:  # other lanes draw other noise, so that it cannot be the same in all
            if not self.plan.matched:
                out.copy_(call.calmed())
            return False
        if is_unknown_factor(layer) or (layer.kind is Kind.DROPOUT and not is_multiple(layer)):
            return False
        quiet = call.quiet(layer)
        if quiet.shape != out.shape or quiet.dtype != out.dtype:
            return False
        if self.quiet:
            out.copy_(quiet)
        if layer.kind is Kind.NOISE:
            return call.has_rows(0, len(out))
        first = mask[0] if len(mask) == out.dim() and mask else 1
        return not (first == 1 and len(out) > 1)  # one mask for all samples


def _act(given: Sequence[Tensor], act: Callable[[Tensor], Any], written: bool) -> Any:
    """A function's value of tensors one after the other; what it writes to them is written back."""
    with torch._C.DisableTorchFunction():
        together = torch.cat(list(given))
        found = act(together)
        if written:
            for own, part in zip(given, together.split([len(t) for t in given]), strict=True):
                own.copy_(part)
    return found


def run_in_turn(recorders: Sequence[LaneRecorder], run: Callable[[Any], Any], inputs: Sequence[Any]) -> LayerGraph:
    """Make the passes of all lanes, and return the graph of the first.

    Raises:
        Exception: what a pass raised.
    """
    turns = recorders[0].turns

    def add_scripted(name: str, given: Any, output: Any) -> None:
        recorders[turns.running]._add_scripted(name, given, output)

    threads = [
        threading.Thread(target=recorder.follow, args=(run, own), daemon=True)
        for recorder, own in zip(recorders, inputs, strict=True)
    ]
    with hidden_calls(add_scripted), unchecked_laws():
        for thread in threads:
            thread.start()
        try:
            for thread in threads:
                thread.join()
        except BaseException as error:  # an interrupt
            turns.fail(error)
            raise
    if turns.failure is not None:
        raise turns.failure
    graph = recorders[0].graph
    assert graph is not None
    return graph
