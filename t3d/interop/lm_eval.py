"""Block-diffusion models in lm-evaluation-harness (optional extra `lm-eval`).

Importing this module registers the model type `t3d`. The harness finds no models by itself, so

    python -m t3d.interop.lm_eval --model t3d --model_args pretrained=CHECKPOINT,... --tasks ...

is its own command line with the registration done; `evaluate_tasks` is the same from Python.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any, NoReturn, cast, get_args

import torch

from t3d.core.dtypes import Dtype
from t3d.core.files import check_output, first_words, make_directory, write_json
from t3d.core.progress import bar
from t3d.core.provenance import provenance
from t3d.core.rng import derive_key
from t3d.decoding.build import make_decoder
from t3d.decoding.config import DecodingConfig
from t3d.decoding.request import Completion, Request
from t3d.evaluation.metrics import decoding_metrics
from t3d.interop.harness import HarnessConfig
from t3d.models.loading import LanguageModel, from_pretrained
from t3d.tasks import Example

try:
    # First, because the harness registers its own models only while its registry is empty.
    import lm_eval.models  # noqa: F401
    from lm_eval.api.instance import Instance
    from lm_eval.api.model import LM
    from lm_eval.api.registry import register_model
    from lm_eval.utils import handle_non_serializable, simple_parse_args_string
except ModuleNotFoundError as error:
    raise ValueError(
        f"lm-evaluation-harness cannot be imported ({error}); "
        "install it with `pip install 't3d[lm-eval]'`"
    ) from error

RESULTS = "lm_eval.json"
SAMPLES = "lm_eval_samples.json"

_LENGTHS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")
"""Names that the harness has for the longest response; the first that is given counts."""
_NEUTRAL = {"num_beams": 1, "repetition_penalty": 1}
"""Generation parameters that t3d lacks, accepted only at the value that changes nothing."""
_KINDS = {
    **{"int": int, "int | None": int, "float": (int, float)},
    **{"str | None": str, "Remasking": str, "Confidence": str},
}
_SETTINGS = {field.name: _KINDS[str(field.type)] for field in fields(DecodingConfig)}


def _configured(base: DecodingConfig, changes: Mapping[str, Any], where: str) -> DecodingConfig:
    """Apply settings that were given as text to `base`; errors begin with `where`."""
    for name, value in changes.items():
        if name not in _SETTINGS:
            raise ValueError(f"{where}: {name}={value!r} is nothing that t3d's decoding can honour")
        if isinstance(value, bool) or not isinstance(value, _SETTINGS[name]):
            raise ValueError(f"{where}: {name} must not be {value!r}, it has the wrong type")
    try:
        return replace(base, **changes)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None


def _generation(
    base: DecodingConfig, gen_kwargs: Mapping[str, Any], where: str
) -> tuple[DecodingConfig, list[str]]:
    """Translate a request's generation parameters: decoding setting, and texts that end an output.

    Raises:
        ValueError: for a parameter that cannot be honoured.
    """
    given = {key: value for key, value in gen_kwargs.items() if value is not None}
    until = given.pop("until", [])
    lengths = [given.pop(name) for name in _LENGTHS if name in given]
    changes = {"max_new_tokens": lengths[0]} if lengths else {}
    for name, neutral in _NEUTRAL.items():
        if given.get(name) == neutral:
            del given[name]
    do_sample = given.pop("do_sample", None)
    if do_sample is False:
        given["temperature"] = 0.0
    decoding = _configured(base, changes | given, where)
    if do_sample and decoding.temperature == 0:
        raise ValueError(
            f"{where}: do_sample=true needs a temperature above 0; "
            "give one in gen_kwargs or model_args, or do_sample=false"
        )
    # Empty texts are dropped, since one would end every output before it begins.
    return decoding, [stop for stop in ([until] if isinstance(until, str) else until) if stop]


class HarnessModel(LM):
    """Adapter that gives the harness a model of t3d, for generative tasks.

    Args:
        lm: the loaded model.
        decoding: decoding setting, which a request's generation parameters may override.
        batch_size: largest number of sequences in a forward pass; it changes no output.
        seed: seed of candidate sampling.
        progress: show a progress bar.
    """

    def __init__(
        self,
        lm: LanguageModel,
        decoding: DecodingConfig,
        *,
        batch_size: int = 1,
        seed: int = 0,
        progress: bool = True,
    ) -> None:
        super().__init__()
        self.lm = lm
        self.decoding = decoding
        self.batch_size = batch_size
        self.seed = seed
        self.progress = progress
        # An attribute that the harness reads, to write the special tokens into its results.
        self.tokenizer = lm.tokenizer
        self._device = lm.model.device
        self._completions: dict[DecodingConfig, list[Completion]] = {}
        self._templated = False
        """Whether prompts come through the chat template, and so hold its control tokens."""

    @classmethod
    def create_from_arg_string(
        cls, arg_string: str, additional_config: dict[str, Any] | None = None
    ) -> HarnessModel:
        """Call `create_from_arg_obj` with the arguments in `key=value,key=value`."""
        return cls.create_from_arg_obj(simple_parse_args_string(arg_string), additional_config)

    @classmethod
    def create_from_arg_obj(
        cls, arg_dict: dict[str, Any], additional_config: dict[str, Any] | None = None
    ) -> HarnessModel:
        """Make the model from the harness's `--model_args`, which win over its other options.

        Args:
            arg_dict: `pretrained`, and optionally `dtype`, `device`, `batch_size`, `seed` and
                every field of `DecodingConfig`; temperature is 0 where it is not given.
            additional_config: the harness's options `batch_size`, `max_batch_size` and `device`.

        Raises:
            ValueError: for a missing, unknown or wrong argument.
        """
        given = {k: v for k, v in (additional_config or {}).items() if v is not None}
        given = {"batch_size": 1, "device": "cuda:0", "dtype": "auto", "seed": 0} | given
        given |= arg_dict
        # A bound for the harness's search of a batch size, which t3d does not use.
        given.pop("max_batch_size", None)
        device, dtype = str(given.pop("device")), str(given.pop("dtype"))
        batch_size, seed = given.pop("batch_size"), given.pop("seed")
        if "pretrained" not in given:
            raise ValueError("model_args: name a checkpoint, as in pretrained=mini_teacher")
        name = str(given.pop("pretrained"))
        if dtype not in get_args(Dtype):
            raise ValueError(
                f"model_args: dtype is one of {', '.join(get_args(Dtype))}, not {dtype!r}"
            )
        # The command line gives text, which may be "auto": a search that t3d does not do.
        if not str(batch_size).isdecimal() or int(batch_size) < 1:
            raise ValueError(f"batch_size must be a number from 1 up, got {batch_size!r}")
        if not isinstance(seed, int):
            raise ValueError(f"model_args: seed must be a whole number, got {seed!r}")
        decoding = _configured(DecodingConfig(temperature=0.0), given, "model_args")
        # cuda:0 is the harness's default, even where there is no GPU.
        if device.startswith("cuda") and not torch.cuda.is_available():
            device = "cpu"
        lm = from_pretrained(name, device=device, dtype=cast(Dtype, dtype))
        return cls(lm, decoding, batch_size=int(batch_size), seed=seed)

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """The answers' texts, in the order of the requests.

        Raises:
            ValueError: for generation parameters that cannot be honoured, and prompts that are
                empty or do not fit the model.
        """
        groups: dict[DecodingConfig, list[int]] = {}
        stops: list[list[str]] = []
        seeds: list[int] = []
        seen: Counter[tuple[str | None, int | None]] = Counter()
        for index, request in enumerate(requests):
            where = f"gen_kwargs of {request.task_name}"
            decoding, until = _generation(self.decoding, request.arguments[1], where)
            groups.setdefault(decoding, []).append(index)
            stops.append(until)
            # A task that wants several answers repeats its request: each repeat has its own seed.
            problem = (request.task_name, request.doc_id)
            seeds.append(derive_key(self.seed, "lm_eval", *map(str, problem), seen[problem]))
            seen[problem] += 1
        examples = []
        for request in requests:
            name, text = f"{request.task_name}, problem {request.doc_id}", request.arguments[0]
            content = "" if self._templated else text
            examples.append(Example(name, content, verbatim=text))
        prompts = self.lm.encode_examples(examples)
        texts: dict[int, str] = {}
        show = self.progress and not disable_tqdm
        with bar("lm-eval", len(requests), "request", show=show) as count:
            # The longest responses come first, since they may not fit the model or the memory.
            for decoding in sorted(groups, key=lambda d: -d.max_new_tokens):
                members = groups[decoding]

                def finish(
                    number: int,
                    completion: Completion,
                    members: list[int] = members,
                    longest: int = decoding.max_new_tokens,
                ) -> None:
                    index = members[number]
                    # Cut here, because the decoder fills whole blocks.
                    text = self.lm.decode(completion.token_ids[:longest])
                    ends = [text.find(stop) for stop in stops[index] if stop in text]
                    texts[index] = text[: min(ends, default=len(text))]
                    self.cache_hook.add_partial(
                        "generate_until", requests[index].arguments, texts[index]
                    )
                    count.advance()

                decoder = make_decoder(self.lm, decoding, self.batch_size)
                chosen = [Request(prompts[index], seeds[index]) for index in members]
                completions = decoder.decode(chosen, finish)
                self._completions.setdefault(decoding, []).extend(completions)
        return [texts[index] for index in range(len(requests))]

    def loglikelihood(self, requests: list[Instance]) -> NoReturn:
        """Raises ValueError: likelihoods are not supported."""
        raise ValueError(
            "a masked diffusion model has no left-to-right likelihood; t3d runs generative tasks "
            f"(output_type: generate_until) only, not {requests[0].task_name}"
        )

    loglikelihood_rolling = loglikelihood

    @property
    def tokenizer_name(self) -> str:
        """The key of the harness's cache of requests."""
        return self.lm.name.replace("/", "__")

    def chat_template(self, chat_template: bool | str = False) -> str:
        """The tokenizer's own template, for the harness's records; ValueError for another one."""
        if isinstance(chat_template, str):
            raise ValueError(
                f"t3d uses the tokenizer's own chat template, not {chat_template!r}; "
                "give --apply_chat_template without a name"
            )
        self._templated = True
        return self.lm.tokenizer.get_chat_template()

    def apply_chat_template(
        self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True
    ) -> str:
        """A conversation as text, up to where the model goes on.

        Raises:
            ValueError: for a turn that holds a control token.
        """
        self._templated = True
        for turn in chat_history:
            self.lm.check_content(f"the turn {turn['content']!r:.60}", *turn.values())
        return str(
            self.lm.tokenizer.apply_chat_template(
                chat_history,
                tokenize=False,
                add_generation_prompt=add_generation_prompt,
                continue_final_message=not add_generation_prompt,
            )
        )

    def get_model_info(self) -> dict[str, Any]:
        """Facts for the harness's results: every decoding setting, and the passes that it took."""
        decodings = [
            asdict(decoding) | {"n": len(done)} | asdict(decoding_metrics(done))
            for decoding, done in self._completions.items()
        ]
        return {
            "pretrained": self.lm.name,
            "weights_hash": self.lm.weights_hash,
            "dtype": self.lm.dtype,
            "decoding_seed": self.seed,
            "decodings": decodings,
        }


# Called as a function, because as an untyped decorator it would hide the class's type.
register_model("t3d")(HarnessModel)


def evaluate_tasks(
    lm: LanguageModel, config: HarnessConfig, output: Path, *, progress: bool = True
) -> dict[str, Any]:
    """Evaluate generative tasks of the harness; its results, also in `output / RESULTS`.

    Most tasks have do_sample: false, which is temperature 0, and many have max_gen_toks.

    Raises:
        ValueError: for unknown tasks, tasks that are not generative, generation parameters
            that cannot be honoured, or an output that cannot be written.
    """
    check_output(output, RESULTS)

    from lm_eval.evaluator import simple_evaluate
    from lm_eval.tasks import TaskManager

    # Only groups and tags may need the harness's own tasks, which are 14000 files to parse.
    manager = TaskManager(include_path=config.include_path, include_defaults=False)
    if not set(config.tasks) <= set(manager.all_subtasks):
        print("t3d: reading the harness's index of tasks, about half a minute", file=sys.stderr)
        manager = TaskManager(include_path=config.include_path)
    for name in config.tasks:
        if name not in manager.all_tasks and not Path(name).is_file():
            raise ValueError(
                f"lm-evaluation-harness has no task {name!r}; `lm_eval ls tasks` lists them, and "
                "include_path adds a folder of your own"
            )
    try:
        # Checked here, since the harness would refuse a task only after the others were decoded.
        loaded = manager.load(config.tasks)["tasks"]
    except Exception as error:
        raise ValueError(f"tasks: {first_words(error.__cause__ or error)}; correct it") from error
    for name, task in loaded.items():
        if task.OUTPUT_TYPE != "generate_until":
            raise ValueError(
                f"task {name} is of output_type {task.OUTPUT_TYPE}, which needs a left-to-right "
                "likelihood; a masked diffusion model runs generate_until tasks only"
            )
    make_directory(output)
    model = HarnessModel(
        lm, config.decoding, batch_size=config.batch_size, seed=config.seed, progress=progress
    )
    results = simple_evaluate(
        model=model,
        tasks=[*config.tasks],
        task_manager=manager,
        batch_size=config.batch_size,
        limit=config.limit,
        num_fewshot=config.num_fewshot,
        apply_chat_template=config.apply_chat_template,
        fewshot_as_multiturn=config.apply_chat_template,
        gen_kwargs=dict(config.gen_kwargs),
        log_samples=config.log_samples,
        confirm_run_unsafe_code=config.confirm_run_unsafe_code,
        fewshot_random_seed=config.seed,
    )
    assert results is not None, "one process"
    document = json.loads(json.dumps(results, default=handle_non_serializable))
    document["provenance"] = provenance(
        config=asdict(config) | {"dtype": lm.dtype},
        seed=config.seed,
        model=lm.name,
        weights_hash=lm.weights_hash,
    )
    if config.log_samples:
        write_json(output / SAMPLES, document.pop("samples"))
    write_json(output / RESULTS, document)
    return document


def main() -> None:
    """The harness's own command line."""
    from lm_eval.__main__ import cli_evaluate

    cli_evaluate()


if __name__ == "__main__":
    main()
