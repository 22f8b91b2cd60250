"""A study: several configurations, each from several seeds, on the same data and steps, judged alike.

StudyConfig -> tasks (variant x seed) -> train, judge -> OUT/VARIANT_SEED/result.json -> tables, curves, report
"""

from .report import write_report
from .run import StudyConfig, Task, Variant, run_study, study_tasks

__all__ = ["StudyConfig", "Task", "Variant", "run_study", "study_tasks", "write_report"]
