"""A batch of sequences while it is decoded in torch, and the step from one position to the next.

A step waits for nothing and allocates nothing that outlives it, so that it can be a CUDA graph:
position, tokens and caches are tensors that it changes in place.
"""

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from vision.models.sequence_torch import KeysValues, Rows, TorchSequenceModel
from vision.tasks.task import PAD

# Sequences that have ended leave the batch once only so much of it is left.
SHRINK_AT = 0.75


@dataclass
class Decoding:
    """M sequences, those of the G x K that are still worked on.

    Attributes:
      position: [1] int64, the next to decode.
      tokens: [M, L] int64.
      logprobs: [M, L] float32.
      last: [M] int64, the tokens just drawn.
      ended: [M] bool.
      words: [L, M, 2] int32, the random words; None to be greedy.
      cache: of each layer, [M, heads, L, head_dim].
      cross: of each layer, [B, heads, P, head_dim].
      chosen: [M] int64, where they are in [G * K].
      groups: [B] int64, whose keys and values `cross` holds.
      rows: as the model wants it; None: all K sequences of all B groups.
    """

    position: Tensor
    tokens: Tensor
    logprobs: Tensor
    last: Tensor
    ended: Tensor
    words: Tensor | None
    cache: list[KeysValues]
    cross: list[KeysValues]
    chosen: Tensor
    groups: Tensor
    rows: Rows | None

    @classmethod
    def start(
        cls, model: TorchSequenceModel, cross: list[KeysValues], words: Tensor | None, samples: int
    ) -> "Decoding":
        """All K sequences of the groups of `cross`, before the first position."""
        device, groups = cross[0][0].device, len(cross[0][0])
        sequences = groups * samples
        shape = (sequences, model.config.max_length)
        return cls(
            position=torch.zeros(1, dtype=torch.int64, device=device),
            tokens=torch.full(shape, PAD, device=device),
            logprobs=torch.zeros(shape, device=device),
            last=torch.full((sequences,), PAD, device=device),
            ended=torch.zeros(sequences, dtype=torch.bool, device=device),
            words=words,
            cache=model.empty_cache(sequences),
            cross=cross,
            chosen=torch.arange(sequences, device=device),
            groups=torch.arange(groups, device=device),
            rows=None,
        )

    def restart(self, cross: list[KeysValues], words: Tensor | None) -> None:
        """Other images and words of the same shapes, in the same memory."""
        for old, new in zip(self.cross, cross, strict=True):
            for kept, value in zip(old, new, strict=True):
                kept.copy_(value)
        if self.words is not None and words is not None:
            self.words.copy_(words)
        # Positions to come are masked, but what a bad policy left there (NaN) would still count.
        caches = [tensor for layer in self.cache for tensor in layer]
        for tensor in (self.position, self.tokens, self.logprobs, self.last, self.ended, *caches):
            tensor.zero_()

    def without_ended(self, samples: int, position: int) -> "Decoding":
        """The sequences that go on; `position` is the next, as a number."""
        kept = (~self.ended).nonzero().squeeze(1)
        chosen = self.chosen[kept]
        of_group = torch.div(chosen, samples, rounding_mode="floor")
        groups, cross, live = self.groups, self.cross, torch.unique(of_group)
        if len(live) <= SHRINK_AT * len(groups):
            where = torch.searchsorted(groups, live)
            groups, cross = live, [(keys[where], values[where]) for keys, values in cross]
        place = torch.searchsorted(groups, of_group) * samples + chosen % samples

        def shorter(old: Tensor) -> Tensor:
            new = torch.empty((len(kept), *old.shape[1:]), dtype=old.dtype, device=old.device)
            new[:, :, :position] = old[kept, :, :position]
            return new

        return replace(
            self,
            tokens=self.tokens[kept],
            logprobs=self.logprobs[kept],
            last=self.last[kept],
            ended=self.ended[kept],
            words=None if self.words is None else self.words[:, kept],
            cache=[(shorter(keys), shorter(values)) for keys, values in self.cache],
            cross=cross,
            chosen=chosen,
            groups=groups,
            rows=Rows(place, samples),
        )


class Steps:
    """Draws the next token of every sequence; the settings are those of an engine."""

    def __init__(
        self,
        model: TorchSequenceModel,
        allowed_tokens: np.ndarray,
        end_token: int,
        temperature: float,
        end_token_bias: float,
        device: torch.device,
    ) -> None:
        self._model, self._end_token, self._temperature = model, end_token, temperature
        self._allowed = torch.tensor(np.asarray(allowed_tokens, bool), device=device)
        vocabulary = allowed_tokens.shape[1]
        self._bias = torch.zeros(vocabulary, device=device)
        if end_token >= 0:
            self._bias[end_token] = end_token_bias
        index = np.arange(vocabulary, dtype=np.uint32) * np.uint32(0x9E3779B9)
        self._hash_index = torch.tensor(index.view(np.int32), device=device)

    def advance(self, decoding: Decoding, span: int) -> None:
        """Decodes one position, looking at the cache's first `span`; changes `decoding`."""
        position = decoding.position
        logits = self._model.decode_step(
            decoding.last, position, span, decoding.cache, decoding.cross, decoding.rows
        )
        logits = logits.masked_fill_(~self._allowed.index_select(0, position), float("-inf"))
        words = None
        if decoding.words is not None:
            words = decoding.words.index_select(0, position)[0]
        drawn = self._draw(logits, words)
        logprob = logits.gather(1, drawn[:, None])[:, 0] - logits.logsumexp(1)
        drawn = drawn.masked_fill_(decoding.ended, PAD)
        logprob = logprob.masked_fill_(decoding.ended, 0.0)
        decoding.tokens.index_copy_(1, position, drawn[:, None])
        decoding.logprobs.index_copy_(1, position, logprob[:, None])
        decoding.last.copy_(drawn)
        decoding.ended.logical_or_(drawn == self._end_token)
        position.add_(1)

    def _draw(self, logits: Tensor, words: Tensor | None) -> Tensor:
        """[M] int64 tokens: the likeliest, or drawn with the position's random words [M, 2]."""
        logits = logits + self._bias
        if words is None:
            return logits.argmax(1)
        # The first of V exponential clocks with rates p_v rings for v with probability p_v.
        scaled = logits.sub_(logits.amax(1, keepdim=True)).div_(self._temperature)
        return scaled.exp_().div_(exponential(words, self._hash_index)).argmax(1)


def exponential(words: Tensor, hash_index: Tensor) -> Tensor:
    """[M, V] standard exponential variates, a hash of words [M, 2] and the index; see JaxEngine's.

    Torch has little arithmetic for uint32: in int32 the same bits come out of sums and products.
    """
    bits = _mix(_mix(hash_index + words[:, :1]) ^ words[:, 1:])
    uniform = _shifted(bits, 9).float().add_(0.5).mul_(2.0**-23)
    return uniform.log_().neg_()


def _mix(bits: Tensor) -> Tensor:
    """MurmurHash3's 32-bit finalizer, [...] int32."""
    bits = (bits ^ _shifted(bits, 16)).mul_(0x85EBCA6B - 2**32)
    bits = bits.bitwise_xor_(_shifted(bits, 13)).mul_(0xC2B2AE35 - 2**32)
    return bits.bitwise_xor_(_shifted(bits, 16))


def _shifted(bits: Tensor, count: int) -> Tensor:
    """Shifted right with zeros, as if they were uint32."""
    return (bits >> count).bitwise_and_(2 ** (32 - count) - 1)
