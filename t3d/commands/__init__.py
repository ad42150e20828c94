"""What each command does. Signatures and docstrings are the command line's options and help."""

from t3d.commands.benching import bench_decode, bench_train
from t3d.commands.checkpoints import convert
from t3d.commands.data import convert as convert_data
from t3d.commands.data import download
from t3d.commands.evaluating import analyze, calibrate, evaluate, frontier, lm_eval
from t3d.commands.exporting import export
from t3d.commands.importing import export_rollouts, import_store
from t3d.commands.showing import generate, report
from t3d.commands.training import compare, pretrain, rollout, run, train

COMMANDS = {
    "run": run,
    "compare": compare,
    "convert": convert,
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
    "export": export,
    "import": import_store,
    "export-rollouts": export_rollouts,
    "bench decode": bench_decode,
    "bench train": bench_train,
    "data download": download,
    "data convert": convert_data,
}
