"""Commands that answer: serve, chat."""

from __future__ import annotations

import os
from typing import Any

from t3d.core.dtypes import Dtype
from t3d.decoding.config import DecodingConfig
from t3d.serve.config import API_KEY, ServeConfig


def serve_command(
    models: list[str],
    decoding: DecodingConfig = DecodingConfig(),  # noqa: B008
    dtype: Dtype = "float32",
    **settings: Any,
) -> None:
    """Serve checkpoints to OpenAI's clients.

    It answers /v1/chat/completions and /v1/completions, and tells step maps and passes with every
    answer. Requests may name any decoding setting. A line of JSON for each request goes to stderr.
    Ctrl-C or SIGTERM stops it once what runs is finished. Where T3D_API_KEY is set, requests must
    bring that key.

    Examples:
      t3d serve mini_teacher
      t3d serve teacher=JetLM/SDAR-4B-Chat student=runs/student --dtype bfloat16 --port 8080

    Args:
        models: checkpoint directories, Hub names, or mini_teacher; NAME=PATH gives one a name.
        decoding: how requests are answered that do not say, unless given as `t3d calibrate`
            found for each checkpoint.
        dtype: number format of weights and arithmetic.
    """
    asked = ServeConfig(**settings)
    try:
        from t3d.serve.server import serve
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] == "t3d":
            raise
        raise ValueError(
            f"serving needs {error.name}; install the extra: pip install 't3d[serve]'"
        ) from None
    key = os.environ.get(API_KEY) or None

    def started(address: str) -> None:
        print(f"t3d: serving {', '.join(models)} at {address}, stop with Ctrl-C", flush=True)
        if key is None and asked.host not in ("127.0.0.1", "::1", "localhost"):
            print(f"t3d: whoever reaches {asked.host} may use it; set {API_KEY}", flush=True)

    try:
        serve(models, asked, decoding=decoding, dtype=dtype, key=key, on_start=started)
    except KeyboardInterrupt:
        # The signal comes again once everything is finished.
        print("t3d: stopped")


def chat_command(
    models: list[str],
    decoding: DecodingConfig = DecodingConfig(),  # noqa: B008
    dtype: Dtype = "float32",
    seed: int = 0,
) -> None:
    """Talk to checkpoints, and see their answers being denoised.

    Tokens are coloured by the step that commits them, from dark (early) to light (late); after each
    answer stand its passes and speed. /steps, /threshold and /model change how and by whom the
    next one is given, /help lists all commands. Where input or output is no terminal, every line is
    a question, and answers are plain text.

    Examples:
      t3d chat mini_teacher
      t3d chat teacher=JetLM/SDAR-4B-Chat student=runs/student --dtype bfloat16

    Args:
        models: checkpoint directories, Hub names, or mini_teacher; NAME=PATH gives one a name.
        decoding: how answers are decoded, unless given as `t3d calibrate` found for each
            checkpoint.
        dtype: number format of weights and arithmetic.
        seed: seed of candidate sampling.
    """
    from t3d.cli.showing import only_tasks
    from t3d.serve.chat import Chat, Talker
    from t3d.serve.served import by_name, load

    talkers = {
        name: Talker(load(name, path, decoding, dtype), keeps_history=not only_tasks(path))
        for name, path in by_name(models).items()
    }
    Chat(talkers, seed).run()
