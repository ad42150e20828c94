"""Checkpoints in the published SDAR layout, for other tools to load; and what is wrong with one."""

from t3d.export.engines import Consumer, Finding
from t3d.export.layout import Dtype, export
from t3d.export.verify import check, claims

__all__ = ["Consumer", "Dtype", "Finding", "check", "claims", "export"]
