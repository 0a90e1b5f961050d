"""Run a frozen ResNet trunk once, keep its features, train new heads in seconds, fine-tune only when it pays.

The public API, each a function with keyword arguments (the fields of the stage's settings)::

    from pipeline import extract, train, search, evaluate, compare, baseline, finetune, predict, export
    from pipeline import open_cache

Importing this package imports no torch: each stage does when it is called.
"""

from pipeline.stages.extract.job import extract
from pipeline.stages.finetune.job import finetune
from pipeline.stages.learn.baseline import baseline
from pipeline.stages.learn.search import search
from pipeline.stages.learn.train import train
from pipeline.stages.score.compare import compare
from pipeline.stages.score.evaluate import evaluate
from pipeline.stages.use.export import export
from pipeline.stages.use.predict import predict
from pipeline.store import open_cache

__all__ = [
    "baseline",
    "compare",
    "evaluate",
    "export",
    "extract",
    "finetune",
    "open_cache",
    "predict",
    "search",
    "train",
]
