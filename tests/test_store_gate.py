"""When a worker takes jobs again whose store refused: after a file got through, asked for ever less often."""

from __future__ import annotations

from concurrent.futures import Future

from workers.store_gate import StoreGate


class FakeStore:
    """Answers a trial when it is told to."""

    def __init__(self) -> None:
        self.trials: list[Future[None]] = []

    def try_it(self) -> Future[None]:
        self.trials.append(Future())
        return self.trials[-1]


def test_a_gate_opens_when_a_file_got_through_and_asks_ever_less_often() -> None:
    store, now = FakeStore(), [0.0]
    gate = StoreGate(store.try_it, lambda: now[0])
    gate.keep_up()
    assert (gate.is_open, store.trials) == (True, [])
    gate.shut()
    asked_at = []
    while len(asked_at) < 9:
        before = len(store.trials)
        gate.keep_up()
        if len(store.trials) > before:
            asked_at.append(now[0])
            store.trials[-1].set_exception(OSError("full"))
            gate.keep_up()
        now[0] += 0.1
    waits = [later - earlier for earlier, later in zip(asked_at, asked_at[1:], strict=False)]
    assert waits == sorted(waits)
    assert max(waits) < 10.2
    assert not gate.is_open
    now[0] += 10.0
    gate.keep_up()
    assert not gate.is_open  # it is still being tried
    store.trials[-1].set_result(None)
    gate.keep_up()
    assert gate.is_open
