"""Load the checkpoints, listen, and answer until a signal comes."""

from __future__ import annotations

import logging
import socket
from collections.abc import Callable, Iterable

import uvicorn

from t3d.core.dtypes import Dtype
from t3d.decoding.budget import GPU_SHARE, device_memory
from t3d.decoding.build import make_decoder
from t3d.decoding.config import DecodingConfig
from t3d.serve.app import make_app
from t3d.serve.config import ServeConfig
from t3d.serve.engine import Engine
from t3d.serve.gate import Protocol
from t3d.serve.log import LogHandler
from t3d.serve.served import Served, by_name, load

_KEEP_ALIVE = 75
"""Seconds that an idle connection stays open; longer than clients keep theirs."""


def serve(
    models: Iterable[str],
    settings: ServeConfig,
    *,
    decoding: DecodingConfig,
    dtype: Dtype,
    key: str | None,
    on_start: Callable[[str], None],
) -> None:
    """Serve checkpoints until SIGINT or SIGTERM comes, and what runs then is finished.

    Args:
        models: directories, Hub names or built-in names, each maybe as NAME=PATH.
        settings: address and limits.
        decoding: the setting of checkpoints that have none of their own.
        dtype: number format of weights and arithmetic.
        key: what requests must bring, if anything.
        on_start: called with the server's address when requests are answered.

    Raises:
        ValueError: for an address that cannot be had, two models of one name, or a checkpoint that
            cannot be loaded.
    """
    paths = by_name(models)
    with _listen(settings) as listener:
        loaded = {name: load(name, path, decoding, dtype) for name, path in paths.items()}
        share = _share(settings.memory_share, list(loaded.values()))
        decoders = {
            name: make_decoder(one.lm, one.decoding, settings.batch_size, memory_share=share)
            for name, one in loaded.items()
        }
        logging.getLogger("uvicorn").addHandler(LogHandler())
        engine = Engine(decoders, settings.batch_size + settings.max_queue)
        host, port = listener.getsockname()[:2]
        address = f"http://{f'[{host}]' if ':' in host else host}:{port}"
        Server(
            uvicorn.Config(
                make_app(loaded, engine, settings, key),
                http=type("Protocol", (Protocol,), {"header_seconds": settings.read_seconds}),
                ws="none",
                log_config=None,
                access_log=False,
                server_header=False,
                timeout_keep_alive=_KEEP_ALIVE,
                timeout_graceful_shutdown=max(1, round(settings.grace_seconds)),
            ),
            lambda: on_start(address),
        ).run([listener])


class Server(uvicorn.Server):
    """A server that says when it has started.

    Args:
        config: uvicorn's settings.
        on_start: what it calls then.
    """

    def __init__(self, config: uvicorn.Config, on_start: Callable[[], None]) -> None:
        super().__init__(config)
        self._on_start = on_start

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._on_start()


def _listen(settings: ServeConfig) -> socket.socket:
    """A socket at the address, so that one in use is found before anything is loaded."""
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    listener = socket.socket(family)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((settings.host, settings.port))
    except OSError as error:
        listener.close()
        raise ValueError(
            f"{settings.host}:{settings.port}: cannot be listened to: {error.strerror}; give "
            "another --host or --port"
        ) from None
    return listener


def _share(share: float | None, loaded: list[Served]) -> float | None:
    """Share of the device's memory up to which one model's cache may grow, so that those of all
    models, whose weights are there already, fit."""
    device = loaded[0].lm.model.device
    if share is None and device.type == "cuda":
        share = GPU_SHARE
    if share is None:
        return None
    total, held = device_memory(device)
    return held / total + (share - held / total) / len(loaded)
