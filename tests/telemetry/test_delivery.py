"""A batch in several requests."""

from __future__ import annotations

import asyncio

import pytest

from agentrt.errors import PermanentError, ThrottledError, TransientError
from agentrt.telemetry.delivery import Delivery, Part, cut_texts, parts
from agentrt.telemetry.http import TooLarge
from agentrt.telemetry.signals import Batch, LogLine, Resource

pytestmark = pytest.mark.asyncio


def batch(text: str) -> Batch:
    """A line for each letter."""
    return Batch(
        Resource({"service.name": "s"}), logs=tuple(LogLine(0, "info", letter, "l") for letter in text)
    )


class Service:
    """Takes parts of two letters at most; `answers` are errors, given in turn before it takes anything."""

    def __init__(self, *answers: Exception | float | None, largest: int = 2) -> None:
        self.answers = list(answers)
        self.largest = largest
        self.taken: list[str] = []
        self.asked = 0
        self.delivery = Delivery("acme", self._parts, self._send, timeout=5.0)

    def _parts(self, what: Batch) -> list[Part]:
        return list(parts([line.message for line in what.logs], count=self.largest, size=1000))

    async def _send(self, part: Part) -> None:
        self.asked += 1
        error = self.answers.pop(0) if self.answers else None
        if isinstance(error, float):
            await asyncio.sleep(error)
            error = None
        if error is not None:
            raise error
        self.taken.append("".join(part.items))


def grouped(*items: str, count: int = 10, size: int = 10, each: int = 0) -> list[list[str]]:
    return [part.items for part in parts(items, count=count, size=size, each=each)]


async def test_parts_keep_to_count_and_size() -> None:
    assert grouped("a", "b", "c", count=2) == [["a", "b"], ["c"]]
    assert grouped("aaaaa", "bbbbb", "c") == [["aaaaa", "bbbbb"], ["c"]]
    assert grouped("aaaa", "bbbb", "c", each=1) == [["aaaa", "bbbb"], ["c"]]
    assert grouped("a" * 11, "b", "c" * 12) == [["a" * 11], ["b"], ["c" * 12]]
    assert grouped() == []


async def test_all_parts_are_sent_in_order() -> None:
    service = Service()
    await service.delivery.deliver(batch("abcde"))
    assert service.taken == ["ab", "cd", "e"]


@pytest.mark.parametrize("error", [TransientError("no"), ThrottledError("slow"), OSError("gone")])
async def test_a_batch_delivered_again_goes_on_where_it_failed(error: Exception) -> None:
    service, what = Service(None, error), batch("abcde")
    with pytest.raises(type(error)):
        await service.delivery.deliver(what)
    await service.delivery.deliver(what)
    assert service.taken == ["ab", "cd", "e"]
    assert service.asked == 4


@pytest.mark.virtual_time
async def test_a_batch_that_takes_too_long_goes_on_the_next_time() -> None:
    service, what = Service(3.0, 3.0), batch("abcde")
    with pytest.raises(TransientError, match="acme: a batch was not delivered within 5 s; requests left: 2"):
        await service.delivery.deliver(what)
    await service.delivery.deliver(what)
    assert service.taken == ["ab", "cd", "e"]


async def test_another_batch_begins_anew() -> None:
    service = Service(None, TransientError("no"))
    with pytest.raises(TransientError):
        await service.delivery.deliver(batch("abcd"))
    await service.delivery.deliver(batch("xy"))
    assert service.taken == ["ab", "xy"]


async def test_the_same_batch_delivered_twice_is_sent_twice() -> None:
    service, what = Service(), batch("ab")
    await service.delivery.deliver(what)
    await service.delivery.deliver(what)
    assert service.taken == ["ab", "ab"]


async def test_a_part_that_is_refused_does_not_take_the_rest_along() -> None:
    service = Service(PermanentError("bad part"))
    with pytest.raises(PermanentError, match="bad part"):
        await service.delivery.deliver(batch("abcde"))
    assert service.taken == ["cd", "e"]


async def test_what_was_refused_is_told_after_a_retry_too() -> None:
    service, what = Service(PermanentError("bad part"), TransientError("no")), batch("abcde")
    with pytest.raises(TransientError):
        await service.delivery.deliver(what)
    with pytest.raises(PermanentError, match="bad part"):
        await service.delivery.deliver(what)
    assert service.taken == ["cd", "e"]


async def test_a_fault_of_the_target_ends_it() -> None:
    service = Service(PermanentError("wrong key", fault="target"))
    with pytest.raises(PermanentError, match="wrong key"):
        await service.delivery.deliver(batch("abcde"))
    assert (service.taken, service.asked) == ([], 1)


async def test_what_is_too_large_is_halved_down_to_one_item() -> None:
    service = Service(TooLarge("413"), TooLarge("413"), None, largest=4)
    await service.delivery.deliver(batch("abcdef"))
    assert service.taken == ["a", "b", "cd", "ef"]


async def test_an_item_that_is_too_large_alone_is_lost_and_told() -> None:
    service = Service(TooLarge("413"), TooLarge("413"))
    with pytest.raises(TooLarge):
        await service.delivery.deliver(batch("abc"))
    assert service.taken == ["b", "c"]


async def test_texts_are_cut_wherever_they_are() -> None:
    assert cut_texts({"a": ["xxxx", 1, {"b": "yyyy"}], "c": None}, 2) == {
        "a": ["xx...", 1, {"b": "yy..."}], "c": None,
    }  # fmt: skip
