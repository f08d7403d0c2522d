"""`Sampler`: the engine's batch size stays the user's, and its memory is given back."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, ClassVar

import pytest

from seqproc.config import GenerationConfig
from seqproc.engines import Completion, Engine, HFEngine, ModelSource, Request, StoppingRule
from seqproc.errors import ConfigError, EngineError
from seqproc.policy import SamplingPolicy
from seqproc.processor.sampler import Sampler

CONFIG = GenerationConfig(max_new_tokens=4, gen_batch_size=3)


class Diary(Engine):
    """It notes what it is asked to do, and fails at the request that it is told to."""

    name: ClassVar[str] = "diary"

    def __init__(self, *, fails_at: int | None = None, sleeps: bool = True) -> None:
        self.notes: list[str] = []
        self.batch_size = 64
        self._fails_at, self._sleeps = fails_at, sleeps

    @classmethod
    def from_source(cls, source: ModelSource, **options: Any) -> Diary:
        del source
        return cls(**options)

    @property
    def max_context(self) -> int | None:
        return None

    def generate(
        self, requests: Iterable[Request], policy: SamplingPolicy, stopping: StoppingRule
    ) -> Iterator[Completion]:
        self.notes.append(f"generate in batches of {self.batch_size}")
        try:
            for request in requests:
                if request.index == self._fails_at:
                    raise EngineError("out of order")
                yield Completion(index=request.index, token_ids=(0,), text="", finish_reason="eos")
        finally:
            self.notes.append("end")

    def describe(self) -> dict[str, Any]:
        return {"name": self.name}

    def wake(self) -> None:
        self.notes.append("wake")

    def sleep(self) -> None:
        self.notes.append("sleep")
        if not self._sleeps:
            raise EngineError("cannot sleep")


@pytest.fixture
def source(tiny_llama: Any, tiny_tokenizer: Any) -> ModelSource:
    return ModelSource.from_model(tiny_llama(), tiny_tokenizer)


def requests(number: int = 3) -> list[Request]:
    return [Request(index=i, prompt_ids=(5, 6), seed=i) for i in range(number)]


def test_an_engine_wakes_works_and_sleeps(source: ModelSource) -> None:
    engine = Diary()
    list(Sampler(source, CONFIG, engine).stream(requests()))
    assert engine.notes == ["wake", "generate in batches of 64", "end", "sleep"]


def test_an_engine_that_fails_sleeps(source: ModelSource) -> None:
    for engine in (Diary(fails_at=1), Diary(fails_at=1, sleeps=False)):
        with pytest.raises(EngineError, match="out of order"):
            list(Sampler(source, CONFIG, engine).stream(requests()))
        assert engine.notes[-2:] == ["end", "sleep"]


def test_an_engine_whose_caller_stops_early_ends_and_sleeps(source: ModelSource) -> None:
    engine = Diary()
    stream = Sampler(source, CONFIG, engine).stream(requests())
    next(stream)
    assert engine.notes[-1] == "generate in batches of 64"
    stream.close()  # type: ignore[attr-defined]
    assert engine.notes[-2:] == ["end", "sleep"]


def test_a_ready_engine_keeps_its_batch_size(source: ModelSource) -> None:
    engine = HFEngine(source.live_model(), source.tokenizer, batch_size=64)
    sampler = Sampler(source, CONFIG, engine)
    sampler.sample(requests())
    assert engine.batch_size == 64
    diary = Diary()
    list(Sampler(source, CONFIG, diary).stream(requests(), 7))
    assert "generate in batches of 7" in diary.notes
    assert diary.batch_size == 64  # of that call alone


def test_an_engine_option_is_kept(source: ModelSource) -> None:
    sampler = Sampler(source, CONFIG, "hf", {"batch_size": 64})
    sampler.sample(requests())
    assert sampler.engine.batch_size == 64
    assert sampler.describe()["options"] == {"batch_size": 64}


def test_without_an_option_the_configuration_decides_at_each_call(
    source: ModelSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    sampler = Sampler(source, CONFIG, "hf")
    seen: list[int | None] = []
    plain = HFEngine.generate

    def noting(self: HFEngine, *arguments: Any) -> Any:
        seen.append(self.batch_size)
        return plain(self, *arguments)

    monkeypatch.setattr(HFEngine, "generate", noting)
    sampler.sample(requests())
    sampler.config = GenerationConfig(max_new_tokens=4, gen_batch_size=2)
    sampler.sample(requests())
    sampler.sample(requests(), gen_batch_size=1)
    assert seen == [3, 2, 1]
    assert sampler.describe()["options"] == {"batch_size": 1}  # of the last call


def test_a_batch_size_of_none_is_refused(source: ModelSource) -> None:
    with pytest.raises(ConfigError, match="gen_batch_size"):
        Sampler(source, CONFIG, "hf").sample(requests(), gen_batch_size=0)
