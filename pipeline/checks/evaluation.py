"""Whether all that an evaluation measures by is on this machine."""

from pipeline.features.choice import check_features
from pipeline.features.statistics_file import check_reference
from pipeline.metrics.base import check_metrics, report_kinds
from pipeline.recipes.schema import Recipe


def check_evaluation(recipe: Recipe) -> None:
    """ValueError where there is no such metric, or features, their weights or the reference are not on this machine."""
    evaluate = recipe.evaluate
    check_metrics(evaluate.metrics, report_kinds(), "evaluate.metrics")
    check_features(evaluate.features, recipe.weights)
    check_reference(evaluate.reference, evaluate.features)
