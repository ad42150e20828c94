"""Roll out, distil, evaluate: the Python API in a minute or two on a CPU."""

from pathlib import Path

import t3d

task = t3d.get_task("mini_gsm")
run = Path("runs/quickstart")

teacher = t3d.from_pretrained("mini_teacher")
full_steps = t3d.DecodingConfig(block_size=4, denoising_steps=4, max_new_tokens=96)
prompts = task.examples("train", 500)
store = t3d.rollout(teacher, prompts, run / "store", t3d.RolloutConfig(full_steps))

student = t3d.from_pretrained("mini_teacher")
training = t3d.TrainingConfig(steps=50, batch_size=32, micro_batch_size=32, learning_rate=1e-3)
rows = t3d.training_rows(store.read())
t3d.distill(student, rows, t3d.MethodConfig("naive_td"), training, run / "student")

one_step = t3d.DecodingConfig(block_size=4, denoising_steps=1, max_new_tokens=96)
problems = task.examples("test", 100)
for name, lm in {"teacher": teacher, "student": student}.items():
    row = t3d.evaluate(lm, task, problems, one_step).row
    print(f"{name}: {row.accuracy:.0%} right at {row.tokens_per_forward:.1f} tokens a pass")
