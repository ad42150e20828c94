"""What each command does. Signatures and docstrings are the command line's options and help."""

from t3d.commands.data import convert, download
from t3d.commands.evaluating import analyze, calibrate, evaluate, frontier, lm_eval
from t3d.commands.showing import generate, report
from t3d.commands.training import compare, pretrain, rollout, run, train

COMMANDS = {
    "run": run,
    "compare": compare,
    "pretrain": pretrain,
    "rollout": rollout,
    "train": train,
    "eval": evaluate,
    "frontier": frontier,
    "calibrate": calibrate,
    "lm-eval": lm_eval,
    "analyze": analyze,
    "report": report,
    "generate": generate,
    "data download": download,
    "data convert": convert,
}
