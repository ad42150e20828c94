"""Commands that exchange trajectories with the code of T3D's authors and with dLLM-RL."""

from __future__ import annotations

from pathlib import Path

from t3d.core.files import check_file
from t3d.interop.rollouts.rows import Format


def import_command(
    source: Path,
    model: str,
    output: Path,
    format: Format = "t3d",
    block_size: int = 4,
    prompt_suffix: str = "",
) -> None:
    """Turn rollout JSON of T3D's authors, or of dLLM-RL, into a trajectory store.

    Responses whose tokens and steps cannot be aligned are left out and reported, never guessed.

    Example:
      t3d import SDAR-4B-Chat-MATH_train.json --model SDAR-4B-Chat --output runs/store

    Args:
        source: a JSON list of rollouts with their step maps.
        model: the teacher that decoded them; its tokenizer is used.
        output: directory of the store.
        format: t3d or dllm-rl.
        block_size: block size of the decoder that made the rollouts.
        prompt_suffix: what followed each question, for files that lack the key prompt.
    """
    from t3d.interop.rollouts.importing import REPORT, import_rollouts
    from t3d.models.loading import from_pretrained

    report = import_rollouts(
        source,
        from_pretrained(model),
        output,
        format=format,
        block_size=block_size,
        prompt_suffix=prompt_suffix,
    )
    print(report.summary)
    print(output / REPORT)


def export_rollouts_command(
    trajectories: Path, model: str, output: Path, format: Format = "t3d"
) -> None:
    """Turn a trajectory store into rollout JSON of T3D's authors or of dLLM-RL.

    Trajectories whose text does not give their token ids back are left out and listed.

    Example:
      t3d export-rollouts --trajectories runs/store --model mini_teacher --output rollouts.json

    Args:
        trajectories: a complete trajectory store.
        model: the model that made them; its tokenizer is used.
        output: the .json to write.
        format: t3d or dllm-rl.
    """
    check_file(output)

    from t3d.core.store import TrajectoryStore
    from t3d.interop.rollouts import exporting
    from t3d.models.loading import from_pretrained

    store = TrajectoryStore.open(trajectories)
    report = exporting.export_rollouts(store, from_pretrained(model), output, format=format)
    for row in report.skipped:
        print(f"{trajectories}, row {row.entry} ({row.prompt_id}): {row.reason}: {row.detail}")
    print(report.summary)
