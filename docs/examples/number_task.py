"""A task of one's own in one file: read the number on a picture, one token a digit.

The pictures are made of the handwritten digits that scikit-learn brings along. The reward is beside
the task: the share of digits that are right, place by place.
"""

from functools import cached_property

import numpy as np
from PIL import Image, ImageDraw

from protos.trajectory import Scored
from vision.data.images import to_model
from vision.tasks.task import Example

SIDE, PLACES = 16, 3  # pixels of a digit, digits of the longest number
FIRST_DIGIT, END = 1, 11  # token 0 pads; tokens 1 to 10 are the digits, 11 ends a number
IMAGES = {"train": (0, 1400), "validation": (1400, 1600), "test": (1600, 1797)}


class NumberTask:
    """Numbers of one to three digits. Examples are made from their ids: `train/17`."""

    vocabulary_size = 12
    max_length = PLACES + 1
    end_token = END
    image_size = (SIDE, SIDE * PLACES)
    ordered_tokens = None  # no range of tokens whose order means nearness
    headline = "accuracy"

    def __init__(self, train=4000, held_out=200):
        self.auxiliary_arrays = {}  # no loss beside the policy gradient's
        self.counts = {"train": train, "validation": held_out, "test": held_out}

    @classmethod
    def prepare(cls, config, progress):
        """Nothing is made beforehand."""

    @cached_property
    def digits(self):
        """Images [1797, 8, 8] of 0 to 16, and labels [1797]."""
        from sklearn.datasets import load_digits

        data = load_digits()
        return data.images, data.target

    def example_ids(self, split):
        """The ids of a split; its digits are nobody else's."""
        return [f"{split}/{index}" for index in range(self.counts[split])]

    def load(self, split, example_id, augmentation_seed):
        """A function of the id alone: there is no augmentation. The target is the number's text."""
        random = np.random.default_rng([list(IMAGES).index(split), int(example_id.split("/")[1])])
        images, labels = self.digits
        chosen = random.integers(*IMAGES[split], random.integers(1, PLACES + 1))
        picture = np.zeros((SIDE, SIDE * PLACES), np.uint8)
        for place, index in enumerate(chosen):
            digit = Image.fromarray((images[index] * 15.9).astype(np.uint8)).resize((SIDE, SIDE))
            picture[:, place * SIDE : (place + 1) * SIDE] = digit
        noisy = np.clip(picture + random.normal(0, 30, picture.shape), 0, 255).astype(np.uint8)
        image = to_model(np.repeat(noisy[..., None], 3, axis=2))
        return Example(example_id, image, "".join(str(labels[index]) for index in chosen))

    def allowed_tokens(self):
        """The first token is a digit, the last one the end."""
        allowed = np.ones((self.max_length, self.vocabulary_size), bool)
        allowed[:, 0] = False
        allowed[0, END] = False
        allowed[-1, :END] = False
        return allowed

    def reinforced_tokens(self):
        """All."""
        return np.ones(self.max_length, bool)

    def target_tokens(self, example, seed):
        """The digits and the end."""
        tokens = np.zeros(self.max_length, np.int32)
        tokens[: len(example.target)] = [FIRST_DIGIT + int(digit) for digit in example.target]
        tokens[len(example.target)] = END
        return tokens

    def decode(self, example, tokens, logprobs):
        """[N] texts."""
        ends = np.argmax(tokens == END, axis=1)
        return [
            "".join(str(token - FIRST_DIGIT) for token in row[:end])
            for row, end in zip(tokens, ends, strict=True)
        ]

    def auxiliary_loss(self, logits, tokens, auxiliary):
        """Never called: `auxiliary_arrays` is empty."""
        raise NotImplementedError

    def evaluate(self, examples, predictions):
        """The share of numbers that are right."""
        right = [e.target == text for e, text in zip(examples, predictions, strict=True)]
        return {"accuracy": float(np.mean(right))}

    def draw(self, example, prediction):
        """The picture with the number under it."""
        picture = Image.fromarray(((example.image + 1) * 127.5).astype(np.uint8))
        page = Image.new("RGB", (192, 90), "white")
        page.paste(picture.resize((192, 64), Image.Resampling.NEAREST))
        text = example.target if prediction is None else prediction
        ImageDraw.Draw(page).text((4, 70), text, fill="black")
        return np.asarray(page)


class DigitsReward:
    """The share of places that are right, of those of the longer of both numbers."""

    provides = ()

    def __init__(self, task):
        pass

    def score(self, examples, predictions):
        """One outcome for each pair of example and prediction."""
        return [
            Scored(sum(map(str.__eq__, example.target, text)) / max(len(example.target), len(text)))
            for example, text in zip(examples, predictions, strict=True)
        ]
