"""Several teachers as one.

Their logits z_k are pooled into the logits of one answer, z = sum_k w_k z_k with sum_k w_k = 1. Its softmax is the
weighted geometric mean of theirs, the logarithmic opinion pool:

    softmax(z / T) = prod_k softmax(z_k / T)^(w_k) / Z        at every temperature T,

so that each loss may soften it as it likes. Hinton, Vinyals and Dean (2015, arXiv:1503.02531, section 1) name both this
mean and the arithmetic one for an ensemble's soft targets; the arithmetic one has no logits that serve all temperatures
(it would have to be made anew for each loss). Of all answers q, z's has the least sum_k w_k KL(q || p_k) (Heskes, NIPS
1997, "Selecting weighting factors in logarithmic opinion pools"). A class that one teacher excludes is excluded.

- "mean": w_k = 1 / M for M teachers.
- "weighted": w_k as given, divided by their sum.
- "confidence": for each image, who is surer of its true class counts for more, as in CA-MKD (Zhang, Chen and Wang,
  ICASSP 2022, arXiv:2201.00007):

      w_k = (1 - exp(L_k) / sum_j exp(L_j)) / (M - 1),     L_k = -sum_c y_c log softmax(z_k)_c,

  y the training target of the view (smoothed and mixed as the student's). CA-MKD sums the teachers' losses with these
  weights, which is the arithmetic mean at one temperature; here they weigh the pool above. An image without a label has
  no y: there L_k is the entropy of the teacher's own answer, so that the surer one still counts for more. With several
  heads each has weights of its own; so has each label of an image that may have several, as yes or no.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F

from edgetl.heads import MULTILABEL, Head, places

if TYPE_CHECKING:
    from edgetl.train.loader import Batch
    from edgetl.train.softlabels import Ask, Source

MEAN, WEIGHTED, CONFIDENCE = "mean", "weighted", "confidence"


def pooled(logits: torch.Tensor, shares: torch.Tensor) -> torch.Tensor:
    """Logits [N, K] of one answer.

    Args:
        logits: of each teacher, [M, N, K].
        shares: of each teacher, [M], or of each teacher for each image, [M, N], or each output, [M, N, K]; they add up
            to 1 over the teachers.
    """
    return (logits * shares.reshape(*shares.shape, *(1,) * (3 - shares.dim()))).sum(0)


def confidences(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """CA-MKD's shares [M, N] of the teachers.

    Args:
        logits: of each teacher, [M, N, K].
        targets: probabilities [N, K]; a row of zeros where an image has no label.
    """
    if len(logits) == 1:
        return logits.new_ones(logits.shape[:2])
    logs = F.log_softmax(logits, dim=2)
    of_label = -(targets * logs).sum(2)
    entropy = -(logs.exp() * logs).sum(2)
    loss = torch.where(targets.sum(1) > 0, of_label, entropy)
    return (1 - loss.softmax(0)) / (len(logits) - 1)


def confidences_of(heads: Sequence[Head], logits: torch.Tensor, targets: torch.Tensor, labelled: int) -> torch.Tensor:
    """CA-MKD's shares of the teachers for each output [M, N, K], of several heads or labels.

    Args:
        heads: what is asked.
        logits: of each teacher, [M, N, K].
        targets: probabilities [N, K]; NaN where nothing is known.
        labelled: how many images have any; they come first.
    """
    unlabelled = (torch.arange(len(targets), device=targets.device) >= labelled)[:, None]
    known = targets.masked_fill(unlabelled, torch.nan)
    if heads[0].kind == MULTILABEL:
        yes_no = torch.stack([known, 1 - known], -1).flatten(0, 1).nan_to_num(0.0)
        both = torch.stack([logits, torch.zeros_like(logits)], -1).flatten(1, 2)
        return confidences(both, yes_no).view_as(logits)
    known = known.nan_to_num(0.0)
    shares = [confidences(logits[:, :, part], known[:, part])[..., None].expand(*logits.shape[:2], len(head.labels))
              for head, part in places(heads)]
    return torch.cat(shares, dim=2)


class Mixed:
    """The source of several teachers' answers, each of which has a source of its own."""

    def __init__(
        self, sources: Sequence[Source], mix: str, weights: Sequence[float] = (), heads: Sequence[Head] = ()
    ) -> None:
        self._sources, self._mix, self._heads = tuple(sources), mix, tuple(heads)
        given = torch.tensor(tuple(weights) if mix == WEIGHTED else (1.0,) * len(self._sources))
        self._shares = given / given.sum()
        self.ask: Ask = self._mean

    def _mean(self, images: torch.Tensor) -> torch.Tensor:
        """The teachers' mean, live, of pixels [N, C, H, W]; nothing is kept."""
        said = torch.stack([source.ask(images) for source in self._sources])
        return pooled(said, self._shares.to(said.device))

    def answers(self, batch: Batch) -> torch.Tensor:
        """See `edgetl.train.softlabels.Source`."""
        said = torch.stack([source.answers(batch).float() for source in self._sources])
        return pooled(said, self._confident(said, batch) if self._mix == CONFIDENCE else self._shares.to(said.device))

    def _confident(self, said: torch.Tensor, batch: Batch) -> torch.Tensor:
        if not self._heads:
            return confidences(said, batch.targets)
        return confidences_of(self._heads, said, batch.targets, batch.labelled)

    def flush(self) -> None:
        """Writes down what each source would lose."""
        for source in self._sources:
            source.flush()

    def state(self) -> Mapping[str, torch.Tensor]:
        """What each source counts."""
        return {f"{place}.{name}": one for place, source in enumerate(self._sources)
                for name, one in source.state().items()}  # fmt: skip

    def told(self) -> Sequence[Mapping[str, int]]:
        """Figures of each source's store."""
        return [one for source in self._sources for one in source.told()]
