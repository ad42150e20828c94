"""A chat in the terminal that shows how each answer is denoised."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, field, replace

from rich.console import Console
from rich.live import Live
from rich.text import Text

from t3d.core.files import first_words
from t3d.core.rng import derive_key
from t3d.core.suggest import did_you_mean
from t3d.decoding.build import make_decoder
from t3d.decoding.config import DYNAMIC, STATIC, DecodingConfig
from t3d.decoding.engine import BlockDecoder
from t3d.decoding.request import Event, Request
from t3d.report.trajectories import render_commits
from t3d.serve.plan import room
from t3d.serve.served import Served
from t3d.serve.transcript import Transcript
from t3d.tasks import Example

HELP = """\
/steps N        N denoising steps a block
/threshold X    as many tokens a step as have a confidence above X
/model NAME     go on with another of the models given; without NAME, list them
/new            forget what was said before
/help           this list
/quit           end the chat, as Ctrl-D does"""


@dataclass
class Talker:
    """A model that is talked to.

    Args:
        served: the checkpoint and its setting, which commands change.
        keeps_history: whether it is given what was said before; a model that was trained on single
            questions is not.
    """

    served: Served
    keeps_history: bool
    decoder: BlockDecoder = field(init=False)

    def __post_init__(self) -> None:
        self.decoder = make_decoder(self.served.lm, self.served.decoding, 1)

    def change(self, **changes: object) -> None:
        """Change the decoding setting.

        Raises:
            ValueError: for a value that it does not take.
        """
        decoding = replace(self.served.decoding, **changes)  # type: ignore[arg-type]
        self.served = replace(self.served, decoding=decoding)


class Chat:
    """A conversation.

    Args:
        talkers: the models by name; the first one answers until another is chosen.
        seed: seed of candidate sampling; the i-th answer has its i-th key.
    """

    def __init__(self, talkers: Mapping[str, Talker], seed: int) -> None:
        self._talkers, self._seed = talkers, seed
        self._name = next(iter(talkers))
        self._turns: list[dict[str, str]] = []
        self._num_answers = 0
        self._console = Console()
        self._is_shown = sys.stdin.isatty() and self._console.is_terminal

    @property
    def _talker(self) -> Talker:
        return self._talkers[self._name]

    def run(self) -> None:
        """Read lines until there are no more, and answer them.

        Raises:
            ValueError: if there is no line, and no terminal either.
        """
        if self._is_shown:
            self._note(f"{self._name}; /help lists the commands, /quit ends")
        line = None
        for line in self._lines():
            try:
                if line.startswith("/"):
                    if not self._obey(*line.split(maxsplit=1)):
                        return
                else:
                    self._answer(line)
            except ValueError as error:
                self._note(f"t3d: {error}")
            except KeyboardInterrupt:
                if not self._is_shown:
                    raise
                self._note("stopped")
        if line is None and not self._is_shown:
            raise ValueError("the input is empty; there is no question to answer")

    def _lines(self) -> Iterator[str]:
        while True:
            try:
                line = input("> ") if self._is_shown else input()
            except EOFError:
                return
            if line.strip():
                yield line.strip()

    def _note(self, text: str) -> None:
        """What is no answer; it goes to stderr, so that a pipe has answers alone."""
        Console(stderr=True).print(Text(text, style="dim"), soft_wrap=True)

    def _obey(self, command: str, value: str = "") -> bool:
        """Carry out a command; false for the one that ends the chat."""
        commands: dict[str, Callable[[], None]] = {
            "/steps": lambda: self._set_steps(value),
            "/threshold": lambda: self._set_threshold(value),
            "/model": lambda: self._choose(value),
            "/new": self._turns.clear,
            "/help": lambda: self._note(HELP),
        }
        if command == "/quit":
            return False
        if command not in commands:
            meant = did_you_mean(command, [*commands, "/quit"]) or "; /help lists the commands"
            raise ValueError(f"no command {command}{meant}")
        commands[command]()
        return True

    def _set_steps(self, value: str) -> None:
        if not value.isdecimal():
            raise ValueError(f"/steps takes a whole number, such as /steps 2, got {value!r}")
        self._talker.change(remasking=STATIC, denoising_steps=int(value))

    def _set_threshold(self, value: str) -> None:
        try:
            threshold = float(value)
        except ValueError:
            message = f"/threshold takes a number, such as /threshold 0.9, got {value!r}"
            raise ValueError(message) from None
        steps = self._talker.served.decoding.window_size
        self._talker.change(
            remasking=DYNAMIC, denoising_steps=steps, confidence_threshold=threshold
        )

    def _choose(self, name: str) -> None:
        if not name:
            return self._note(", ".join(self._talkers))
        if name not in self._talkers:
            meant = did_you_mean(name, self._talkers) or f"; there are {', '.join(self._talkers)}"
            raise ValueError(f"no model {name!r}{meant}")
        self._name = name

    def _prompt(self, question: str) -> list[int]:
        """The conversation as token ids, without its beginning where that does not fit."""
        talker = self._talker
        served, lm = talker.served, talker.served.lm
        lm.check_content("this text", question)
        turns = [*self._turns, {"role": "user", "content": question}]
        if not talker.keeps_history:
            turns = turns[-1:]
        while True:
            try:
                text = lm.template(turns)
            # A template is a program of the checkpoint, which may raise anything.
            except Exception as error:
                raise ValueError(
                    f"the chat template of {self._name} refuses this conversation "
                    f"({first_words(error)}); /new begins another one"
                ) from error
            [prompt] = lm.encode_examples([Example("this text", "", verbatim=text)])
            if len(turns) < 3 or room(served, served.decoding, len(prompt)) > 0:
                return prompt
            self._note("the beginning of the conversation is left out, as it does not fit")
            turns = turns[2:]

    def _answer(self, question: str) -> None:
        talker = self._talker
        served, decoding = talker.served, talker.served.decoding
        prompt = self._prompt(question)
        limit = min(decoding.max_new_tokens, room(served, decoding, len(prompt)))
        if limit < 1:
            raise ValueError(
                f"the text has {len(prompt)} tokens, which leave no room in the "
                f"{served.positions} positions of {self._name}; shorten it"
            )
        key = derive_key(self._seed, self._num_answers)
        request = Request(prompt, key, limit, decoding)
        transcript = Transcript(served.lm.text, served.lm.stop_token_ids, [], limit)
        started, text = time.perf_counter(), ""
        with closing(_events(talker.decoder, request)) as events:
            if self._is_shown:
                view = _View(served, decoding, len(prompt))
                with Live(console=self._console, transient=True) as live:
                    for event in events:
                        text += transcript.take(event)
                        live.update(view.take(event), refresh=True)
                self._console.print(view.whole(len(transcript.tokens)))
            else:
                text = "".join(transcript.take(event) for event in events)
                print(text, flush=True)
        seconds = time.perf_counter() - started
        self._num_answers += 1
        self._turns += [
            {"role": "user", "content": question},
            {"role": "assistant", "content": text},
        ]
        num, passes = len(transcript.tokens), transcript.passes.total
        self._note(
            f"{num} tokens in {passes} passes, {num / passes:.2f} a pass, {num / seconds:.0f} a "
            "second"
        )


def _events(decoder: BlockDecoder, request: Request) -> Generator[Event, None, None]:
    """The events of one request."""
    decoder.submit(request)
    try:
        while decoder.num_unfinished:
            yield from decoder.step()
    finally:
        # An interrupt may come amid a pass.
        decoder.reset()


class _View:
    """The tokens of one answer as they are committed, with the masks of the block that runs."""

    def __init__(self, served: Served, decoding: DecodingConfig, prompt_length: int) -> None:
        self._text, self._size = served.lm.text, decoding.block_size
        self._offset = prompt_length % decoding.block_size
        windows = decoding.block_size // decoding.window_size
        self._num_steps = windows * decoding.effective.denoising_steps
        self._tokens: dict[int, tuple[str, int]] = {}

    def take(self, event: Event) -> Text:
        """The view after an event."""
        for place, token in zip(event.places, event.token_ids, strict=True):
            self._tokens[place] = self._text([token]), event.step
        last = max(self._tokens, default=0)
        # Up to the end of its block.
        return self.whole(last + self._size - (self._offset + last) % self._size)

    def whole(self, num: int) -> Text:
        """The first `num` positions."""
        tokens = [self._tokens.get(place) for place in range(num)]
        return render_commits(
            tokens, self._num_steps, block_offset=self._offset, block_size=self._size
        )
