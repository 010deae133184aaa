"""What is measured about an edit, as pure functions, and how sure a mean is.

Axes: n prompts or cases · parts metrics that are resampled together.
"""

import math
from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

__all__ = ["bootstrap", "harmonic_mean", "magnitude", "success", "wilson"]


def success(
    logp_wanted: Float[Tensor, " n"], logp_other: Float[Tensor, " n"]
) -> Float[Tensor, " n"]:
    r"""Where the wanted answer is more probable than the other one, as 0 or 1.

    .. math:: \mathbb 1\,[P(o_{wanted} \mid x) > P(o_{other} \mid x)]

    For efficacy and paraphrases the wanted answer is the new target and the other one
    the truth; for neighborhood prompts it is the other way round. Higher is better.

    Source: Meng et al. 2022 (ROME), section 3.4.
    Book: sec-evaluation-scores

    >>> success(torch.tensor([-1.0, -3.0]), torch.tensor([-2.0, -2.0]))
    tensor([1., 0.])
    """
    return (logp_wanted > logp_other).to(logp_wanted.dtype)


def magnitude(
    logp_wanted: Float[Tensor, " n"], logp_other: Float[Tensor, " n"]
) -> Float[Tensor, " n"]:
    r"""By how much probability the wanted answer leads, from -1 to 1.

    .. math:: P(o_{wanted} \mid x) - P(o_{other} \mid x)

    Source: Meng et al. 2022 (ROME), section 3.4.
    Book: sec-evaluation-scores

    >>> magnitude(torch.tensor([0.75]).log(), torch.tensor([0.25]).log())
    tensor([0.5000])
    """
    return logp_wanted.exp() - logp_other.exp()


def harmonic_mean(*rates: float) -> float:
    r"""The score S: high only if every part is high; nan if a part is missing.

    .. math:: S = 3 \,\Big/ \left(\tfrac1{ES} + \tfrac1{PS} + \tfrac1{NS}\right)

    Source: Meng et al. 2022 (ROME), section 3.4: taken over the mean rates.
    Book: sec-evaluation-scores

    >>> harmonic_mean(1.0, 1.0, 0.5)
    0.75
    """
    if any(math.isnan(rate) for rate in rates):
        return math.nan
    if min(rates) <= 0:
        return 0.0
    return len(rates) / sum(1 / rate for rate in rates)


def wilson(successes: int, n: int, *, z: float = 1.959964) -> tuple[float, float]:
    r"""The 95 % interval of a proportion; sensible also at 0, at 1 and for small n.

    Args:
        successes: how many of the outcomes were yes.
        n: how many yes-or-no outcomes there are.
        z: quantile of the normal distribution.

    Source: Wilson 1927.
    Book: sec-evaluation-intervals

    >>> [round(end, 3) for end in wilson(10, 10)]
    [0.722, 1.0]
    """
    p, spread = successes / n, z * z / n
    center = (p + spread / 2) / (1 + spread)
    half = math.sqrt(p * (1 - p) * spread + spread * spread / 4) / (1 + spread)
    return max(0.0, center - half), min(1.0, center + half)


def bootstrap(
    values: Float[Tensor, "n parts"],
    statistic: Callable[[Float[Tensor, "resamples parts"]], Tensor],
    *,
    resamples: int = 1000,
    seed: int = 0,
) -> tuple[float, float]:
    """The 95 % percentile interval of a statistic of column means, resampling rows.

    Args:
        values: one row per case; nan where a case has no value.
        statistic: maps column means, one row per resample, to one number per row.
        resamples: how many times to draw n rows with replacement.
        seed: of the draws.

    Book: sec-evaluation-intervals
    """
    generator = torch.Generator().manual_seed(seed)
    n = len(values)
    drawn = torch.randint(n, (resamples, n), generator=generator)
    outcome = statistic(torch.stack([values[row].nanmean(0) for row in drawn])).double()
    low, high = outcome.nanquantile(torch.tensor([0.025, 0.975]).double()).tolist()
    return low, high
