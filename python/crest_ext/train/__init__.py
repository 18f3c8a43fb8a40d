"""Training in plain functions, and recipes that string them together."""

from crest_ext.train.fit import Progress, Report, bake, evaluate, fit
from crest_ext.train.logit_cache import CachedBatch, LogitCache
from crest_ext.train.recipe import Phase, Recipe, load_recipe, recipe_names
from crest_ext.train.run import Data, PhaseResult, count, loaders, restore, run
from crest_ext.train.schedules import Constant, Cosine, Inv, Plateau, Schedule, Step
from crest_ext.train.search import LR, Trial, search

__all__ = [
    "LR",
    "CachedBatch",
    "Constant",
    "Cosine",
    "Data",
    "Inv",
    "LogitCache",
    "Phase",
    "PhaseResult",
    "Plateau",
    "Progress",
    "Recipe",
    "Report",
    "Schedule",
    "Step",
    "Trial",
    "bake",
    "count",
    "evaluate",
    "fit",
    "load_recipe",
    "loaders",
    "recipe_names",
    "restore",
    "run",
    "search",
]
