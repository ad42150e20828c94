"""Settings of the server."""

from __future__ import annotations

from dataclasses import dataclass

from t3d.core.ranges import check_ranges

API_KEY = "T3D_API_KEY"
"""Environment variable of the key that requests must bring; options could be read by others."""


@dataclass(frozen=True)
class ServeConfig:
    """What a server listens to, and how much it takes.

    Args:
        host: address to listen on; by default only this machine reaches it.
        port: port to listen on; 0 for a free one.
        batch_size: answers of one model that are decoded at the same time.
        max_queue: further answers of one model that may wait; beyond them requests get 429.
        max_choices: answers of one request at most, over its n and prompts.
        max_tokens: response tokens of an answer at most; by default what fits the model.
        max_prompt_tokens: tokens of a prompt at most; by default what fits the model.
        max_body_bytes: bytes of a request's body at most.
        read_seconds: seconds in which a request's headers, and then its body, must come.
        grace_seconds: seconds that running requests have to finish once the server is stopped.
        memory_share: share of the device's memory that all models may take together; by default
            0.9 on a GPU, and no bound on a CPU.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    batch_size: int = 32
    max_queue: int = 128
    max_choices: int = 16
    max_tokens: int | None = None
    max_prompt_tokens: int | None = None
    max_body_bytes: int = 2**20
    read_seconds: float = 10.0
    grace_seconds: float = 30.0
    memory_share: float | None = None

    def __post_init__(self) -> None:
        check_ranges(
            self,
            {
                "[0, 65535]": "port",
                "[1, inf)": "batch_size max_choices max_tokens max_prompt_tokens max_body_bytes",
                "[0, inf)": "max_queue grace_seconds",
                "(0, inf)": "read_seconds",
                "(0, 1]": "memory_share",
            },
        )
        if self.max_choices > self.batch_size + self.max_queue:
            raise ValueError(
                f"max_choices={self.max_choices} is more than batch_size + max_queue = "
                f"{self.batch_size + self.max_queue}, so that such a request would always be "
                "refused; lower it"
            )
