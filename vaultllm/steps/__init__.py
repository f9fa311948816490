"""The verbs: one function each. Its signature is the command's options, the pipeline's keys and their check.

Every step takes a `Job` (workspace, progress, how long to wait for a lock) and returns one JSON-ready dict; `cli.py` shows it,
`pipeline.py` runs it, the daemon and the API call it. They know nothing about terminals.
"""

from vaultllm.steps.answering import ask, rate, reply
from vaultllm.steps.feeding import import_, ingest, ingest_named, repair
from vaultllm.steps.job import Job, answering_base, problem_entry
from vaultllm.steps.learning import dataset, micro, promote, report, retrain, rollback, runs, train
from vaultllm.steps.looking import explain, related, search, show_metadata, show_scenes, status
from vaultllm.steps.mending import bundle, doctor, dump, forget

__all__ = [
    "Job",
    "answering_base",
    "ask",
    "bundle",
    "dataset",
    "doctor",
    "dump",
    "explain",
    "forget",
    "import_",
    "ingest",
    "ingest_named",
    "micro",
    "problem_entry",
    "promote",
    "rate",
    "related",
    "repair",
    "reply",
    "report",
    "retrain",
    "rollback",
    "runs",
    "search",
    "show_metadata",
    "show_scenes",
    "status",
    "train",
]
