"""A reward of one's own: the right number of objects, whatever they are and wherever."""

from protos.trajectory import Scored


class CountReward:
    """Minus the number of objects too many or too few, beyond a tolerance."""

    provides = ()  # no arrays for the task's auxiliary loss

    def __init__(self, task, tolerance=0):
        self.tolerance = tolerance

    def score(self, examples, predictions):
        """One outcome for each pair of example and prediction."""
        truth = [len(example.target.without_crowds()) for example in examples]
        errors = [abs(len(p) - n) for p, n in zip(predictions, truth, strict=True)]
        return [Scored(-float(max(0, error - self.tolerance))) for error in errors]
