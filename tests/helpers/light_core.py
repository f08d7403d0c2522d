"""seqproc without its extras, in a process of its own.

`python -m helpers.light_core EXTRAS [COMMAND …]`, in tests/. EXTRAS are names with commas between
them; their packages cannot be found in this process. With a command, `seqproc COMMAND …` runs.
Without one, prints a JSON object of what works and of what each refusal says.
"""

from __future__ import annotations

import json
import pkgutil
import sys
import tempfile
import tomllib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from importlib import import_module, metadata
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from typing import Any

PYPROJECT = Path(__file__).parents[2] / "pyproject.toml"
PROMPTS = ("2 + 2 is", "The answer")


def modules_of(extra: str) -> list[str]:
    """The names that an extra's packages are imported by."""
    wanted = tomllib.loads(PYPROJECT.read_text())["project"]["optional-dependencies"][extra]
    return [requirement.split(">=")[0].replace("-", "_") for requirement in wanted]


class Without:
    """`PathFinder`, but for some top-level modules, which it finds nowhere."""

    def __init__(self, hidden: list[str]) -> None:
        self._hidden = frozenset(hidden)

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        hidden = name.partition(".")[0] in self._hidden
        return None if hidden else PathFinder.find_spec(name, path, target)

    def find_distributions(self, *context: Any) -> Iterable[metadata.Distribution]:
        return PathFinder.find_distributions(*context)


def hide(extras: list[str]) -> list[str]:
    """Hide the packages of extras from imports; their modules."""
    hidden = [module for extra in extras for module in modules_of(extra)]
    sys.meta_path[sys.meta_path.index(PathFinder)] = Without(hidden)
    return hidden


def import_everything() -> list[str]:
    """Import all modules but those that typer or vLLM import; their names."""
    import seqproc

    names = [info.name for info in pkgutil.walk_packages(seqproc.__path__, "seqproc.")]
    inner = ("seqproc.cli.", "seqproc.engines.vllm.coupled")
    kept = [name for name in names if not name.startswith(inner)]
    for name in kept:
        import_module(name)
    return kept


def make_processor(**options: Any) -> Any:
    """A processor of a tiny random model."""
    from transformers import LlamaConfig

    from helpers.tiny import byte_tokenizer, random_model
    from seqproc import SequenceProcessor

    tokenizer = byte_tokenizer()
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2}
    model = random_model(LlamaConfig, tokenizer, 0, sizes | heads)
    config = {"max_new_tokens": 5, "top_p": 0.9}
    return SequenceProcessor(model, tokenizer, config={"generation": config}, **options)


def logprobs() -> list[list[float]]:
    """log p of sampled tokens, by response."""
    _, results, _ = make_processor().generate_with_logprobs(PROMPTS, G=1, seed=0, compute_rb=True)
    return [row[0].tolist() for row in results.logprobs]


def own_rewards() -> list[list[float]]:
    """Rewards by a function of the user's, which needs no package."""
    processor = make_processor(reward=lambda texts, entry: [len(entry.answer)] * len(texts))
    _, results, _ = processor.generate_with_logprobs(dataset_name="arithmetic", num_prompts=2)
    return results.rewards


def refusals(folder: Path) -> dict[str, Callable[[], object]]:
    """What cannot be done without an extra, under its name and a word."""
    from helpers.engine_stubs import NEVER_STARTS
    from seqproc import load_model, load_prompts, runs, tag_pref
    from seqproc.models.embedded import convert_gguf
    from seqproc.models.weights import read_weights
    from seqproc.parity import check_engine
    from seqproc.parity.run import EngineChoice, run_parity
    from seqproc.report import write_page
    from seqproc.runs.store.folder import open_folder

    processor = make_processor(engine=NEVER_STARTS)
    spec = runs.RunSpec(dataset="arithmetic", draws=2, seed=0)
    engines = [EngineChoice(name=NEVER_STARTS)]
    (folder / "adapter_config.json").write_text("{}")
    anything: Any = None  # refused before it is looked at
    return {
        "runs: read": lambda: runs.open_run(folder / "run"),
        "runs: write": lambda: runs.sample_run(processor, spec, folder / "run"),
        "runs: score": lambda: runs.score_run(processor, folder / "given.jsonl", folder / "run"),
        "runs: schema": lambda: runs.ROWS_SCHEMA,
        "rewards: compare": lambda: tag_pref("<answer>x + 1</answer>", "1 + x"),
        "rewards: sample": lambda: processor.generate_with_logprobs(
            dataset_name="arithmetic", num_prompts=2
        ),
        "hub: read": lambda: load_prompts("hf:owner/name"),
        "peft: load": lambda: load_model("owner/name", adapter="owner/adapter"),
        "peft: weights": lambda: read_weights(processor.model, folder),
        "embedded: convert": lambda: convert_gguf(folder / "m.gguf", folder / "m"),
        "parity: check": lambda: check_engine(*[anything] * 7),
        "parity: run": lambda: run_parity(
            processor, engines, PROMPTS, [processor.policy], num_draws=4
        ),
        "remote: open": lambda: open_folder("s3://bucket/run"),
        "report: page": lambda: write_page(anything, folder / "page.html"),
    }


@contextmanager
def _folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as name:
        yield Path(name)


def message(refused: Callable[[], object]) -> str:
    """What a call says when it refuses; it must."""
    from seqproc.errors import MissingDependencyError

    try:
        refused()
    except MissingDependencyError as error:
        return str(error)
    return "not refused"


def report(hidden: list[str]) -> dict[str, Any]:
    """What works, what is refused and how, and what was imported although it is hidden."""
    found: dict[str, Any] = {"modules": import_everything(), "logprobs": logprobs()}
    found["own_rewards"] = own_rewards()
    with _folder() as folder:
        found["refusals"] = {name: message(call) for name, call in refusals(folder).items()}
        found["left_behind"] = (folder / "run").exists()
    found["imported"] = sorted(set(hidden) & set(sys.modules))
    return found


def main() -> None:
    """Hide, then run a command or print the report."""
    hidden = hide(sys.argv[1].split(","))
    if sys.argv[2:]:
        from seqproc.cli import main as seqproc

        sys.argv = ["seqproc", *sys.argv[2:]]
        seqproc()
    else:
        print(json.dumps(report(hidden)))


if __name__ == "__main__":
    main()
